"""Tile and split of the fragment kernels (W8A16 and codebooks) as pure functions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..w4a16.config import crossover, split_count

EXACT_TOKENS = 16
_EXACT_SPLITS = 8
_TOKENS = (8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Config:
    """Tile, warps, stages and splits of one launch; ``dense``: dequantize and multiply instead."""

    bm: int
    bn: int
    warps: int
    stages: int
    splits: int = 1
    dense: bool = False


def tile(arch: int, bm: int) -> Config:
    """The tile for up to ``bm`` (8 to 128) tokens."""
    if bm <= 16:
        # Matrix instructions elsewhere than on NVIDIA have no side of 8.
        return Config(bm if arch else 16, 128, 2, 4)
    if bm == 32:
        return Config(bm, 128, 4, 3)
    if bm == 64:
        return Config(bm, 128, 8, 3)
    return Config(bm, 128, 8, 2 if arch in (0, 86, 89, 120) else 3)


def launch_options(config: Config, arch: int, group: int) -> dict[str, Any]:
    """Launch options of a fused product."""
    options: dict[str, Any] = {"num_warps": config.warps, "num_stages": config.stages}
    if arch and config.bm == 16 and group == 32:
        # The assembler aims at 128 registers here and spills one; it needs 156.
        options["maxnreg"] = 168
    return options


def choose(
    arch: int,
    m: int,
    stored_rows: int,
    slices: int,
    multiprocessors: int,
    *,
    exact: bool,
    partials: int,
    counters: int,
) -> Config:
    """The launch for M tokens; with ``exact`` nothing depends on M.

    ``partials`` (elements) and ``counters`` are what the workspace holds.
    """
    if not exact and m > crossover(arch):
        return Config(0, 0, 0, 0, dense=True)
    config = tile(arch, EXACT_TOKENS if exact else next((b for b in _TOKENS if m <= b), 128))
    tiles_n = stored_rows // config.bn
    tiles = tiles_n if exact else tiles_n * -(-m // config.bm)
    cap = partials // (tiles * config.bm * config.bn) if tiles <= counters else 1
    programs = multiprocessors * max(1, 8 // config.warps)
    splits = split_count(tiles, slices, programs, min(max(cap, 1), _EXACT_SPLITS if exact else 16))
    return replace(config, splits=splits)
