"""What a run counts: wavefronts of shared memory and sectors of global memory.

An access to shared memory takes as many wavefronts as the most different words that it wants of
one of the 32 banks; those of 8 bytes a lane go by half warps, those of 16 by quarters. An access
to global memory fetches whole sectors of 32 bytes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .convoy import Convoy
    from .syntax import Instruction


@dataclass(slots=True)
class AccessCount:
    """Counts of one instruction, over all warps.

    Attributes:
        runs: times that a warp ran it with at least one lane.
        wavefronts: wavefronts of shared memory.
        ideal: the same without conflicts of banks.
        sectors: sectors of 32 bytes fetched from or sent to global memory.
        used: bytes of them that lanes asked for.
    """

    runs: int = 0
    wavefronts: int = 0
    ideal: int = 0
    sectors: int = 0
    used: int = 0


class Counts:
    """Counts of a run.

    Attributes:
        by_line: counts by line of the PTX text.
    """

    def __init__(self) -> None:
        self.by_line: dict[int, AccessCount] = {}
        self._patterns: dict[tuple[int, bytes], tuple[int, int]] = {}
        self._sectors: dict[tuple[int, bytes], tuple[int, int]] = {}

    def total(self) -> AccessCount:
        """The sum over all instructions."""
        total = AccessCount()
        for one in self.by_line.values():
            total.runs += one.runs
            total.wavefronts += one.wavefronts
            total.ideal += one.ideal
            total.sectors += one.sectors
            total.used += one.used
        return total

    def _of(self, ins: Instruction) -> AccessCount:
        return self.by_line.setdefault(ins.line, AccessCount())

    def shared(self, ins: Instruction, c: Convoy, address: Any, size: int, positions: Any) -> None:
        """Count an access of lanes to int64 addresses [n] of shared memory.

        For ldmatrix and stmatrix these are the lanes that give addresses of 16 bytes.
        """
        count = self._of(ins)
        for key, part, lanes in _warp_patterns(c, address, positions, 128):
            found = self._patterns.get((size, key))
            if found is None:
                found = self._patterns[size, key] = wavefronts(part, size, lanes)
            count.runs += 1
            count.wavefronts += found[0]
            count.ideal += found[1]

    def sectors(self, ins: Instruction, c: Convoy, place: Any, size: int, positions: Any) -> None:
        """Count an access of lanes to places int64 [n] of global memory."""
        count = self._of(ins)
        for key, part, _ in _warp_patterns(c, place, positions, 32):
            found = self._sectors.get((size, key))
            if found is None:
                spots = (part[:, None] + np.arange(size)).reshape(-1)
                found = len(np.unique(spots >> 5)), len(np.unique(spots))
                self._sectors[size, key] = found
            count.runs += 1
            count.sectors += found[0]
            count.used += found[1]


def _warp_patterns(c: Convoy, address: Any, positions: Any, period: int) -> Any:
    """(key, addresses, lanes) of each warp.

    Keys are equal where all addresses differ by the same multiple of ``period``.
    """
    warps = c.threads[positions] // 32
    cuts = [0, *(np.flatnonzero(np.diff(warps)) + 1).tolist(), len(warps)]
    # Which lanes take part matters, too: they decide what goes together.
    lanes = c.threads[positions] & 31
    for begin, end in itertools.pairwise(cuts):
        if end > begin:
            part = address[begin:end]
            relative = part - (int(part[0]) // period * period)
            used = lanes[begin:end]
            yield relative.tobytes() + used.astype("u1").tobytes(), relative, used


def wavefronts(address: Any, size: int, lanes: Any) -> tuple[int, int]:
    """(wavefronts, the fewest possible) for addresses int64 [n] of the lanes [n] of a warp."""
    words = max(1, size // 4)
    group = lanes // (32 // words)
    total = ideal = 0
    for number in np.unique(group):
        part = (address[group == number, None] // 4 + np.arange(words)).reshape(-1)
        total += int(np.bincount(np.unique(part) % 32).max())
        ideal += 1
    return total, ideal
