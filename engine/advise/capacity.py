"""What a model needs on a device and how fast it could decode: arithmetic on headers alone.

The formulas are explained in docs/performance.md. Weights are counted as the backend packs them:
the Triton kernels' layouts, with a dense 16-bit embedding, or the C kernels' tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch

from halfbyte.errors import ConfigError

from ...kernels.cpu import kinds as tiles
from ...kernels.device.choice import FLOAT8_ARCH
from ...kernels.device.workspace import PARTIAL_BYTES
from ...kernels.formats.weight_format import InputRule
from ...kernels.kind import carrier
from ...loaders.base import Checkpoint
from ...loaders.model.config import ModelConfig
from ..models.decoder import block_states, layer_blocks
from ..run.memory import KV_SHARE
from .products import Product, embedding, matrices

PlannedKV = Literal["float16", "bfloat16", "int8", "float8_e4m3fn", "float32"]
PlanTarget = Literal["triton", "cpu"]
# The first is what an engine takes by itself. The Triton kernels do not keep float32.
PLANNED_KV: dict[PlanTarget, tuple[PlannedKV, ...]] = {
    "triton": ("bfloat16", "float16", "int8", "float8_e4m3fn"),
    "cpu": ("float16", "bfloat16", "int8", "float32"),
}

MAX_BATCH = 4096
MAX_STEP_TOKENS = 1024
BLOCK_TOKENS = 64
GPU_RESERVE = 1 << 30
CPU_RESERVE = 1 << 29
_SCRATCH = 96 << 20
_HALF, _FLOAT = 2, 4
# Copies of a row's logits: the step's and the recorded graph's in 16 bits, three in float32.
_LOGIT_BYTES = 2 * _HALF + 3 * _FLOAT


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of a device.

    Attributes:
        name: for people.
        total: bytes that are there, or free.
        reserve: bytes kept for the driver, the program and fragments.
        bandwidth: bytes read per second.
        arch: compute capability of a GPU such as 90, which decides the kinds of its weights.
    """

    name: str
    total: int
    reserve: int
    bandwidth: float
    arch: int = 0


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a model needs, apart from how much memory there is.

    Attributes:
        weights: all weights, packed.
        read: weights that one decode step of one row reads: of a mixture, those of as many experts
            as a token goes through.
        by_family: kernel family or kind -> bytes of its weights.
        kv_token: keys and values of one token over all layers.
        kv_windows: for each layer, its bytes a token and the tokens it attends to at most.
        fixed: workspace and activations, whatever the batch.
        row: logits of one row.
        state: what is kept of one row's text beside keys and values; a decode step reads and
            writes it.
    """

    weights: int
    read: int
    by_family: dict[str, int]
    kv_token: int
    kv_windows: tuple[tuple[int, int], ...]
    fixed: int
    row: int
    state: int = 0

    def kv_held(self, context: int) -> int:
        """Bytes of the blocks of one row of ``context`` tokens."""
        return -(-context // BLOCK_TOKENS) * BLOCK_TOKENS * self.kv_token

    def kv_read(self, context: int) -> int:
        """Bytes of keys and values that one row's decode step reads, windows honoured."""
        return sum(size * min(context, window or context) for size, window in self.kv_windows)

    def total(self, context: int, batch: int) -> int:
        """Bytes of everything."""
        return self.weights + self.fixed + batch * (self.row + self.state + self.kv_held(context))


@dataclass(frozen=True, slots=True)
class Capacity:
    """Whether a model fits a device, and its limits there.

    Attributes:
        need: its parts.
        memory: the device's.
        context: tokens of each row, as asked.
        batch: rows, as asked.
        total: bytes needed.
        fits: whether they are there.
        max_context: the longest context at that batch, 0 when none fits.
        max_batch: the largest batch at that context, 0 when none fits.
        decode: (batch, tokens per second at most with full contexts, and with empty ones).
    """

    need: Need
    memory: DeviceMemory
    context: int
    batch: int
    total: int
    fits: bool
    max_context: int
    max_batch: int
    decode: tuple[tuple[int, float, float], ...]

    @property
    def kv_tokens(self) -> int:
        """The engine option that this needs, 0 when the engine's own choice holds enough."""
        wanted = self.batch * self.need.kv_held(self.context)
        if not self.fits or wanted <= KV_SHARE * self.memory.total:
            return 0
        return wanted // self.need.kv_token


def capacity(
    checkpoint: Checkpoint,
    memory: DeviceMemory,
    context: int,
    batch: int,
    kv: PlannedKV,
    target: PlanTarget,
) -> Capacity:
    """Plan ``batch`` rows of ``context`` tokens (0 = the model's own length).

    Raises:
        ConfigError: context or batch is out of its range, or the target has no such KV type.
    """
    longest = checkpoint.config.max_position
    if not 0 <= context <= longest:
        raise ConfigError(
            f"context is {context}, but the model was made for {longest} tokens",
            hint=f"use 1 to {longest}, or 0 for the model's own length",
        )
    if not 1 <= batch <= MAX_BATCH:
        raise ConfigError(f"batch is {batch}; expected 1 to {MAX_BATCH}")
    if kv not in PLANNED_KV[target]:
        where = "a CPU" if target == "cpu" else "a GPU"
        raise ConfigError(
            f"kv_dtype is {kv!r:.60}; on {where} it is one of {', '.join(PLANNED_KV[target])}",
            hint="leave it out for the default",
        )
    if kv == "float8_e4m3fn" and memory.arch < FLOAT8_ARCH:
        raise ConfigError(
            f"kv_dtype is {kv!r}, which needs sm_{FLOAT8_ARCH}; the GPU is sm_{memory.arch}",
            hint="use int8, which takes the same memory",
        )
    context = context or longest
    need = measure(checkpoint, kv, target, memory.arch)
    left = memory.total - memory.reserve - need.weights - need.fixed
    blocks = (left // batch - need.row - need.state) // (BLOCK_TOKENS * need.kv_token)
    total = need.total(context, batch) + memory.reserve
    rates = tuple(
        (rows, _rate(need, memory, rows, context), _rate(need, memory, rows, 0))
        for rows in dict.fromkeys((1, batch))
    )
    return Capacity(
        need,
        memory,
        context,
        batch,
        total,
        total <= memory.total,
        min(max(blocks, 0) * BLOCK_TOKENS, longest),
        min(max(left // (need.row + need.state + need.kv_held(context)), 0), MAX_BATCH),
        rates,
    )


def measure(
    checkpoint: Checkpoint,
    kv: PlannedKV,
    target: PlanTarget,
    arch: int = 0,
    rule: InputRule = "float",
) -> Need:
    """The bytes that a model needs on a target, a GPU of ``sm_<arch>`` if it is one.

    ``rule`` is how a run takes the inputs of weight-only quantized matrices.
    Raises UnsupportedWeightError for a weight that no kernel runs.
    """
    config = checkpoint.config
    families: dict[str, int] = {}
    idle = 0.0
    find = cache(partial(packed, target=target, arch=arch))
    for matrix in matrices(checkpoint, rule):
        tied = matrix.product.module == "lm_head" and config.tie_word_embeddings
        kind, size = find(matrix.product)
        kind = "embedding and head" if tied else kind
        families[kind] = families.get(kind, 0) + size
        if matrix.expert and config.experts is not None:
            idle += size * (1 - config.experts.per_token / config.experts.count)
    infos = checkpoint.tensors()
    vectors = sum(_FLOAT * math.prod(i.shape) for i in infos if len(i.shape) != 2)
    families["norms and biases"] = vectors
    read = sum(families.values()) - round(idle)
    if not config.tie_word_embeddings:
        _, families["embedding"] = find(embedding(checkpoint).product)
    windows = tuple((_kv_bytes(config, i, kv), config.window(i)) for i in range(config.num_layers))
    state = sum(spec.sequence_bytes for spec in block_states(config))
    return Need(
        sum(families.values()),
        read,
        families,
        sum(size for size, _ in windows),
        windows,
        _workspace(config, target),
        config.vocab_size * (_LOGIT_BYTES if target == "triton" else 4 * _FLOAT),
        state,
    )


def packed(linear: Product, target: PlanTarget, arch: int = 0) -> tuple[str, int]:
    """The kind that carries a matrix [N, K] on a target, and its bytes, the bias apart."""
    if target == "cpu":
        kind = carrier(tiles.TILE_KINDS, linear.spec, 0).kind
        return kind.held, kind.packed_bytes(linear.spec)
    found = linear.carrier(arch)
    return found.kind.name, found.kind.packed_bytes(found.spec)


def _rate(need: Need, memory: DeviceMemory, rows: int, context: int) -> float:
    """Tokens per second when a step takes no longer than reading its bytes."""
    return rows * memory.bandwidth / (need.read + rows * (need.kv_read(context) + 2 * need.state))


def _kv_bytes(config: ModelConfig, layer: int, kv: PlannedKV) -> int:
    """Bytes that one layer keeps of a token, as the engine lays its cache out."""
    dtype: torch.dtype = getattr(torch, kv)
    return sum(kind.state(config).token_bytes(dtype) for kind in layer_blocks(config, layer))


def _workspace(config: ModelConfig, target: PlanTarget) -> int:
    """Kernels' workspace, and the activations of a step of ``MAX_STEP_TOKENS`` tokens."""
    heads = config.num_heads + 2 * config.num_kv_heads + config.num_heads
    widths = 3 * config.hidden_size + heads * config.head_dim + 3 * config.intermediate_size
    if target == "cpu":
        return MAX_STEP_TOKENS * widths * _FLOAT
    return MAX_STEP_TOKENS * widths * _HALF + PARTIAL_BYTES + _SCRATCH
