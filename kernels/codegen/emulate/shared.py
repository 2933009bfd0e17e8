"""Shared memory, with a detector of races between warps.

Of each *granule*, the bytes of the program's smallest access, the last writer and the last reader
are known as a code: the CTA's epoch, which counts its barriers, times 64, plus the warp. Two
accesses by different warps in one epoch, one of them a write, are a race, whatever order this run
happens to give them. Writing what is there already is none: replicated layouts do that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .faults import EarlyReadFault, MisalignedFault, OutOfBoundsFault, RaceFault, UnwrittenFault
from .proxy import AsyncProxy

if TYPE_CHECKING:
    from .convoy import Convoy
    from .program import PtxProgram
    from .syntax import Instruction

PENDING = np.int32(1 << 30)
"""Added to the code of a writer whose data is still under way."""

_MANY, _ATOMIC = 63, 62  # in the place of a warp


class SharedMemory:
    """The shared memory of all resident CTAs.

    Attributes:
        size: bytes that one CTA has.
        stride: bytes from one CTA's to the next one's.
        data: uint8 [slots * stride].
        granule: bytes that the detector tells apart.
        writers: int32, code of the last writer of each granule; -1 where nothing was written.
        readers: int32, code of the last reader; warp 63 of an epoch stands for several.
        proxy: the view of products, None where the program has none.
    """

    def __init__(self, slots: int, size: int, program: PtxProgram) -> None:
        self.size = size
        self.stride = -(-size // 128) * 128 + 128
        self.granule = program.granule
        self._shift = self.granule.bit_length() - 1
        self.data = np.zeros(slots * self.stride, "u1")
        self.writers = np.full(len(self.data) // self.granule, -1, "i4")
        self.readers = self.writers.copy()
        self.proxy = AsyncProxy(self) if program.has_products else None

    def enter(self, slot: int) -> None:
        """A new CTA starts in a slot: all of its bytes count as unwritten."""
        part = slice(slot * self.stride, (slot + 1) * self.stride)
        self.data[part] = 0xFF  # NaN in every type of float
        granules = self.granules_of(slot)
        self.writers[granules] = -1
        self.readers[granules] = -1
        if self.proxy is not None:
            self.proxy.enter(granules)

    def granules_of(self, slot: int) -> slice:
        """All granules of one CTA."""
        each = self.stride >> self._shift
        return slice(slot * each, (slot + 1) * each)

    def places(
        self, c: Convoy, ins: Instruction, address: Any, size: int, positions: Any
    ) -> tuple[Any, Any]:
        """Bounds and alignment checked: (bytes from the start of ``data``, granules [n, k]).

        ``address`` is int64 [n], ``positions`` the lanes that they belong to.
        """
        if (address & (size - 1)).any():
            bad = int(np.flatnonzero(address & (size - 1))[0])
            what = f"shared address {int(address[bad])} is no multiple of {size}"
            raise c.fault(MisalignedFault, ins, int(positions[bad]), what)
        if address.min() < 0 or address.max() + size > self.size:
            bad = int(np.flatnonzero((address < 0) | (address + size > self.size))[0])
            what = f"{size} bytes at {int(address[bad])} of {self.size} bytes of shared memory"
            raise c.fault(OutOfBoundsFault, ins, int(positions[bad]), what)
        place = address + c.slots[positions] * self.stride
        granules = (place >> self._shift)[:, None]
        if size > self.granule:
            granules = granules + np.arange(size >> self._shift)
        return place, granules

    def read(self, c: Convoy, ins: Instruction, granules: Any, positions: Any) -> None:
        """Note that lanes read granules [n, k]. Raises RaceFault and its like."""
        floors, codes = c.floors[positions][:, None], c.codes[positions][:, None]
        writers = self.writers.take(granules)
        bad = (writers >= floors) & (writers != codes)
        if bad.any() or writers.min() < 0:
            self._bad_read(c, ins, granules, positions, writers, bad)
        readers = self.readers.take(granules)
        new = np.where((readers >= floors) & (readers != codes), floors + np.int32(_MANY), codes)
        self.readers[granules] = new
        if not c.alone:
            clash = self.readers.take(granules) != new
            if clash.any():
                many = np.broadcast_to(floors + np.int32(_MANY), granules.shape)
                self.readers[granules[clash]] = many[clash]

    def _bad_read(
        self, c: Convoy, ins: Instruction, granules: Any, positions: Any, writers: Any, bad: Any
    ) -> None:
        if bad.any():
            lane, part = np.argwhere(bad)[0]
            code = int(writers[lane, part])
            where = self.where(int(granules[lane, part]))
            position = int(positions[lane])
            if code >= PENDING:
                what = (
                    f"reads {where} before the wait for the asynchronous copy of warp {code & 63}"
                )
                raise c.fault(EarlyReadFault, ins, position, what)
            what = f"reads {where}, written by warp {code & 63} since the last barrier"
            raise c.fault(RaceFault, ins, position, what)
        lane, part = np.argwhere(writers < 0)[0]
        what = f"reads {self.where(int(granules[lane, part]))}, which nothing has written"
        raise c.fault(UnwrittenFault, ins, int(positions[lane]), what)

    def write(
        self, c: Convoy, ins: Instruction, granules: Any, positions: Any, same: Any = None
    ) -> None:
        """Check that lanes may write granules [n, k]. Raises RaceFault.

        ``same`` is bool [n], whether what is written is there already; None for copies.
        """
        floors, codes = c.floors[positions][:, None], c.codes[positions][:, None]
        readers = self.readers.take(granules)
        bad = (readers >= floors) & (readers != codes)
        if bad.any():
            self._bad_write(c, ins, granules, positions, readers, bad, "read")
        writers = self.writers.take(granules)
        bad = (writers >= floors) & (writers != codes)
        if bad.any():
            if same is not None:
                bad &= ~same[:, None] | (writers >= PENDING)
            if bad.any():
                self._bad_write(c, ins, granules, positions, writers, bad, "written")
        if self.proxy is not None:
            self.proxy.written(c, ins, granules, positions)

    def atomic(self, c: Convoy, ins: Instruction, granules: Any, positions: Any) -> None:
        """Check that lanes may change granules [n, k] atomically. Raises RaceFault.

        Atomic operations of different warps are no race among each other.
        """
        floors, codes = c.floors[positions][:, None], c.codes[positions][:, None]
        together = floors + np.int32(_ATOMIC)
        for noted, how in ((self.readers, "read"), (self.writers, "written")):
            found = noted.take(granules)
            bad = (found >= floors) & (found != codes) & (found != together)
            if bad.any():
                self._bad_write(c, ins, granules, positions, found, bad, how)
        if (found < 0).any():
            self._bad_read(c, ins, granules, positions, found, found < found)
        self.writers[granules] = together

    def _bad_write(
        self,
        c: Convoy,
        ins: Instruction,
        granules: Any,
        positions: Any,
        codes: Any,
        bad: Any,
        how: str,
    ) -> None:
        lane, part = np.argwhere(bad)[0]
        where, code = self.where(int(granules[lane, part])), int(codes[lane, part])
        if code >= PENDING:
            what = f"writes {where}, to which an asynchronous copy of warp {code & 63} is under way"
        else:
            who = "several warps" if code & 63 == _MANY else f"warp {code & 63}"
            what = f"writes {where}, {how} by {who} since the last barrier"
        raise c.fault(RaceFault, ins, int(positions[lane]), what)

    def where(self, granule: int) -> str:
        """A granule in words."""
        return f"shared byte {granule * self.granule % self.stride}"

    def load(
        self, c: Convoy, ins: Instruction, address: Any, dtype: Any, count: int, positions: Any
    ) -> Any:
        """[n, count] of ``dtype`` from int64 addresses [n]. Raises faults of a bad read."""
        size = dtype.itemsize * count
        place, granules = self.places(c, ins, address, size, positions)
        self.read(c, ins, granules, positions)
        return self.data.view(dtype).reshape(-1, count).take(place // size, axis=0)

    def store(self, c: Convoy, ins: Instruction, address: Any, values: Any, positions: Any) -> None:
        """Store [n, count] values to int64 addresses [n]. Raises RaceFault and its like."""
        count = values.shape[1]
        size = values.dtype.itemsize * count
        place, granules = self.places(c, ins, address, size, positions)
        cells, index = self.data.view(values.dtype).reshape(-1, count), place // size
        same = (cells.take(index, axis=0) == values).all(1)
        self.write(c, ins, granules, positions, same)
        cells[index] = values
        self.writers[granules] = c.codes[positions][:, None]
        differs = (cells.take(index, axis=0) != values).any(1)
        if differs.any():
            lane = int(np.flatnonzero(differs)[0])
            what = f"lanes store different values to shared byte {int(address[lane])}"
            raise c.fault(RaceFault, ins, int(positions[lane]), what)
