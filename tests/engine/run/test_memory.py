"""The memory plan: arithmetic, wishes honoured or refused with both numbers."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from halfbyte.engine.config import EngineConfig
from halfbyte.engine.models.decoder import block_states
from halfbyte.engine.run import memory
from halfbyte.engine.run.kv_cache import KVCache, LayerKV, StateSpec
from halfbyte.engine.run.memory import KV_SHARE, free_memory, plan_memory, prefix_blocks
from halfbyte.errors import ConfigError
from halfbyte.loaders.model.config import ModelConfig

MODEL = ModelConfig("llama", 100, 64, 3, 4, 2, 16, 128, 1e-5, 2048)
# 2 sides * 3 layers * 2 heads * 16 elements * 4 bytes.
PER_TOKEN = 768
PLENTY = 1 << 34


def plan(free: int = PLENTY, **options: Any) -> Any:
    return plan_memory(MODEL, EngineConfig(**options), torch.float32, free)


def test_bytes_of_a_token() -> None:
    assert sum(spec.token_bytes(torch.float32) for spec in block_states(MODEL)) == PER_TOKEN
    assert sum(spec.token_bytes(torch.bfloat16) for spec in block_states(MODEL)) == PER_TOKEN // 2


def test_default_holds_every_context_of_a_batch() -> None:
    got = plan(max_batch=4)
    assert (got.max_context, got.block_size) == (2048, 64)
    assert got.blocks == 4 * 2048 // 64 and got.kv_bytes == 4 * 2048 * PER_TOKEN
    assert got.bytes_per_token == PER_TOKEN and got.free_bytes == PLENTY


def test_default_shrinks_to_a_share_of_the_free_memory() -> None:
    free = 1000 * 64 * PER_TOKEN
    got = plan(free, max_batch=256)
    assert got.blocks == int(1000 * KV_SHARE) and got.max_context == 2048
    small = plan(20 * 64 * PER_TOKEN)
    assert small.blocks == 10 and small.max_context == 640, "the context shrinks with the cache"


def test_kv_tokens_are_rounded_up_to_blocks() -> None:
    got = plan(kv_tokens=100, block_size=32)
    assert got.blocks == 4 and got.max_context == 128


def test_max_context_as_asked() -> None:
    got = plan(max_context=100, max_batch=3)
    assert got.max_context == 100 and got.blocks == 3 * 2
    assert plan(max_context=2048).max_context == 2048


def test_a_context_beyond_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_context is 2049.* 2048"):
        plan(max_context=2049)


def test_kv_tokens_beyond_memory_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tokens needs \d+ MiB, but 1 MiB are free") as caught:
        plan(1 << 20, kv_tokens=1 << 20)
    assert "kv_tokens" in caught.value.hint


def test_max_context_beyond_the_cache_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_context is 2000, but the KV cache holds 1024"):
        plan(kv_tokens=1024, max_context=2000)
    with pytest.raises(ConfigError, match="max_context is 2000"):
        plan(20 * 64 * PER_TOKEN, max_context=2000)


@pytest.mark.parametrize("free", [0, 1, 64 * PER_TOKEN - 1])
def test_no_memory_at_all_is_refused(free: int) -> None:
    with pytest.raises(ConfigError, match="MiB are free"):
        plan(free)


def test_random_plans_keep_their_promises() -> None:
    seed = random.randrange(1 << 40)
    print("seed", seed)
    rng = random.Random(seed)
    made = 0
    for _ in range(2000):
        free = rng.randrange(1 << rng.randint(10, 33))
        options: dict[str, Any] = {
            "max_batch": rng.randint(1, 64),
            "block_size": rng.choice([16, 32, 64, 128]),
            "max_context": rng.choice([0, rng.randint(1, 2100)]),
            "kv_tokens": rng.choice([0, rng.randint(1, 100_000)]),
        }
        try:
            got = plan(free, **options)
        except ConfigError as error:
            assert "max_context" in str(error) or "kv_tokens" in str(error)
            continue
        made += 1
        assert got.kv_bytes == got.blocks * got.block_size * PER_TOKEN <= free
        assert 1 <= got.max_context <= min(2048, got.blocks * got.block_size)
        assert options["max_context"] in (0, got.max_context)
        if options["kv_tokens"]:
            assert 0 <= got.blocks * got.block_size - options["kv_tokens"] < got.block_size
        else:
            assert got.kv_bytes <= free * KV_SHARE
    assert made > 200


def test_free_memory_is_that_of_the_machine() -> None:
    free = free_memory()
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert 1 << 20 < free <= total


def test_cache_memory_is_laid_out_block_by_block() -> None:
    kv = KVCache(block_states(MODEL), 5, 16, torch.float32)
    layers = [LayerKV(*state.tokens) for state in kv.states if state.tokens]
    assert len(layers) == 3
    for layer in layers:
        assert layer.k.shape == layer.v.shape == (5, 2, 16, 16)
        # All layers of one block are neighbours; a head's tokens lie together.
        assert layer.k.stride() == layer.v.stride() == (3 * 2 * 2 * 16 * 16, 256, 16, 1)
    for index, side in enumerate(t for layer in layers for t in (layer.k, layer.v)):
        side.fill_(index)
    for index, side in enumerate(t for layer in layers for t in (layer.k, layer.v)):
        assert (side == index).all(), "two tensors overlap"


def test_the_first_blocks_can_be_touched_at_once() -> None:
    kv = KVCache(block_states(MODEL), 5, 16, torch.float32)
    sides = [side for state in kv.states for side in state.tokens]
    for side in sides:
        side.fill_(1)
    kv.touch(2)
    assert all((side[:2] == 0).all() and (side[2:] == 1).all() for side in sides)


def test_what_a_block_keeps_for_a_whole_text_is_planned_and_laid_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks of another kind: keys and values of unlike shapes, and a state without tokens."""
    odd = StateSpec(per_token=((2, 16), (1, 8)), per_sequence=((3, 5), (7,)))
    specs = [*block_states(MODEL), odd]
    monkeypatch.setattr(memory, "block_states", lambda model: specs)
    state = (3 * 5 + 7) * 4
    got = plan(max_batch=4, max_context=64)
    assert (got.state_bytes, got.snapshots) == (state, 2 * 4)
    assert plan(max_batch=4, max_context=64, prefix_cache=False).snapshots == 0
    assert plan(max_batch=4, max_context=64, snapshot_mib=1).snapshots == (1 << 20) // state
    got = plan(max_batch=4, max_context=64, snapshot_mib=0)
    fixed, per_token = 4 * state, PER_TOKEN + (2 * 16 + 8) * 4
    assert got.bytes_per_token == per_token
    assert got.kv_bytes == got.blocks * got.block_size * per_token + fixed
    tight = dict(max_batch=4, kv_tokens=64, max_context=64, snapshot_mib=0)
    assert plan(64 * per_token + fixed, **tight).blocks == 1
    with pytest.raises(ConfigError, match=f"4 states of {state} bytes.*are free"):
        plan(64 * per_token + fixed - 1, **tight)
    kv = KVCache(specs, 5, 16, torch.float32, slots=4)
    assert [t.shape for t in kv.states[-1].tokens] == [(5, 2, 16, 16), (5, 1, 16, 8)]
    assert [t.shape for t in kv.states[-1].sequences] == [(4, 3, 5), (4, 7)]
    assert kv.last_tokens() is kv.states[-1].tokens
    every = [t for state in kv.states for t in (*state.tokens, *state.sequences)]
    for index, kept in enumerate(every):
        kept.fill_(index)
    for index, kept in enumerate(every):
        assert (kept == index).all(), "two tensors overlap"


def test_prefixes_have_a_part_of_a_cache_that_nobody_asked_for() -> None:
    """A 32nd, but at least one whole context; all of what was asked for, and on a GPU."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    large = plan(1 << 40, max_batch=64, block_size=16)
    assert prefix_blocks(large, EngineConfig(), cpu) == large.blocks // 32 == 256
    few = plan(1 << 40, max_batch=2, block_size=16)
    assert prefix_blocks(few, EngineConfig(), cpu) == few.blocks // 2 == 128
    assert prefix_blocks(large, EngineConfig(), gpu) == large.blocks
    asked = EngineConfig(kv_tokens=5000)
    assert prefix_blocks(large, asked, cpu) == large.blocks
