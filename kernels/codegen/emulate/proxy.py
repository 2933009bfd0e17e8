"""Shared memory as the asynchronous proxy sees it, through which wgmma reads.

What threads and cp.async write, the generic proxy, becomes readable for the asynchronous one by
``fence.proxy.async``: of the writer after it has written, or of any thread after a barrier that
follows the write; a reader in another warp needs a barrier after that fence. While a product is in
flight nobody may write what it reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .epochs import SEVERAL, bad_read, epoch_of, races, warp_of, with_reader
from .faults import EmulatedFault, MissingFenceFault, RaceFault

if TYPE_CHECKING:
    from .convoy import Convoy
    from .shared import SharedMemory
    from .syntax import Instruction

_NEVER = np.int32(1 << 30)


class AsyncProxy:
    """Fences and reads under way, by granules of shared memory.

    Attributes:
        reading: int16, products in flight that read a granule.
        fenced: int32, epoch of the first fence after the last write.
        fencers: uint32, a bit for each warp whose fence of that epoch covers the write.
    """

    def __init__(self, shared: SharedMemory) -> None:
        self._shared = shared
        count = len(shared.writers)
        self.reading = np.zeros(count, "i2")
        self.fenced = np.full(count, _NEVER, "i4")
        self.fencers = np.zeros(count, "u4")

    def enter(self, granules: slice) -> None:
        """A new CTA starts with these granules."""
        self.reading[granules] = 0
        self.fenced[granules] = _NEVER

    def written(self, c: Convoy, ins: Instruction, granules: Any, positions: Any) -> None:
        """Lanes write granules [n, k]. Raises RaceFault where a product in flight reads them."""
        busy = self.reading.take(granules)
        if busy.any():
            lane, part = np.argwhere(busy)[0]
            where = self._shared.where(int(granules[lane, part]))
            what = f"writes {where}, which a wgmma in flight reads"
            raise c.fault(RaceFault, ins, int(positions[lane]), what)
        self.fenced[granules] = _NEVER

    def landed(self, granules: Any) -> None:
        """Asynchronous copies have written granules [n, k]."""
        self.fenced[granules] = _NEVER

    def fence(self, c: Convoy) -> None:
        """The warps of a convoy pass fence.proxy.async."""
        in_cta = c.warps_in_cta()
        for slot in np.unique(c.slots[::32]).tolist():
            epoch = int(c.machine.epochs[slot])
            part = self._shared.granules_of(slot)
            writers, fenced = self._shared.writers[part], self.fenced[part]
            open_ = (writers >= 0) & (fenced >= epoch)
            if not open_.any():
                continue
            mine = in_cta[c.slots[::32] == slot]
            bits = np.bitwise_or.reduce(np.uint32(1) << mine.astype("u4"))
            before = open_ & (epoch_of(writers) < epoch)
            own = open_ & (epoch_of(writers) == epoch) & np.isin(warp_of(writers), mine)
            fencers = self.fencers[part]
            fencers[(before | own) & (fenced == _NEVER)] = 0
            fencers[before] |= bits
            fencers[own] |= np.uint32(1) << warp_of(writers[own]).astype("u4")
            fenced[before | own] = epoch

    def read(self, c: Convoy, ins: Instruction, granules: Any, rows: Any) -> None:
        """Warps number ``rows`` of a convoy, all of one CTA, begin to read granules [k].

        Raises:
            RaceFault: another warp has written there since the last barrier.
            MissingFenceFault: no fence lies between the write and this.
            EarlyReadFault: a copy to there is under way.
            UnwrittenFault: nothing has been written there.
        """
        first = int(rows[0]) * 32
        floor, code = c.floors[first], c.codes[first]
        writers = self._shared.writers.take(granules)
        bad = races(writers, floor, code) if len(rows) == 1 else writers >= floor
        if bad.any() or writers.min() < 0:
            raise self._unreadable(c, ins, granules, first, writers, bad)
        bits = np.bitwise_or.reduce(np.uint32(1) << c.warps_in_cta()[rows].astype("u4"))
        fenced = self.fenced.take(granules)
        epoch = epoch_of(int(floor))
        missing = (fenced > epoch) | (
            (fenced == epoch) & ((self.fencers.take(granules) & bits) != bits)
        )
        if missing.any():
            where = self._shared.where(int(granules[np.flatnonzero(missing)[0]]))
            what = f"reads {where} without fence.proxy.async after it was written"
            raise c.fault(MissingFenceFault, ins, first, what)
        self.mark(granules, floor, code, len(rows) > 1)
        self.reading[granules] += len(rows)

    def mark(self, granules: Any, floor: Any, code: Any, several: bool) -> None:
        """Note a read of granules [k] in the epoch of ``floor``."""
        readers = self._shared.readers
        if several:
            readers[granules] = floor + SEVERAL
        else:
            readers[granules] = with_reader(readers.take(granules), floor, code)

    def _unreadable(
        self, c: Convoy, ins: Instruction, granules: Any, position: int, writers: Any, bad: Any
    ) -> EmulatedFault:
        place = int(np.flatnonzero(bad if bad.any() else writers < 0)[0])
        kind, what = bad_read(self._shared.where(int(granules[place])), int(writers[place]))
        return c.fault(kind, ins, position, what)
