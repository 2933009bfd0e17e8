"""Tile and split choices of attention: pure functions of shapes and the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..formats.activations import KV_RULES

PAGES = (16, 32, 64, 128)
"""Tokens in a KV block that the kernels take; one block is one tile."""

DIMS = (64, 80, 96, 128, 256)
"""Head dimensions that the kernels are compiled and tested for."""

EXACT_CHUNK = 256
"""Tokens of a split in exact mode."""

LEAST_KEY_CHUNK = 128
"""Fewest tokens that are worth a split of their own.

A page takes a warp longer than memory (1 us), so that a row of 1024 tokens should be in many hands,
and the last to arrive joins 8 splits in one round.
"""

JOIN_TOGETHER = 8
"""Splits whose results are loaded before the first is added; part of the meaning of exact bits."""

WAVES = 2
"""Programs per multiprocessor that the split count aims at."""


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """How one attention kernel is launched.

    Attributes:
        rows: query rows of a tile.
        num_warps: warps of a program.
        num_stages: pipeline stages.
        registers: limit above the assembler's own aim, or 0.
        apart: a page's product with the values is summed up from zero, and then added. It takes
            more registers, but on Hopper the assembler makes every product wait for the one
            before where other instructions make the sums that it starts from.
    """

    rows: int
    num_warps: int
    num_stages: int
    registers: int = 0
    apart: bool = False

    @property
    def launch(self) -> dict[str, Any]:
        """Launch options."""
        options: dict[str, Any] = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return options | {"maxnreg": self.registers} if self.registers else options


def fits(dim: int) -> bool:
    """Whether the kernels take a head dimension: multiples of 16 up to the largest of DIMS."""
    return 0 < dim <= max(DIMS) and dim % 16 == 0


def next_power_of_2(n: int) -> int:
    """Smallest power of two >= ``n``; 1 for 0."""
    return 1 << max(0, n - 1).bit_length()


def largest_code(dtype: torch.dtype) -> int:
    """The largest code of a cache of codes of ``dtype``, 0 for one of floats."""
    rule = KV_RULES.get(dtype)
    return 0 if rule is None else int(rule.top)


def tile_width(dim: int) -> int:
    """Columns of a tile for a head dimension: a power of two, 16 pairs of codes or more."""
    return max(32, next_power_of_2(dim))


def length_bucket(max_length: int) -> int:
    """A step's longest row rounded up (power of two, at least 256), so that few shapes exist."""
    return max(256, next_power_of_2(max_length))


def split_count(multiprocessors: int, pairs: int, max_length: int, exact: bool) -> int:
    """Splits of every row: programs of the second grid dimension.

    Args:
        multiprocessors: of the device.
        pairs: tokens * KV heads of the step.
        max_length: upper bound of the rows' lengths in tokens (a bucket, not a live length).
        exact: one split per EXACT_CHUNK tokens, so that results do not depend on ``pairs``.
    """
    if exact:
        return max(1, -(-max_length // EXACT_CHUNK))
    wanted = -(-WAVES * multiprocessors // max(1, pairs))
    return max(1, min(wanted, -(-max_length // LEAST_KEY_CHUNK)))


def shared_memory(arch: int) -> int:
    """Bytes of shared memory that one program can use on a compute capability."""
    return {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227}.get(
        arch, 99
    ) * 1024


def decode_tile(arch: int, group: int, page: int, width: int, itemsize: int) -> AttentionTile:
    """Launch shape of decode.

    Args:
        arch: compute capability, e.g. 90; 0 for the interpreter.
        group: query heads per KV head.
        page: tokens of a block.
        width: head dimension, padded to a power of two.
        itemsize: bytes of a cache element.

    Few warps: each then holds more of a page, so that less passes between warps (measured ahead
    of time: 12.6 instructions per token with 2 warps, 17 with 4, at 64 tokens of 128 dimensions).
    """
    rows = max(16, next_power_of_2(group))
    tile = page * width * max(1, rows // 16)
    num_warps = 4 if tile >= 128 * 128 else 2 if page > 32 or rows > 16 else 1
    stages = _stages(arch, page * width * itemsize * 2, 4 if page == 16 else 3)
    registers = 0
    if arch and width >= 128 and (num_warps < 4 or shared_memory(arch) < 128 * 1024):
        # The assembler aims at 168, and for it orders loads worse, or spills (sm_86, sm_120);
        # shared memory allows no more programs than these either way.
        registers = 255
    elif arch == 80 and width > 128:
        # The assembler aims at 128 and spills; shared memory allows two programs either way.
        registers = 160
    return AttentionTile(rows, num_warps, stages, registers)


def prefill_tile(arch: int, group: int, page: int, width: int, itemsize: int) -> AttentionTile:
    """Launch shape of prefill; arguments as for ``decode_tile``.

    128 rows and 8 warps, so that every warp owns whole rows in both products; where the head is
    too wide for that (256) or the page too long, and registers run short, fewer. Of an int8 cache
    the products are half as wide, and warps without rows of their own would repeat each other's.
    """
    memory = shared_memory(arch)
    roomy = memory > 200 * 1024
    rows, num_warps = 128, 8
    if width > 128 and not roomy:
        rows, num_warps = (64, 8) if memory > 128 * 1024 else (32, 8 if arch == 120 else 4)
    elif arch == 0:
        rows, num_warps = (32 if page > 64 else 64), 4
    elif page > 64 and not roomy:
        rows, num_warps = (32, 4) if itemsize == 1 else (64, 8)
    stages = _stages(arch, page * width * itemsize * 2, 3)
    apart = 90 <= arch < 100 and width <= 128 and itemsize > 1
    return AttentionTile(max(rows, next_power_of_2(group)), num_warps, stages, apart=apart)


def _stages(arch: int, stage_bytes: int, most: int) -> int:
    """Stages whose buffers fill at most half of shared memory (two programs share it), >= 2."""
    return max(2, min(most, 1 + shared_memory(arch) // 2 // stage_bytes))
