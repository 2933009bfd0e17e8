"""Tiny models on the Triton kernels, run by Triton's interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import Truth, make_model, save_model

from halfbyte import Engine, SamplingParams
from halfbyte.errors import ConfigError, UnsupportedModelError

PROMPTS = [[5, 6, 7, 8, 9], [100, 200, 300]]
GREEDY = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)


@pytest.fixture(scope="module")
def quantized(tiny_gguf: Path) -> Engine:
    return Engine(tiny_gguf, backend="interpreter", max_context=64, max_batch=4, prefix_cache=False)


def test_same_greedy_tokens_as_the_cpu(quantized: Engine, tiny_gguf: Path) -> None:
    assert quantized.backend == "interpreter"
    cpu = Engine(tiny_gguf, device="cpu", max_context=64, activations="float")
    want = [done.token_ids for done in cpu.generate(PROMPTS, GREEDY)]
    assert [done.token_ids for done in quantized.generate(PROMPTS, GREEDY)] == want


def test_logits_within_half_precision(quantized: Engine, tiny_gguf: Path) -> None:
    """Activations are rounded to float16 (2**-11) some ten times a layer, in two layers."""
    want = Engine(tiny_gguf, backend="reference", max_context=64).logits(PROMPTS[0])
    got = quantized.logits(PROMPTS[0])
    assert (got - want).norm() / want.norm() < 20 * 2.0**-11


def test_exact_bits_do_not_depend_on_chunks(tiny_gguf: Path) -> None:
    """Chunks of 3, and of 2 and 1 tokens: other kernels' shapes, the same bits."""
    found = []
    for chunk in (8, 2):
        engine = Engine(
            tiny_gguf,
            backend="interpreter",
            exact=True,
            max_context=64,
            max_batch=1,
            max_batch_tokens=chunk,
        )
        found.append(engine.logits(PROMPTS[1]))
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    ("name", "length"),
    # Experts, a rotation of half of each head with two tables (from 64 on the second one), layers
    # without rotation, caps.
    [
        ("mixtral", 21),
        pytest.param("phi3-partial-longrope", 70, marks=pytest.mark.slow),
        ("smollm3-window", 21),
        ("gemma2-caps", 21),
        ("gpt_oss", 21),
    ],
)
def test_families_within_half_precision(name: str, length: int, tmp_path: Path) -> None:
    """What no checkpoint in tests/fixtures has; those are in test_checkpoints_interpreter.py.

    Of seven roundings to float16 (2**-11) a layer, four layers and logits of some deviations,
    1 % leaves room; what is wired wrongly shows as 10 % or more.
    """
    model = make_model(name, 7)
    folder = save_model(model, tmp_path)
    ids = [(7 * i * i + 3 * i + 1) % 251 for i in range(length)]
    want = Truth(model).logits(ids)
    engine = Engine(folder, backend="interpreter", max_context=128, max_batch=2)
    error = (engine.logits(ids) - want).abs().mean()
    assert error <= 0.01 * want.std()
    (done,) = engine.generate([ids], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))
    for count, token in enumerate(done.token_ids):
        logits = Truth(model).logits(ids + done.token_ids[:count])[-1, :257]
        assert logits[token] >= logits.max() - 0.05 * want.std()


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "interpreter", "dtype": "float32"},
        {"backend": "interpreter", "device": "cuda"},
        {"backend": "cuda_triton", "device": "cpu"},
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], tiny_gguf: Path) -> None:
    with pytest.raises(ConfigError):
        Engine(tiny_gguf, **options)


def test_heads_that_no_kernel_takes_are_refused_at_load(tmp_path: Path) -> None:
    save_model(make_model("llama-wide-heads", 7), tmp_path)
    with pytest.raises(UnsupportedModelError, match="heads have 40 elements; the kernels take"):
        Engine(tmp_path, backend="interpreter", max_context=64)
