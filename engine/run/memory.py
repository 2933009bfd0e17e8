"""How much KV memory to take: arithmetic from the model's shape against the free memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from halfbyte.errors import ConfigError

from ...loaders.model.config import ModelConfig
from ..config import EngineConfig
from ..models.decoder import block_states

KV_SHARE = 0.5
# Of a cache that was sized by the free memory, prefixes may take this part beside what is in use.
CACHE_SHARE = 1 / 32
# Of the memory for a cache, snapshots of states have at most this part, unless it is said.
SNAPSHOT_SHARE = 1 / 8


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What the engine will hold.

    Attributes:
        max_context: tokens of one request, prompt plus answer.
        blocks: KV blocks.
        block_size: tokens in a block.
        kv_bytes: bytes of the whole cache when full.
        bytes_per_token: KV bytes of one token.
        kv_dtype: type of the cache, such as ``float16``.
        free_bytes: memory the system said was available.
        state_bytes: bytes of one sequence beside its tokens; every row and snapshot has them.
        snapshots: states that are put aside for the prefix cache.
    """

    max_context: int
    blocks: int
    block_size: int
    kv_bytes: int
    bytes_per_token: int
    kv_dtype: str
    free_bytes: int
    state_bytes: int = 0
    snapshots: int = 0


def plan_memory(
    model: ModelConfig,
    config: EngineConfig,
    kv_dtype: torch.dtype,
    free_bytes: int,
    *,
    share: float = KV_SHARE,
) -> MemoryPlan:
    """Size the KV cache.

    By default it holds ``max_batch`` full contexts, or what fits into a ``share`` of the free
    memory if that is less; the context shrinks to the cache when not even one fits. A
    ``kv_tokens`` or ``max_context`` that the user asked for is honoured or refused, never changed.

    Raises:
        ConfigError: the wish does not fit; the message has both numbers.
    """
    size = config.block_size
    specs = block_states(model)
    per_token = sum(spec.token_bytes(kv_dtype) for spec in specs)
    if config.max_context > model.max_position:
        raise ConfigError(
            f"max_context is {config.max_context}, but the model was made for "
            f"{model.max_position} tokens",
            hint=f"use at most {model.max_position}, or 0 for the model's own length",
        )
    context = config.max_context or model.max_position
    state = sum(spec.sequence_bytes for spec in specs)
    snapshots = _snapshots(config, state, int(free_bytes * share))
    fixed = (config.max_batch + snapshots) * state
    affordable = (int(free_bytes * share) - fixed) // (per_token * size)
    if config.kv_tokens:
        blocks = -(-config.kv_tokens // size)
    else:
        blocks = min(-(-context // size) * config.max_batch, affordable)
    needed = fixed + max(blocks, 1) * size * per_token
    if needed > free_bytes or blocks < 1:
        held = f"a KV cache of {max(blocks, 1) * size} tokens"
        hint = "lower kv_tokens or max_context, or free memory"
        if state:
            held += f" beside {config.max_batch + snapshots} states of {state} bytes"
            hint = f"lower max_batch, snapshot_mib, {hint.removeprefix('lower ')}"
        raise ConfigError(
            f"{held} needs {needed >> 20} MiB, but {free_bytes >> 20} MiB are free", hint=hint
        )
    if config.max_context and blocks * size < config.max_context:
        raise ConfigError(
            f"max_context is {config.max_context}, but the KV cache holds {blocks * size} tokens",
            hint="lower max_context, raise kv_tokens, or free memory",
        )
    name = str(kv_dtype).removeprefix("torch.")
    limit = min(context, blocks * size)
    sizes = limit, blocks, size, needed, per_token
    return MemoryPlan(*sizes, name, free_bytes, state, snapshots)


def _snapshots(config: EngineConfig, state: int, room: int) -> int:
    """How many states of so many bytes are put aside for the prefix cache."""
    if not state or not config.prefix_cache:
        return 0
    if config.snapshot_mib is not None:
        return (config.snapshot_mib << 20) // state
    return min(2 * config.max_batch, int(room * SNAPSHOT_SHARE) // state)


def prefix_blocks(plan: MemoryPlan, config: EngineConfig, device: torch.device) -> int:
    """KV blocks that may be touched for the sake of the prefix cache alone.

    All of them on a GPU, whose cache is allocated at once, and where ``kv_tokens`` says how many
    there are. A CPU's is given out by the system block by block: prefixes have a 32nd of the
    cache, and at least one whole context, so that a busy server's memory has its size within its
    first minute; the rest is touched when requests need it at once.
    """
    if config.kv_tokens or device.type != "cpu":
        return plan.blocks
    context = -(-plan.max_context // plan.block_size)
    return max(context, int(plan.blocks * CACHE_SHARE))


def free_memory(device: torch.device | None = None) -> int:
    """Bytes free on a CUDA device, else those that the system can give without swapping."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            free = min(free, max(int(limit) - used, 0))
    except (OSError, ValueError, IndexError):
        pass
    return free
