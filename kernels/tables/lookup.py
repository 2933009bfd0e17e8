"""From a problem to an entry: its own, or the nearest neighbour's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..device.gpus import Device
from .schema import Entry, Table
from .tuning import tunings

REACH = 1.5
"""Largest distance of a neighbour, in doublings."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a table says about a problem.

    Attributes:
        values: as the choosers of the kind take them.
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
        for kind, tuning in tunings().items():
            key = tuning.parse_key(text)
            others = [source for source in self._all if source.entry.key.kind == kind]
            if key is None or not others:
                continue
            sms = self.device.sms
            far = [tuning.distance(key, sms, s.entry.key, s.sms) for s in others]
            near = others[far.index(min(far))]
            if min(far) <= REACH:
                values = tuning.adapt(near.entry.values, key, sms)
                return Found(values, "neighbour", f"{near.label}: {near.entry.key}")
        return None
