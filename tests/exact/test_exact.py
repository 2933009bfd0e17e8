"""Exact mode: the same tokens and the same logit bits, whatever else the engine is doing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from bits import Run, Work, assert_same_bits, random_work, run, short_work
from seeds import fresh_seed

from halfbyte import Engine

pytestmark = pytest.mark.exact

# How the same prompts may be run. Every one is compared with each prompt alone, in one chunk,
# without prefix cache.
WAYS: dict[str, dict[str, Any]] = {
    "batched": {},
    "small batches": {"max_batch": 3},
    "one thread": {"threads": 1},
    "chunks of 16": {"max_batch": 4, "max_batch_tokens": 16},
    "odd chunks": {"max_batch": 7, "max_batch_tokens": 23},
    "chunks of 512": {"max_batch_tokens": 512},
    # Memory that was asked for is kept for prefixes as a whole, so that all are found again.
    "warm prefix cache": {"turns": 2, "kv_tokens": 8192},
    "warm cache of small blocks": {
        "turns": 2,
        "kv_tokens": 8192,
        "block_size": 16,
        "max_batch_tokens": 40,
    },
    "no prefix cache": {"prefix_cache": False},
    "arriving one by one": {"arrivals": 2, "max_batch_tokens": 64},
    "overlap": {"overlap": True},
    "overlap, chunks, warm": {
        "overlap": True,
        "turns": 2,
        "kv_tokens": 8192,
        "max_batch_tokens": 33,
    },
    # No bound of a step's time: who is put back shall not hang on the machine's speed.
    "preempted": {
        "kv_tokens": 224,
        "block_size": 16,
        "max_context": 220,
        "max_batch_tokens": 48,
        "max_step_ms": 0,
    },
    "preempted, overlap": {
        "kv_tokens": 224,
        "block_size": 16,
        "max_context": 220,
        "overlap": True,
        "max_batch_tokens": 48,
        "max_step_ms": 0,
    },
}
# What the two ways of the slow backends' prompts have instead.
FEW: dict[str, Any] = {"kv_tokens": 96, "max_context": 64}
# Prompts of a run: all lengths of bits.LENGTHS come twice.
COUNT = 16
LONG_COUNT = 30
ALONE: dict[str, Any] = {"alone": True, "prefix_cache": False, "max_batch_tokens": 512}


@pytest.fixture(scope="module", params=["float16", "q4_0"])
def model(request: pytest.FixtureRequest, tiny_hf: Path, tiny_gguf: Path) -> Path:
    return tiny_hf if request.param == "float16" else tiny_gguf


# The scheduler does not know the weights' format. Dense ones go short here: ways that, with
# quantized weights, every run tries.
SLOW_DENSE = (
    *("small batches", "chunks of 512", "warm prefix cache", "no prefix cache"),
    *("arriving one by one", "overlap", "preempted"),
)


@pytest.fixture(scope="module", params=[COUNT, pytest.param(LONG_COUNT, marks=pytest.mark.slow)])
def truth(request: pytest.FixtureRequest, model: Path) -> tuple[Work, Run]:
    """16 prompts behind four early ones, each alone; in the long run 30 too."""
    work = random_work(fresh_seed(), request.param, vocab=600)
    return work, run(model, work, **ALONE)


def assert_way(model: Path, truth: tuple[Work, Run], way: str) -> None:
    work, want = truth
    got = run(model, work, **WAYS[way])
    assert_same_bits(got, want)
    # Each way must have met what it is named after.
    assert bool(got.preemptions) == ("preempted" in way)
    if "warm" in way:
        assert got.cached > 500
    if way == "no prefix cache":
        assert got.cached == 0


# Parametrized apart from the ways, a model keeps its scope: the answers alone are computed once.
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", ["q4_0"], indirect=True)
def test_bits_do_not_depend_on_how_prompts_are_run(
    model: Path, truth: tuple[Work, Run], way: str
) -> None:
    assert_way(model, truth, way)


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.slow] * (way in SLOW_DENSE)) for way in WAYS]
)
@pytest.mark.parametrize("model", ["float16"], indirect=True)
def test_dense_bits_do_not_depend_on_it_either(
    model: Path, truth: tuple[Work, Run], way: str
) -> None:
    assert_way(model, truth, way)


def test_bits_do_not_depend_on_the_order(model: Path, truth: tuple[Work, Run]) -> None:
    work, want = truth
    rng = random.Random(fresh_seed())
    for _ in range(3):
        order = rng.sample(range(len(work.prompts)), len(work.prompts))
        got = run(model, work, order=order, max_batch=6, arrivals=rng.randint(0, 3))
        assert_same_bits(got, want)


def test_logits_of_a_text_are_those_it_was_generated_from(
    model: Path, truth: tuple[Work, Run]
) -> None:
    """``Engine.logits`` computes in other chunks, on other memory, what serving computed."""
    work, want = truth
    for chunk in (16, 512):
        with Engine(model, exact=True, max_batch=8, max_batch_tokens=chunk) as engine:
            for prompt, tokens, rows in zip(work.prompts, want.tokens, want.logits, strict=True):
                logits = engine.logits(prompt + tokens[:-1])
                assert torch.equal(logits[len(prompt) - 1 :], rows)


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8"])
def test_every_type_of_keys_and_values_keeps_the_promise(tiny_gguf: Path, kv_dtype: str) -> None:
    """float16 is the default, which the tests above have."""
    work = random_work(fresh_seed(), 8, vocab=600)
    want = run(tiny_gguf, work, **ALONE, kv_dtype=kv_dtype)
    for way in ("odd chunks", "preempted, overlap"):
        assert_same_bits(run(tiny_gguf, work, **WAYS[way], kv_dtype=kv_dtype), want)


@pytest.mark.parametrize(
    ("backend", "way"),
    [
        ("cpu_torch", "odd chunks"),
        ("cpu_torch", "warm prefix cache"),
        ("cpu_torch", "preempted, overlap"),
        ("reference", "odd chunks"),
        # The same scheduler as above, and the same arithmetic as in odd chunks.
        pytest.param("reference", "warm prefix cache", marks=pytest.mark.slow),
        pytest.param("reference", "preempted, overlap", marks=pytest.mark.slow),
    ],
)
def test_other_backends_keep_the_promise(tiny_gguf: Path, backend: str, way: str) -> None:
    work = short_work(fresh_seed())
    want = run(tiny_gguf, work, **ALONE, backend=backend)
    options = dict(WAYS[way])
    if "preempted" in way:
        options.update(FEW)
    got = run(tiny_gguf, work, **options, backend=backend)
    assert_same_bits(got, want)
    assert bool(got.preemptions) == ("preempted" in way)


@pytest.mark.model
def test_the_default_model(smollm2: Path) -> None:
    work = random_work(fresh_seed(), 3, vocab=49_000, longest=140, tokens=6)
    want = run(smollm2, work, **ALONE)
    few: dict[str, Any] = {"kv_tokens": 192, "block_size": 16, "max_context": 170}
    assert_same_bits(run(smollm2, work, **few, max_batch_tokens=33, overlap=True), want)


@pytest.mark.slow
@pytest.mark.model
def test_two_hundred_prompts(smollm2: Path) -> None:
    work = random_work(fresh_seed(), 200, vocab=49_000, longest=300, tokens=32)
    want = run(smollm2, work, **ALONE)
    for way, options in WAYS.items():
        if "preempted" in way:
            options = {**options, "kv_tokens": 512, "max_context": 400}
        print(way)
        assert_same_bits(run(smollm2, work, **options), want)
