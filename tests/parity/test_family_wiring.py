"""Families whose layers are wired in ways of their own, through all that a model goes through.

``test_families.py`` and ``test_gguf_logits.py`` compare dense ones with transformers. Here: the
Triton kernels, bits that do not depend on chunks or cached prefixes, and quantized files of ours.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from seeds import fresh_seed
from test_families import greedy
from tiny_models import Truth, make_model, save_model
from torch import Tensor

from halfbyte import Engine, SamplingParams
from halfbyte.cli.main import app

NAMES = [
    *("ministral3", "olmo2", "olmo3", "granite", "glm4", "glm", "seed_oss", "exaone4", "cohere2"),
    "ernie4_5",
]
# 8-bit codes are off by 1/254 of the largest of a group or row: some 0.5 % in every product. What
# is wired wrongly shows as 10 % and more.
EIGHT = 0.05


def prompt_of(length: int) -> list[int]:
    return [random.randrange(256) for _ in range(length)]


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize(
    ("name", "length"),
    [
        # Norms over all heads; rotated pairs side by side and the residual's mean taken away.
        ("olmo2", 18),
        ("cohere2", 18),
        *(
            pytest.param(name, 40, marks=pytest.mark.slow)
            for name in NAMES
            if name not in ("olmo2", "cohere2")
        ),
    ],
)
def test_the_triton_kernels(name: str, length: int, tmp_path: Path) -> None:
    """As in test_interpreter.py: 1 % of a deviation leaves room for roundings to float16."""
    model = make_model(name, 7)
    folder = save_model(model, tmp_path)
    ids = [(7 * i * i + 3 * i + 1) % 251 for i in range(length)]
    want = Truth(model).logits(ids)
    with Engine(folder, backend="interpreter", max_context=64, max_batch=2) as engine:
        error = (engine.logits(ids) - want).abs().mean()
        assert error <= 0.01 * want.std()
        params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
        (done,) = engine.generate([ids], params)
    logits = Truth(model).logits(ids + done.token_ids[:1])[-2:, :257]
    for token, row in zip(done.token_ids, logits, strict=True):
        assert row[token] >= row.max() - 0.05 * want.std()


@pytest.mark.parametrize("name", NAMES)
def test_bits_do_not_depend_on_chunks_or_cached_prefixes(name: str, tmp_path: Path) -> None:
    folder = save_model(make_model(name, fresh_seed()), tmp_path)
    stem = prompt_of(70)
    prompts = [stem, stem[:50] + prompt_of(20), prompt_of(3)]
    more: dict[str, Any] = {"exact": True, "block_size": 16, "kv_tokens": 2048}
    with (
        Engine(folder, max_batch_tokens=7, max_batch=1, prefix_cache=False, **more) as narrow,
        Engine(folder, max_batch_tokens=256, max_batch=8, **more) as wide,
    ):
        for prompt in prompts:
            assert torch.equal(narrow.logits(prompt), wide.logits(prompt))
        want = greedy(narrow, prompts)
        params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=3)
        # The second time from the cache.
        first, again = (wide.generate(prompts, params) for _ in range(2))
        for done in (first, again):
            assert [tuple(d.token_ids) for d in done] == want
        assert again[0].usage.cached_tokens >= 64 and again[1].usage.cached_tokens >= 48
        assert [d.logprobs for d in first] == [d.logprobs for d in again]


@pytest.mark.parametrize("form", ["compressed-tensors", "gguf:q8_0"])
@pytest.mark.parametrize("name", NAMES)
def test_quantized_by_us(
    name: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written, opened by ``inspect`` and ``plan``, and run, close to transformers' dense model."""
    model = make_model(name, fresh_seed())
    folder, out = save_model(model, tmp_path / "dense"), tmp_path / "made"
    bits = [] if form.startswith("gguf") else ["--bits", "8"]
    out = out.with_suffix(".gguf") if form.startswith("gguf") else out
    command = ["quantize", str(folder), str(out), "--method", "rtn", "--format", form, *bits]
    assert not app(command, standalone_mode=False)
    capsys.readouterr()
    assert not app(["inspect", str(out), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)
    assert not app(["plan", str(out), "--gpu", "H100", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["fits"]
    ids = prompt_of(100)
    want = Truth(model).logits(ids)
    with Engine(out, activations="float") as engine:
        error = relative(engine.logits(ids), want)
    assert 0 < error <= EIGHT
