"""Every family and variant against transformers in float32, on random weights."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from seeds import fresh_seed
from tiny_models import CASES, Truth, make_model, save_model
from torch import Tensor

from halfbyte import Engine, SamplingParams

# Float32 arithmetic in another order, through three layers, on logits of about 2: errors of
# some 1e-6. Whatever is wired wrongly shows as 1e-1.
CLOSE = 1e-4
BACKENDS: dict[str, dict[str, Any]] = {
    "reference": {"backend": "reference", "dtype": "float32"},
    "cpu_c": {"dtype": "float32"},
    "cpu_torch": {"backend": "cpu_torch", "dtype": "float32"},
}
# One token, less and more than a window, a scaling limit (64) and a KV block.
LENGTHS = [1, 2, 15, 17, 60, 64, 65, 100]
STEPS = 24
MIXTURES = ("mixtral", "qwen3_moe", "gpt_oss")
BY_LENGTH = ("dynamic", "longrope")


def prompts_of(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(256) for _ in range(length)] for length in LENGTHS]


def assert_logits(engine: Engine, wanted: list[Tensor], prompts: list[list[int]]) -> None:
    for prompt, want in zip(prompts, wanted, strict=True):
        got = engine.logits(prompt)
        assert got.shape == want.shape and got.dtype == torch.float32
        error = float((got - want).abs().max())
        assert error <= CLOSE, f"{len(prompt)} tokens: off by {error}"


def greedy(engine: Engine, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    params = SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True)
    return [tuple(done.token_ids) for done in engine.generate(prompts, params)]


def assert_greedy(
    model: Any, prompt: list[int], answer: tuple[int, ...], grows: bool, ids: int = 257
) -> None:
    """Each token is the best that transformers knows there, ties within the error aside.

    Where rotations go by a text's length as it ``grows``, transformers generates step by step too.
    ``ids`` are those of the tokenizer.
    """
    assert len(answer) == STEPS
    truth = Truth(model)
    if grows:
        before = [prompt, *([token] for token in answer[:-1])]
        rows = torch.stack([truth.advance(tokens) for tokens in before])
    else:
        rows = truth.logits([*prompt, *answer[:-1]])[-STEPS:]
    rows = rows[:, :ids]  # rows beyond the tokenizer's ids are padding and never drawn
    for step, (token, logits) in enumerate(zip(answer, rows, strict=True)):
        assert logits[token] >= logits.max() - 2 * CLOSE, f"step {step} after {len(prompt)} tokens"


@pytest.mark.parametrize("name", CASES)
def test_family(name: str, tmp_path: Path) -> None:
    # Routers that see scores 1e-6 apart may choose another expert: not with every seed.
    seed = 7 if name.startswith(MIXTURES) or "experts" in name else fresh_seed()
    model = make_model(name, seed)
    folder = save_model(model, tmp_path / name)
    prompts = prompts_of(seed)
    wanted = [Truth(model).logits(prompt) for prompt in prompts]
    assert 0.5 < float(torch.cat(wanted).std()) < 10, "the logits say nothing"
    for backend, options in BACKENDS.items():
        print(backend)
        with Engine(folder, max_batch=4, max_batch_tokens=48, **options) as engine:
            assert_logits(engine, wanted, prompts)
            # Decode steps of the slow backends are test_checkpoints.py's.
            answers = greedy(engine, prompts) if backend == "cpu_c" else []
        for prompt, answer in zip(prompts, answers, strict=False):
            assert_greedy(model, prompt, answer, grows=name.endswith(BY_LENGTH))


@pytest.mark.parametrize("name", ["llama-biases", "qwen3-bias-tied"])
def test_sharded_folders_are_the_same_model(name: str, tmp_path: Path) -> None:
    seed = fresh_seed()
    model = make_model(name, seed)
    folder = save_model(model, tmp_path, shard="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    prompts = prompts_of(seed)[:4]
    wanted = [Truth(model).logits(prompt) for prompt in prompts]
    with Engine(folder, dtype="float32") as engine:
        assert_logits(engine, wanted, prompts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_half_precision_files_mean_their_own_values(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Weights are rounded once, when saved; arithmetic stays in float32.

    Gemma's factor on the embeddings keeps the type that the file was made in.
    """
    seed = fresh_seed()
    model = make_model(name, seed).to(dtype)
    folder = save_model(model, tmp_path)
    prompts = prompts_of(seed)[:6]
    exact = model.to(torch.float32)
    if name == "gemma2":
        scale = torch.tensor(72**0.5).to(dtype).float()
        assert abs(float(scale) - 72**0.5) > 1e-3 * (dtype == torch.bfloat16)
        exact.model.embed_tokens.embed_scale = scale
    wanted = [Truth(exact).logits(prompt) for prompt in prompts]
    for options in BACKENDS.values():
        with Engine(folder, **options) as engine:
            assert_logits(engine, wanted, prompts)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize(
    "options",
    [
        {"exact": True},
        pytest.param({"exact": True, "backend": "cpu_torch"}, marks=pytest.mark.slow),
    ],
)
def test_exact_experts_do_not_see_the_batch(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """The same bits whatever a step holds beside a token, although experts run by groups."""
    seed = fresh_seed()
    folder = save_model(make_model(name, seed), tmp_path)
    prompts = prompts_of(seed)[2:6]
    with (
        Engine(folder, max_batch_tokens=7, max_batch=1, **options) as narrow,
        Engine(folder, max_batch_tokens=256, max_batch=8, **options) as wide,
    ):
        for prompt in prompts:
            assert torch.equal(narrow.logits(prompt), wide.logits(prompt))
        assert greedy(narrow, prompts) == greedy(wide, prompts)


@pytest.mark.parametrize("spelling", ["model.language_model.", "language_model.model."])
@pytest.mark.parametrize("name", ["gemma3", "ministral3", "mistral-no-window"])
def test_the_language_model_of_a_multimodal_one(name: str, spelling: str, tmp_path: Path) -> None:
    """The same text model inside a wrapper, in both spellings of its tensors."""
    seed = fresh_seed()
    model = make_model(name, seed)
    folder = save_model(model, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    wrapped = {spelling + key.removeprefix("model."): value for key, value in tensors.items()}
    if (head := wrapped.pop(f"{spelling}lm_head.weight", None)) is not None:
        beside = spelling.removesuffix("model.") if "language_model.model" in spelling else ""
        wrapped[f"{beside}lm_head.weight"] = head
    wrapped["vision_tower.patch.weight"] = torch.zeros(3)
    wrapped["model.multi_modal_projector.norm.weight"] = torch.zeros(3)
    save_file(wrapped, folder / "model.safetensors")
    inner = json.loads((folder / "config.json").read_text())
    kind = {"gemma3_text": "Gemma3", "ministral3": "Mistral3", "mistral": "Mistral3"}
    wrapper = kind[inner["model_type"]]
    outer = {"model_type": wrapper.lower(), "architectures": [f"{wrapper}ForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(outer | {"text_config": inner}))
    prompts = prompts_of(seed)[:6]
    with Engine(folder, backend="cpu_torch", dtype="float32") as engine:
        assert engine.report.warnings == ["the vision tower is left out: only text is supported"]
        assert_logits(engine, [Truth(model).logits(prompt) for prompt in prompts], prompts)


def test_default_mode_stays_close(tmp_path: Path) -> None:
    """bfloat16 products in long prompts: 2**-8 a factor, averaged over 64 or more of them."""
    seed = fresh_seed()
    model = make_model("llama-llama3", seed)
    folder = save_model(model, tmp_path)
    prompts = prompts_of(seed)
    bfloat16 = {"backend": "reference", "dtype": "bfloat16"}
    modes: list[dict[str, Any]] = [{}, {"backend": "cpu_torch"}, bfloat16]
    for options in modes:
        with Engine(folder, **options) as engine:
            got = torch.cat([engine.logits(prompt) for prompt in prompts])
        want = torch.cat([Truth(model).logits(prompt) for prompt in prompts])
        relative = float((got - want).norm() / want.norm())
        assert relative < 0.05, (options, relative)
