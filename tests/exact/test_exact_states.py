"""Exact mode on models that keep a state once per sequence: the same bits whatever else goes on."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bits import Run, Work, assert_same_bits, random_work, run
from seeds import fresh_seed
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

from halfbyte import Engine, SamplingParams
from halfbyte.engine.advise.capacity import measure
from halfbyte.errors import UnsupportedModelError
from halfbyte.loaders import open_checkpoint

pytestmark = pytest.mark.exact

ALONE: dict[str, Any] = {"alone": True, "prefix_cache": False, "max_batch_tokens": 512}
SMALL: dict[str, Any] = {"kv_tokens": 8192, "block_size": 16}
# As in test_exact.py: every way is compared with each prompt alone, in one chunk.
WAYS: dict[str, dict[str, Any]] = {
    "batched": {},
    "odd chunks": {"max_batch": 7, "max_batch_tokens": 23},
    "one thread": {"threads": 1},
    "warm": {"turns": 2, **SMALL, "max_batch_tokens": 40},
    "warm, few snapshots": {"turns": 2, **SMALL, "max_batch": 2, "snapshot_mib": 1},
    "without snapshots": {"turns": 2, **SMALL, "snapshot_mib": 0},
    "overlap, warm": {"overlap": True, "turns": 2, **SMALL, "max_batch_tokens": 33},
    "arriving one by one": {"arrivals": 2, "max_batch_tokens": 64},
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


@pytest.fixture(scope="module")
def model(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers with states of some 30 KB together, one with attention."""
    config = Qwen3_5TextConfig(
        vocab_size=600,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=32,
        linear_value_head_dim=24,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        max_position_embeddings=512,
        eos_token_id=2,
    )
    torch.manual_seed(fresh_seed())
    network = Qwen3_5ForCausalLM(config).eval()
    with torch.no_grad():
        for value in network.parameters():
            if value.dim() > 1:
                value.copy_(torch.randn(value.shape) * value[0].numel() ** -0.5)
    folder = tmp_path_factory.mktemp("states")
    network.save_pretrained(folder)
    shutil.copy(tiny_hf / "tokenizer.json", folder)
    return folder


@pytest.fixture(scope="module")
def truth(model: Path) -> tuple[Work, Run]:
    work = random_work(fresh_seed(), 16, vocab=600)
    return work, run(model, work, **ALONE)


@pytest.mark.parametrize("way", WAYS)
def test_bits_of_texts_with_states(model: Path, truth: tuple[Work, Run], way: str) -> None:
    work, want = truth
    got = run(model, work, **WAYS[way])
    assert_same_bits(got, want)
    # Each way must have met what it is named after.
    assert bool(got.preemptions) == ("preempted" in way)
    if "warm" in way:
        assert got.cached > (100 if "few" in way else 500)
    if "without" in way:
        assert got.cached == 0


@pytest.mark.parametrize("backend", ["cpu_torch", "reference"])
def test_plain_backends_keep_the_bits_of_states(model: Path, backend: str) -> None:
    # The first four have 41 to 48 tokens.
    work = random_work(fresh_seed(), 8, vocab=600, tokens=3).part(4)
    options: dict[str, Any] = {"backend": backend, **SMALL}
    want = run(model, work, alone=True, prefix_cache=False, backend=backend)
    got = run(model, work, turns=2, max_batch=3, max_batch_tokens=50, **options)
    assert_same_bits(got, want)
    assert got.cached == 4 * 32


def test_choices_and_beams_do_not_depend_on_snapshots(model: Path) -> None:
    rng = random.Random(fresh_seed())
    prompts = [[rng.randrange(3, 600) for _ in range(n)] for n in (40, 5, 33)]
    params = SamplingParams(
        n=3, temperature=1.0, seed=rng.getrandbits(60), max_tokens=20, ignore_eos=True
    )
    found: list[Any] = []
    for mib in (None, 0):
        with Engine(model, exact=True, max_batch=4, snapshot_mib=mib, **SMALL) as engine:
            answers = engine.generate(prompts, params)
            beams = engine.beam_search(prompts[0], width=3, max_tokens=12)
            pool = engine._loop.scheduler.snapshots
            assert pool is not None and bool(pool.held) == (mib is None)
            engine._loop.scheduler.check()
        texts = [[choice.token_ids for choice in answer.choices] for answer in answers]
        assert all(len(text) == 3 for text in texts)
        found.append((texts, [(beam.token_ids, beam.logprob) for beam in beams]))
    assert found[0] == found[1]


def test_a_row_that_a_cancelled_text_leaves_begins_anew(model: Path) -> None:
    rng = random.Random(fresh_seed())
    prompts = [[rng.randrange(3, 600) for _ in range(30)] for _ in range(2)]
    params = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
    with Engine(model, exact=True, max_batch=1) as engine:
        want = engine.generate(prompts[1:], params)[0]
    with Engine(model, exact=True, max_batch=1) as engine:
        name = engine.submit(prompts[0], params)
        for _ in range(rng.randint(1, 6)):
            engine.step()
        engine.cancel(name)
        while engine.has_work():
            engine.step()
        assert engine.generate(prompts[1:], params)[0].token_ids == want.token_ids


def test_a_backend_without_kernels_says_what_is_missing(model: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"qwen3_5: backend 'interp.*gated_delta"):
        Engine(model, backend="interpreter")


def test_plans_count_the_states(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    with Engine(model, max_batch=5, snapshot_mib=1, **SMALL) as engine:
        kv = engine._loop.runner.kv
        held = [kept for state in kv.states for kept in state.sequences]
        one = sum(kept[0].nbytes for kept in held)
        memory, slots = engine.memory, 5 + (1 << 20) // one
        assert {len(kept) for kept in held} == {slots}
        assert (memory.state_bytes, memory.snapshots) == (one, slots - 5)
        tokens = memory.blocks * memory.block_size * memory.bytes_per_token
        assert memory.kv_bytes == tokens + slots * one
    need = measure(checkpoint, "float32", "cpu")
    assert need.state == one
    assert need.total(64, 3) - need.total(64, 2) == need.row + one + need.kv_held(64)
    # Matrices, and all else in float32, of what the file holds in float32.
    sizes = {info.name: info.nbytes for info in checkpoint.tensors()}
    assert need.weights >= sum(sizes.values())
    checkpoint.close()
