"""From a problem to an entry: its own, or the nearest neighbour's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..device.gpus import Device
from ..w4a16.config import split_count
from ..w4a16.layout import SLICE
from .schema import COUNTERS, PARTIAL_BYTES, Entry, Key, Table, parse_key

REACH = 1.5
"""Largest distance of a neighbour, in doublings of tiles per multiprocessor and of K, summed."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a table says about a problem.

    Attributes:
        values: as the choosers take them: ``kernel``, ``bm``, ``bn``, ``warps``, ``stages``,
            ``splits``.
        kind: ``table`` or ``neighbour``.
        detail: which table, and which entry of it for a neighbour.
    """

    values: dict[str, Any]
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class _Source:
    entry: Entry
    sms: int
    label: str


class Tables(Mapping[str, Mapping[str, Any]]):
    """Entries for one device; what the kernels take as ``overrides``.

    Looking up a key gives the entry for it, of the last table that has one, or the nearest
    neighbour's with splits for the new shape. Iteration and length count true entries only.

    Args:
        device: where the kernels run.
        tables: (label, table); later ones win. Tables of other devices of the same capability
            only lend neighbours; those of other capabilities are ignored.
    """

    def __init__(self, device: Device, tables: Iterable[tuple[str, Table]]) -> None:
        self.device = device
        self._own: dict[str, _Source] = {}
        self._all: list[_Source] = []
        for label, table in tables:
            if table.arch != device.arch:
                continue
            sources = {key: _Source(e, table.sms, label) for key, e in table.entries.items()}
            self._all = [*sources.values(), *self._all]
            if table.sms == device.sms:
                self._own |= sources
        self._seen: dict[str, Found | None] = {}

    def find(self, key: str) -> Found | None:
        """The entry for a key, a neighbour's, or None."""
        if key not in self._seen:
            self._seen[key] = self._find(key)
        return self._seen[key]

    def __getitem__(self, key: str) -> Mapping[str, Any]:
        found = self.find(key)
        if found is None:
            raise KeyError(key)
        return found.values

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)

    def _find(self, text: str) -> Found | None:
        own = self._own.get(text)
        if own is not None:
            return Found(own.entry.values, "table", own.label)
        key = parse_key(text)
        if key is None or not self._all:
            return None
        sms = self.device.sms
        near = min(self._all, key=lambda s: distance(key, sms, s.entry.key, s.sms))
        if distance(key, sms, near.entry.key, near.sms) > REACH:
            return None
        values = adapt(near.entry.values, key, sms)
        return Found(values, "neighbour", f"{near.label}: {near.entry.key}")


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
    bm, bn = values["bm"], values["bn"]
    tiles = key.rows // bn * -(-key.m // bm)
    cap = max(1, PARTIAL_BYTES // (tiles * bm * bn * 4)) if tiles <= COUNTERS else 1
    programs = sms * max(1, 8 // values["warps"])
    splits = split_count(tiles, -(-key.k // SLICE), programs, cap)
    return {**values, "splits": splits}
