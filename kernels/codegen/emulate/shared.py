"""Shared memory, with a detector of races between warps.

Of each *granule*, the bytes of the program's smallest access, the codes of the last writer and
reader are known (``epochs.py``). Two accesses by different warps in one epoch, one of them a write,
are a race, whatever order this run happens to give them. Writing what is there already is none:
replicated layouts do that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .epochs import ATOMIC, NOBODY, PENDING, SEVERAL, bad_read, races, who, with_reader
from .faults import MisalignedFault, OutOfBoundsFault, RaceFault
from .proxy import AsyncProxy

if TYPE_CHECKING:
    from .convoy import Convoy
    from .program import PtxProgram
    from .syntax import Instruction


class SharedMemory:
    """The shared memory of all resident CTAs.

    Attributes:
        size: bytes that one CTA has.
        stride: bytes from one CTA's to the next one's.
        data: uint8 [slots * stride].
        granule: bytes that the detector tells apart.
        writers: int32, code of the last writer of each granule.
        readers: int32, code of the last reader.
        proxy: the view of products, None where the program has none.
    """

    def __init__(self, slots: int, size: int, program: PtxProgram) -> None:
        self.size = size
        self.stride = -(-size // 128) * 128 + 128
        self.granule = program.granule
        self._shift = self.granule.bit_length() - 1
        self.data = np.zeros(slots * self.stride, "u1")
        self.writers = np.full(len(self.data) // self.granule, NOBODY, "i4")
        self.readers = self.writers.copy()
        self.proxy = AsyncProxy(self) if program.has_products else None

    def enter(self, slot: int) -> None:
        """A new CTA starts in a slot: all of its bytes count as unwritten."""
        part = slice(slot * self.stride, (slot + 1) * self.stride)
        self.data[part] = 0xFF  # NaN in every type of float
        granules = self.granules_of(slot)
        self.writers[granules] = NOBODY
        self.readers[granules] = NOBODY
        if self.proxy is not None:
            self.proxy.enter(granules)

    def granules_of(self, slot: int) -> slice:
        """All granules of one CTA."""
        each = self.stride >> self._shift
        return slice(slot * each, (slot + 1) * each)

    def where(self, granule: int) -> str:
        """A granule in words."""
        return f"shared byte {granule * self.granule % self.stride}"

    def places(
        self, c: Convoy, ins: Instruction, address: Any, size: int, positions: Any
    ) -> tuple[Any, Any]:
        """Check bounds and alignment: (bytes from the start of ``data``, granules [n, k]).

        Args:
            c: whose lanes they are.
            ins: the instruction, for messages.
            address: int64 [n].
            size: bytes at each address.
            positions: [n], the lanes that they belong to.

        Raises:
            MisalignedFault: an address that is no multiple of ``size``.
            OutOfBoundsFault: bytes that the CTA does not have.
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

    def load(
        self, c: Convoy, ins: Instruction, address: Any, dtype: Any, count: int, positions: Any
    ) -> Any:
        """[n, count] of ``dtype`` from int64 addresses [n]. Raises faults of a bad read."""
        size = dtype.itemsize * count
        place, granules = self.places(c, ins, address, size, positions)
        self._read(c, ins, granules, positions)
        return self.data.view(dtype).reshape(-1, count).take(place // size, axis=0)

    def _read(self, c: Convoy, ins: Instruction, granules: Any, positions: Any) -> None:
        floors, codes = c.floors[positions][:, None], c.codes[positions][:, None]
        writers = self.writers.take(granules)
        bad = races(writers, floors, codes)
        if bad.any() or writers.min() < 0:
            self._bad_read(c, ins, granules, positions, writers, bad)
        new = with_reader(self.readers.take(granules), floors, codes)
        self.readers[granules] = new
        if not c.alone:
            clash = self.readers.take(granules) != new
            if clash.any():
                several = np.broadcast_to(floors + SEVERAL, granules.shape)
                self.readers[granules[clash]] = several[clash]

    def _bad_read(
        self, c: Convoy, ins: Instruction, granules: Any, positions: Any, writers: Any, bad: Any
    ) -> None:
        lane, part = np.argwhere(bad if bad.any() else writers < 0)[0]
        where, code = self.where(int(granules[lane, part])), int(writers[lane, part])
        kind, what = bad_read(where, code)
        raise c.fault(kind, ins, int(positions[lane]), what)

    def store(self, c: Convoy, ins: Instruction, address: Any, values: Any, positions: Any) -> None:
        """Store [n, count] values to int64 addresses [n]. Raises RaceFault and its like."""
        count = values.shape[1]
        size = values.dtype.itemsize * count
        place, granules = self.places(c, ins, address, size, positions)
        cells, index = self.data.view(values.dtype).reshape(-1, count), place // size
        same = (cells.take(index, axis=0) == values).all(1)
        self.claim(c, ins, granules, positions, same)
        cells[index] = values
        self.writers[granules] = c.codes[positions][:, None]
        differs = (cells.take(index, axis=0) != values).any(1)
        if differs.any():
            lane = int(np.flatnonzero(differs)[0])
            what = f"lanes store different values to shared byte {int(address[lane])}"
            raise c.fault(RaceFault, ins, int(positions[lane]), what)

    def claim(
        self, c: Convoy, ins: Instruction, granules: Any, positions: Any, same: Any = None
    ) -> None:
        """Check that lanes may write granules [n, k]. Raises RaceFault.

        ``same`` is bool [n], whether what is written is there already; None for copies.
        """
        floors, codes = c.floors[positions][:, None], c.codes[positions][:, None]
        readers = self.readers.take(granules)
        bad = races(readers, floors, codes)
        if bad.any():
            self._bad_write(c, ins, granules, positions, readers, bad, "read")
        writers = self.writers.take(granules)
        bad = races(writers, floors, codes)
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
        together = codes if c.machine.warps_per_cta == 1 else floors + ATOMIC
        for noted, how in ((self.readers, "read"), (self.writers, "written")):
            found = noted.take(granules)
            bad = races(found, floors, codes) & (found != together)
            if bad.any():
                self._bad_write(c, ins, granules, positions, found, bad, how)
        if (found < 0).any():
            self._bad_read(c, ins, granules, positions, found, found < found)
        if self.proxy is not None:
            self.proxy.written(c, ins, granules, positions)
        # A store of one's own stays known: it races with atomic operations of others.
        self.writers[granules] = np.where(found == codes, codes, together)

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
            what = f"writes {where}, to which an asynchronous copy of {who(code)} is under way"
        else:
            what = f"writes {where}, {how} by {who(code)} since the last barrier"
        raise c.fault(RaceFault, ins, int(positions[lane]), what)
