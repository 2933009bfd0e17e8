"""Which configurations are worth timing for a problem; pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from ..w4a16.config import (
    Choice,
    Config,
    Problem,
    choose,
    direct_tile,
    late_tile,
    late_tokens,
    split_count,
    table_key,
)
from ..w4a16.layout import SLICE
from .schema import COUNTERS, PARTIAL_BYTES, Entry, parse_entry

_DENSE = {"kernel": "dequantize", "bm": 0, "bn": 64, "warps": 4, "stages": 1, "splits": 1}
_WAVES = (0.5, 1, 2, 4)
_DENSE_FROM = 64


def formula(problem: Problem) -> dict[str, Any]:
    """What runs without a table, as the values of an entry."""
    return _values(choose(problem, partial_bytes=PARTIAL_BYTES, counters=COUNTERS))


def candidates(problem: Problem) -> list[dict[str, Any]]:
    """Values of entries to time, the formula's first: shipped tiles, other depths and splits."""
    found = [formula(problem)]
    for kernel, tile in _tiles(problem):
        for stages in sorted({max(2, tile.stages + step) for step in (-1, 0, 1)}):
            for splits in _splits(problem, tile):
                config = replace(tile, stages=stages, splits=splits)
                found.append({"kernel": kernel, **asdict(config)})
    if problem.m >= _DENSE_FROM:
        found.append(dict(_DENSE))
    return [values for i, values in enumerate(found) if values not in found[:i]]


def entry(problem: Problem, values: dict[str, Any], us: float, formula_us: float) -> Entry:
    """A checked entry with its measured times."""
    times = {"us": round(us, 3), "formula_us": round(formula_us, 3)}
    return parse_entry(table_key(problem), {**values, **times}, problem.arch, "measured entry")


def _tiles(problem: Problem) -> Iterator[tuple[str, Config]]:
    # Only tiles that the codegen gate compiles for this capability: no others are known to be
    # free of spills.
    most = late_tokens(problem.group, False, problem.arch)
    for bm in (8, 16, 32):
        if bm <= most and (bm >= problem.m or bm == most) and problem.m <= 4 * most:
            yield "late", late_tile(bm)
    for m in (16, 32, 64, 128):
        if m >= min(problem.m, 128) or 2 * m >= problem.m:
            yield "direct", direct_tile(m, problem.arch)


def _splits(problem: Problem, tile: Config) -> list[int]:
    tiles = problem.rows // tile.bn * -(-problem.m // tile.bm)
    slices = -(-problem.k // SLICE)
    cap = max(1, PARTIAL_BYTES // (tiles * tile.bm * tile.bn * 4)) if tiles <= COUNTERS else 1
    programs = problem.sms * max(1, 8 // tile.warps)
    return sorted({split_count(tiles, slices, int(programs * w), cap) for w in _WAVES})


def _values(choice: Choice) -> dict[str, Any]:
    if choice.kernel == "dequantize":
        return dict(_DENSE)
    return {"kernel": choice.kernel, **asdict(choice.config)}
