"""What tuned tables know of W4A16: keys, sound values, what is worth timing, neighbours; pure.

This module is the kind's :class:`~..tables.tuning.Tuning`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from ..device.workspace import COUNTERS, PARTIAL_BYTES
from ..formats.weight_format import WeightFormat
from ..kind import BUCKETS
from ..tables.tuning import TunedKey, fault, integer
from .config import (
    Problem,
    TileChoice,
    W4A16Config,
    choose,
    count_splits,
    direct_tile,
    late_tile,
    late_tokens,
    resident,
)
from .config import table_key as table_key
from .layout import ROW_ALIGN, SLICE

EXAMPLE: str = "sm90 m16 4096x14336 g128 fp16"
FIELDS: Sequence[str] = ("kernel", "bm", "bn", "warps", "stages", "splits")

_KEY = re.compile(r"sm(\d{2,3}) m(\d{1,4}) (\d{1,9})x(\d{1,9}) g(\d{1,9}) (fp16|bf16)", re.ASCII)
_TILES = {"late": (8, 16, 32), "direct": (16, 32, 64, 128)}
_DENSE = {"kernel": "dequantize", "bm": 0, "bn": 64, "warps": 4, "stages": 1, "splits": 1}
_WAVES = (0.5, 1, 2, 4)
_DENSE_FROM = 64


@dataclass(frozen=True, slots=True)
class Key(TunedKey):
    """What a key of :func:`~.config.table_key` says.

    Attributes:
        kind: ``w4a16``.
        arch: compute capability such as 90.
        m: bucket of the rows of the activations.
        rows: stored rows of the weight, a multiple of 128.
        k: features.
        group: as in ``PackedW4``: 32, 64, a multiple of 128 or 0.
        dtype: of the activations, ``fp16`` or ``bf16``.
    """

    kind: ClassVar[str] = "w4a16"
    m: int
    rows: int
    k: int
    group: int
    dtype: str

    def __str__(self) -> str:
        size = f"{self.rows}x{self.k}"
        return f"sm{self.arch} m{self.m} {size} g{self.group} {self.dtype}"


def parse_key(text: str) -> Key | None:
    """The parts of a key, or None when it is none."""
    match = _KEY.fullmatch(text)
    if match is None:
        return None
    arch, m, rows, k, group = (int(part) for part in match.groups()[:5])
    return Key(arch, m, rows, k, group, match[6])


def check(key: Key, values: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError naming ``where`` for a key or values that no kernel runs with."""
    if key.m not in BUCKETS:
        raise fault(where, f"m is {key.m}; expected one of {', '.join(map(str, BUCKETS))}")
    if key.rows == 0 or key.rows % ROW_ALIGN or key.k == 0:
        raise fault(where, f"{key.rows}x{key.k}; expected rows in whole {ROW_ALIGN}s and k > 0")
    if key.group not in (0, 32, 64) and key.group % SLICE:
        raise fault(where, f"group is {key.group}; expected 0, 32, 64 or a multiple of {SLICE}")
    kernel = values["kernel"]
    if kernel == "dequantize":
        if values != _DENSE or any(type(values[name]) is not int for name in FIELDS[1:]):
            raise fault(where, f"expected {_DENSE} for this kernel")
        return
    if not isinstance(kernel, str) or kernel not in _TILES:
        raise fault(where, f"kernel is {kernel!r:.60}; expected late, direct or dequantize")
    narrow = kernel == "late" and values["bm"] == 8
    rows = (64, ROW_ALIGN) if narrow else (ROW_ALIGN,)
    allowed = {"bm": _TILES[kernel], "bn": rows, "warps": (1, 2, 4, 8)}
    for name, choices in allowed.items():
        if type(values[name]) is not int or values[name] not in choices:
            wanted = ", ".join(map(str, choices))
            raise fault(where, f"{name} is {values[name]!r:.60}; expected one of {wanted}")
    integer(values["stages"], 1, 8, where, "stages")
    splits = integer(values["splits"], 1, -(-key.k // SLICE), where, "splits")
    tiles = key.rows // values["bn"]
    partials = tiles * splits * values["bm"] * values["bn"] * 4
    if splits > 1 and (tiles > COUNTERS or partials > PARTIAL_BYTES):
        raise fault(where, f"{splits} splits of {tiles} tiles do not fit in the workspace")


def distance(key: Key, sms: int, other: Key, other_sms: int) -> float:
    """How unlike two problems are, in doublings; infinite where a tile cannot be carried over.

    What a tile suits is the number of tiles that each multiprocessor gets and the length of K.
    """
    if (key.arch, key.m, key.group, key.dtype) != (other.arch, other.m, other.group, other.dtype):
        return math.inf
    tiles = math.log2((key.rows / sms) / (other.rows / other_sms))
    return abs(tiles) + abs(math.log2(key.k / other.k))


def adapt(values: Mapping[str, Any], key: Key, sms: int) -> dict[str, Any]:
    """A neighbour's kernel and tile, with splits by the formula for the problem's own shape."""
    if values["kernel"] == "dequantize":
        return dict(values)
    config = W4A16Config(**{name: values[name] for name in FIELDS[1:]})
    programs = sms * resident(config, key.arch)
    return {**values, "splits": _split(key.rows, key.m, key.k, config, programs)}


def timed(problem: Problem) -> tuple[WeightFormat, bool]:
    """Zero points, as most checkpoints have."""
    return WeightFormat(4, problem.group or -1, "int"), problem.fp16


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


def _tiles(problem: Problem) -> Iterator[tuple[str, W4A16Config]]:
    # Only tiles that the codegen gate compiles for this capability: no others are known to be
    # free of spills.
    most = late_tokens(problem.group, False, problem.arch)
    for bm in (8, 16, 32):
        if bm <= most and (bm >= problem.m or bm == most) and problem.m <= 4 * most:
            yield "late", late_tile(bm)
    if problem.m <= 8 and not problem.gated:
        yield "late", late_tile(8, 64)
    for m in (16, 32, 64, 128):
        if m >= min(problem.m, 128) or 2 * m >= problem.m:
            yield "direct", direct_tile(m, problem.arch)


def _splits(problem: Problem, tile: W4A16Config) -> list[int]:
    programs = problem.sms * resident(tile, problem.arch)
    sizes = problem.rows, problem.m, problem.k
    return sorted({_split(*sizes, tile, max(1, int(programs * w))) for w in _WAVES})


def _split(rows: int, m: int, k: int, config: W4A16Config, programs: int) -> int:
    """Splits of K that keep so many programs busy and fit the workspace."""
    bm, bn = config.bm, config.bn
    tiles = rows // bn * -(-m // bm)
    cap = max(1, PARTIAL_BYTES // (tiles * bm * bn * 4)) if tiles <= COUNTERS else 1
    return count_splits(config, tiles, -(-k // SLICE), programs, cap)


def _values(choice: TileChoice) -> dict[str, Any]:
    if choice.kernel == "dequantize":
        return dict(_DENSE)
    return {"kernel": choice.kernel, **asdict(choice.config)}
