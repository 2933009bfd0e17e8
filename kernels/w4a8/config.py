"""Tiles of W4A8 as pure functions of target, shape and form; nothing is tuned at run time.

Sums are integers, so a row has the same bits in every tile. Only splits of K show, and exact mode
has the same for every number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..device.choice import split_count, tensor_memory
from ..device.column_order import SLICE
from ..device.workspace import COUNTERS, PARTIAL_BYTES
from ..w4a16.config import EXACT_MAX_SPLITS

BN = 128
"""Stored rows of the weight in a tile."""


@dataclass(frozen=True, slots=True)
class W4A8Config:
    """Parameters of one launch.

    Attributes:
        bm: rows of x in a tile.
        warps: warps of a program.
        stages: pipeline stages.
        splits: programs that share the K of one tile.
        registers: of a lane, where the assembler aims at fewer than it needs; 0: it may choose.
    """

    bm: int
    warps: int
    stages: int
    splits: int = 1
    registers: int = 0

    @property
    def launch(self) -> dict[str, Any]:
        """Launch options. Rounding must not depend on which multiply-adds are fused."""
        return {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": False,
            **({"maxnreg": self.registers} if self.registers else {}),
        }


def tiles_of(group: int, additive: bool, arch: int) -> tuple[W4A8Config, ...]:
    """The tiles for a form of weight, by rising rows of x.

    Args:
        group: as in ``PackedW4``: 32, 64, a multiple of 128 or 0.
        additive: entries hold offsets that are added.
        arch: compute capability, or 0.
    """
    # Targets on which larger tiles compile to more registers than there are.
    tight = arch in (86, 89, 120)
    # Four scaling steps a slice: with two warps entries of 32 bits and zero points spill there.
    few = (W4A8Config(8, 4 if group == 32 and arch == 80 else 2, 4),)
    if group != 32 and not (additive and tight):
        few += (W4A8Config(16, 2, 4, registers=224 if group == 64 and arch == 90 else 0),)
    if tensor_memory(arch):
        # Four scales and offsets a slice are more than two warps have registers for.
        return few if group == 32 and additive else (*few, W4A8Config(32, 2, 3))
    registers = 224 if tight else 0
    middle = W4A8Config(32, 4, 3, registers=registers)
    if group == 32:
        # Four scaling steps a slice want the registers.
        return few if additive and (tight or arch == 80) else (*few, middle)
    if additive:
        return (*few, middle, W4A8Config(64, 8, 3, registers=registers))
    tiles = (*few, middle)
    if group != 64:  # whose two scaling steps a slice spill there
        tiles += (W4A8Config(64, 4, 3, registers=224 if arch == 80 else 0),)
    if tight:
        return tiles
    if group == 64 and arch == 90:
        return (*tiles, W4A8Config(64, 8, 3))  # 128 rows spill
    return (*tiles, W4A8Config(128, 8, 3))


def choose(
    m: int,
    rows: int,
    k: int,
    *,
    group: int,
    additive: bool,
    arch: int,
    sms: int,
    exact: bool = False,
    partial_bytes: int = PARTIAL_BYTES,
    counters: int = COUNTERS,
) -> W4A8Config:
    """The smallest tile that holds ``m`` rows of x, else the largest, and its splits.

    Args:
        m: rows of x.
        rows: stored rows of the weight, a multiple of 128.
        k: features.
        group: see :func:`tiles_of`, like ``additive`` and ``arch``.
        additive: see there.
        arch: see there.
        sms: multiprocessors.
        exact: splits must not depend on ``m``.
        partial_bytes: of the workspace.
        counters: of the workspace.
    """
    tiles = tiles_of(group, additive, arch)
    tile = next((t for t in tiles if m <= t.bm), tiles[-1])
    slices, across = -(-k // SLICE), rows // BN
    if exact:
        # Of the largest tile, so that one launch of each has the room.
        room = partial_bytes // (across * tiles[-1].bm * BN * 4) if across <= counters else 1
        splits = split_count(across, slices, 4 * sms, min(EXACT_MAX_SPLITS, max(room, 1)))
        return replace(tile, splits=splits)
    count = across * -(-m // tile.bm)
    room = partial_bytes // (count * tile.bm * BN * 4) if count <= counters else 1
    programs = sms * max(1, 8 // tile.warps)
    return replace(tile, splits=split_count(count, slices, programs, max(room, 1)))
