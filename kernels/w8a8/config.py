"""Tile choice of W8A8 as pure functions of target, type and shape; nothing is tuned at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..device.workspace import COUNTERS, PARTIAL_BYTES

_MIN_TILES_PER_SPLIT = 4
_QUANTIZE_MOST = 16384
GROUP_M = 8


@dataclass(frozen=True, slots=True)
class GemmConfig:
    """One shipped tile.

    Attributes:
        bm: rows of x.
        bn: rows of w.
        bk: columns of both that one step takes.
        warps: warps of a program.
        stages: pipeline stages.
        splittable: several programs may share its K, see :func:`choose_split`.
    """

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    splittable: bool = False

    @property
    def name(self) -> str:
        """Short name, e.g. ``16x128x256 w4 s3``."""
        return f"{self.bm}x{self.bn}x{self.bk} w{self.warps} s{self.stages}"

    @property
    def launch(self) -> dict[str, Any]:
        """Launch options."""
        return {"num_warps": self.warps, "num_stages": self.stages}


# Shared memory of a stage is (BM + BN) * BK bytes; stages fill what the target has without
# pushing out a second program where rows are few, since memory latency is what has to be hidden.
_SMALL = {
    "big": (
        GemmConfig(16, 128, 256, 4, 3, True),
        GemmConfig(32, 128, 256, 4, 3, True),
        GemmConfig(64, 128, 128, 4, 4, True),
    ),
    "tensor memory": (
        GemmConfig(16, 128, 256, 4, 3, True),
        GemmConfig(32, 128, 256, 4, 3, True),
        # With 4 warps, moving sums from tensor memory to registers would spill.
        GemmConfig(64, 128, 128, 8, 4, True),
    ),
    "tight": (
        GemmConfig(16, 64, 256, 4, 4, True),
        GemmConfig(32, 64, 256, 4, 3, True),
        GemmConfig(64, 64, 128, 4, 4, True),
    ),
}
_KIND = {80: "big", 90: "big", 100: "tensor memory"}
# (square, wide): wide tiles only where the epilogue is light, since their sums fill the registers.
_LARGE = {
    80: (GemmConfig(128, 128, 128, 8, 3), GemmConfig(128, 256, 64, 8, 3)),
    86: (GemmConfig(128, 128, 64, 8, 3), GemmConfig(128, 256, 64, 8, 3)),
    89: (GemmConfig(128, 128, 64, 8, 3), GemmConfig(128, 256, 64, 8, 3)),
    90: (GemmConfig(128, 128, 128, 8, 4), GemmConfig(128, 256, 128, 8, 4)),
    100: (GemmConfig(128, 128, 128, 8, 4), GemmConfig(128, 256, 64, 8, 3)),
    120: (GemmConfig(128, 128, 64, 8, 3), GemmConfig(128, 256, 64, 8, 3)),
    0: (GemmConfig(64, 128, 64, 4, 2), GemmConfig(128, 128, 64, 8, 2)),
}
_INTERPRETED = (GemmConfig(16, 32, 32, 4, 1, True), GemmConfig(32, 32, 64, 4, 1))


def known_arch(arch: int) -> int:
    """The largest target with a separate table that is not above ``arch``; 0 for none."""
    return max((a for a in _LARGE if a <= arch), default=0)


def tiles_of(arch: int) -> tuple[GemmConfig, ...]:
    """The tiles for few rows of x, by rising rows."""
    return _SMALL[_KIND.get(known_arch(arch), "tight")]


def square_tile(arch: int) -> GemmConfig:
    """The tile for many rows that takes every epilogue (except see :func:`choose`)."""
    return _LARGE[known_arch(arch)][0]


def wide_tile(arch: int, floating: bool) -> GemmConfig | None:
    """The tile for very many rows and a light epilogue, or None where it would spill."""
    # On Hopper float8 sums are kept twice (see imprecise), too much for 256 columns; so are 128
    # sums a lane with a bias when they come from tensor memory.
    if known_arch(arch) == 100 or (floating and imprecise(arch)):
        return None
    return _LARGE[known_arch(arch)][1]


def choose(
    arch: int,
    m: int,
    n: int,
    *,
    floating: bool = False,
    zero: bool = False,
    residual: bool = False,
    interpreted: bool = False,
) -> GemmConfig:
    """The tile for M rows and N outputs: the smallest that holds M, else one of the large.

    ``zero`` and ``residual`` say what the epilogue needs beside scales and bias.
    """
    if interpreted:
        return _INTERPRETED[0 if m <= 16 else 1]
    small = tiles_of(arch)
    for config in small:
        if m <= config.bm:
            return config
    if zero and residual and known_arch(arch) == 100:
        return small[-1]
    wide = wide_tile(arch, floating)
    # Below about one wave of wide tiles the square ones fill more multiprocessors.
    if wide is None or zero or residual or m <= 256 or n < 2048:
        return square_tile(arch)
    return wide


def choose_exact(arch: int, *, interpreted: bool = False) -> GemmConfig:
    """The one tile of float8 products in exact mode.

    Sums of a row depend on the steps of K and on the instruction, which follow the tile, not on
    where in a tile the row lies or how many tiles there are.
    """
    return _INTERPRETED[0] if interpreted else tiles_of(arch)[1]


def choose_split(
    config: GemmConfig,
    m: int,
    n: int,
    k: int,
    multiprocessors: int,
    *,
    partials: int = PARTIAL_BYTES // 4,
    counters: int = COUNTERS,
) -> int:
    """Programs that share the K of one tile: 3 a multiprocessor in all, 4 k tiles each at least.

    ``partials`` (elements) and ``counters`` are what the workspace holds.
    """
    tiles_mn = -(-m // config.bm) * -(-n // config.bn)
    if not config.splittable or tiles_mn > counters:
        return 1
    wanted = 3 * multiprocessors // tiles_mn
    most = k // (config.bk * _MIN_TILES_PER_SPLIT)
    room = partials // (tiles_mn * config.bm * config.bn)
    split = 1
    # Powers of two only: each split is a variant to compile before serving starts.
    while split * 2 <= min(wanted, most, room, 16):
        split *= 2
    return split


def even_k(config: GemmConfig, k: int) -> bool:
    """Whether no k tile is ragged, so that the loop needs no masks along K."""
    return k % config.bk == 0


def imprecise(arch: int) -> int:
    """Products that Hopper's float8 units may add at 14 bits before a float32 sum takes over."""
    return 128 if 90 <= arch < 100 else 0


def quantize_block(k: int) -> tuple[int, int]:
    """(columns that one pass holds in registers, warps) of the row quantizer."""
    if k > _QUANTIZE_MOST:
        return 4096, 8
    block = 16
    while block < k:
        block *= 2
    return block, max(1, min(8, block // 512))
