"""Global memory: bounds, hidden stores and stale lines.

Buffers lie in one array with gaps between them. A weak store stays with its CTA, which sees it
itself, until it is *published*: by chance, or by a release of the thread that stored it or of one
that a barrier of the CTA puts after it. A plain load leaves its 32-byte sector in the first cache
of its CTA; when others then change that sector the CTA goes on to see the old bytes until it
acquires. Both are what the memory model allows and most runs of a GPU do not show.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .faults import EarlyReadFault, MisalignedFault, OutOfBoundsFault, UnwrittenFault

if TYPE_CHECKING:
    from .convoy import Convoy
    from .syntax import Instruction

BASE = 1 << 36
"""Address of the first byte; small numbers are no addresses."""

_GAP, _ALIGNMENT, _SECTOR = 4096, 256, 32


@dataclass(frozen=True, slots=True)
class Buffer:
    """An argument in global memory.

    Attributes:
        name: for messages.
        data: uint8 [bytes], contiguous, changed in place by the run.
        written: False where nothing may read a byte before the kernel has stored it.
    """

    name: str
    data: np.ndarray[Any, np.dtype[np.uint8]]
    written: bool = True


@dataclass(slots=True)
class _Store:
    """Stores of one instruction by one CTA: threads, epoch, places [n] and bytes [n, size]."""

    threads: Any
    epoch: int
    places: Any
    data: Any


class GlobalMemory:
    """All buffers of a run, and what each CTA sees of them."""

    def __init__(self, buffers: list[Buffer]) -> None:
        self.buffers = buffers
        self.begins: list[int] = []
        end = _GAP
        for buffer in buffers:
            self.begins.append(end)
            end = -(-(end + buffer.data.size + _GAP) // _ALIGNMENT) * _ALIGNMENT
        self._bytes = np.zeros(end, "u1")
        self._owner = np.zeros(end, "u2")
        self._unwritten = np.zeros(end, bool)
        for number, (begin, buffer) in enumerate(zip(self.begins, buffers, strict=True)):
            part = slice(begin, begin + buffer.data.size)
            self._bytes[part] = buffer.data
            self._owner[part] = number + 1
            self._unwritten[part] = not buffer.written
        self._tracked = any(not buffer.written for buffer in buffers)
        self._sectors = end // _SECTOR
        self._hidden: list[list[_Store]] = []
        self._hidden_words = np.zeros(end // 4, "u2")
        self._stale: dict[tuple[int, int], Any] = {}
        self._stale_sectors = np.zeros(self._sectors, bool)
        self._cached_any = np.zeros(self._sectors, bool)
        self._cached = np.zeros((0, 0), bool)

    def open(self, slots: int) -> None:
        """Prepare for that many resident CTAs."""
        self._hidden = [[] for _ in range(slots)]
        self._cached = np.zeros((slots, self._sectors), bool)

    def enter(self, slot: int) -> None:
        """A new CTA starts in a slot; the stores of the one before become visible."""
        self._publish(slot, self._hidden[slot])
        self._hidden[slot] = []

    def address(self, number: int) -> int:
        """The address of a buffer's first byte."""
        return BASE + self.begins[number]

    def give_back(self) -> None:
        """Write everything into the buffers of the caller."""
        for begin, buffer in zip(self.begins, self.buffers, strict=True):
            buffer.data[:] = self._bytes[begin : begin + buffer.data.size]

    def places(self, c: Convoy, ins: Instruction, address: Any, size: int, positions: Any) -> Any:
        """int64 [n]: where addresses uint64 [n] are in the array, for an access that touches them.

        Raises OutOfBoundsFault, MisalignedFault, or EarlyReadFault before the wait for the kernels
        before this one.
        """
        awaited = c.machine.awaited.take(c.threads[positions])
        if not awaited.all():
            what = "touches global memory before the wait for the kernel before this one"
            bad = int(np.flatnonzero(~awaited)[0])
            raise c.fault(EarlyReadFault, ins, int(positions[bad]), what)
        return self.found(c, ins, address, size, positions)

    def found(self, c: Convoy, ins: Instruction, address: Any, size: int, positions: Any) -> Any:
        """The same for an instruction that reads nothing and writes nothing."""
        place = address.view("i8") - BASE
        inside = (place >= 0) & (place < len(self._bytes) - size)
        if inside.all():
            owner = self._owner.take(place)
            inside = (owner != 0) & (owner == self._owner.take(place + (size - 1)))
        if not inside.all():
            bad = int(np.flatnonzero(~inside)[0])
            what = f"{size} bytes at {self.name(int(place[bad]))}"
            raise c.fault(OutOfBoundsFault, ins, int(positions[bad]), what)
        if (place & (size - 1)).any():
            bad = int(np.flatnonzero(place & (size - 1))[0])
            what = f"{self.name(int(place[bad]))} is no multiple of {size}"
            raise c.fault(MisalignedFault, ins, int(positions[bad]), what)
        return place

    def name(self, place: int) -> str:
        """Buffer and offset of a place, the nearest one where it is outside of all."""
        ends = [begin + b.data.size for begin, b in zip(self.begins, self.buffers, strict=True)]
        if not ends:
            return f"address {place + BASE:#x}, without any buffer"
        far = [
            max(begin - place, place - end + 1, 0)
            for begin, end in zip(self.begins, ends, strict=True)
        ]
        number = min(range(len(far)), key=far.__getitem__)
        buffer = self.buffers[number]
        offset = place - self.begins[number]
        if far[number] == 0:
            return f"{buffer.name} + {offset}"
        if far[number] < 1 << 32:
            return f"{buffer.name} + {offset}, which has {buffer.data.size} bytes"
        return f"address {place + BASE:#x}, far from all buffers"

    def load(
        self, c: Convoy, ins: Instruction, place: Any, size: int, positions: Any, coherent: bool
    ) -> Any:
        """uint8 [n, size] from places that are checked. Raises UnwrittenFault.

        ``coherent`` loads pass the first cache by.
        """
        words = np.dtype(f"u{min(size, 8)}")
        many = max(1, size // 8)
        data = self._bytes.view(words).reshape(-1, many).take(place // size, axis=0)
        data = data.view("u1").reshape(-1, size)
        if not coherent:
            slots, sectors = c.slots[positions], place >> 5
            if self._stale and (stale := self._stale_sectors.take(sectors)).any():
                self._see_stale(data, slots, place, size, np.flatnonzero(stale))
            self._cached[slots, sectors] = True
            self._cached_any[sectors] = True
        own = None
        words_of = self._hidden_words.view(f"u{max(size // 2, 2)}")  # all counts of an access
        if words_of.take(place // max(size, 4)).any():
            own = self._see_own(data, c.slots[positions], place, size)
        if self._tracked:
            self._check_written(c, ins, place, size, positions, own)
        return data

    def _check_written(
        self, c: Convoy, ins: Instruction, place: Any, size: int, positions: Any, own: Any
    ) -> None:
        missing = self._unwritten.reshape(-1, size).take(place // size, axis=0)
        if own is not None:
            missing = missing & ~own
        if missing.any():
            bad = int(np.flatnonzero(missing.any(1))[0])
            what = f"reads {self.name(int(place[bad]))}, which nothing has written that it can see"
            raise c.fault(UnwrittenFault, ins, int(positions[bad]), what)

    def _see_stale(self, data: Any, slots: Any, place: Any, size: int, lanes: Any) -> None:
        for lane in lanes.tolist():
            begin = int(place[lane])
            old = self._stale.get((int(slots[lane]), begin >> 5))
            if old is not None:
                data[lane] = old[begin & 31 : (begin & 31) + size]

    def _see_own(self, data: Any, slots: Any, place: Any, size: int) -> Any:
        """Put hidden stores of the readers' CTAs over data; bool [n, size] of such bytes."""
        own = np.zeros(data.shape, bool)
        for slot in np.unique(slots).tolist():
            if not self._hidden[slot]:
                continue
            known = {}
            for store in self._hidden[slot]:
                width = store.data.shape[1]
                spots = (store.places[:, None] + np.arange(width)).reshape(-1)
                known.update(zip(spots.tolist(), store.data.reshape(-1).tolist(), strict=True))
            for lane in np.flatnonzero(slots == slot).tolist():
                begin = int(place[lane])
                for byte in range(size):
                    if begin + byte in known:
                        data[lane, byte] = known[begin + byte]
                        own[lane, byte] = True
        return own

    def store(self, c: Convoy, ins: Instruction, place: Any, data: Any, positions: Any) -> None:
        """Hide stores of uint8 [n, size] to places that are checked."""
        size = data.shape[1]
        slots, threads = c.slots[positions], c.threads[positions]
        for slot in np.unique(slots).tolist():
            mine = slots == slot
            store = _Store(threads[mine], int(c.machine.epochs[slot]), place[mine], data[mine])
            self._hidden[slot].append(store)
        self._count_hidden(place, size, 1)

    def _count_hidden(self, place: Any, size: int, step: int) -> None:
        words = place >> 2
        if size > 4:
            words = (words[:, None] + np.arange(size // 4)).reshape(-1)
        change = np.add if step > 0 else np.subtract
        change.at(self._hidden_words, words, np.uint16(1))

    def release(self, c: Convoy, thread: int) -> None:
        """Publish what a thread stored, and what its CTA stored before the last barrier."""
        slot = thread // c.machine.program.threads
        epoch = int(c.machine.epochs[slot])
        self._publish_where(slot, lambda s: (s.threads == thread) | (s.epoch < epoch))

    def settle(self, slot: int, place: int, size: int) -> None:
        """Publish a CTA's hidden stores to some bytes, before an atomic operation on them."""
        if self._hidden_words[place >> 2 : (place + size + 3) >> 2].any():
            end = place + size
            self._publish_where(
                slot, lambda s: (s.places < end) & (s.places + s.data.shape[1] > place)
            )

    def _publish_where(self, slot: int, chosen: Callable[[_Store], Any]) -> None:
        kept = []
        for store in self._hidden[slot]:
            now = chosen(store)
            if now.any():
                self._publish(slot, [_part(store, now)])
                store = _part(store, ~now)
            if len(store.threads):
                kept.append(store)
        self._hidden[slot] = kept

    def acquire(self, slot: int) -> None:
        """From here on a CTA sees what is published."""
        self._cached[slot] = False
        for key in [key for key in self._stale if key[0] == slot]:
            del self._stale[key]

    def publish_some(self, chance: random.Random) -> None:
        """Publish some stores of a random CTA, in any order that keeps each byte's own."""
        slot = chance.randrange(len(self._hidden))
        stores = self._hidden[slot]
        if not stores:
            return
        # Stores to a word that has several may not overtake each other; then a beginning goes.
        several = any((self._hidden_words.take(store.places >> 2) > 1).any() for store in stores)
        if several:
            chosen = [place < chance.randint(0, len(stores)) for place in range(len(stores))]
            chosen.sort(reverse=True)
        else:
            chosen = [chance.random() < 0.5 for _ in stores]
        self._publish(slot, [s for s, now in zip(stores, chosen, strict=True) if now])
        self._hidden[slot] = [s for s, now in zip(stores, chosen, strict=True) if not now]

    def publish_all(self) -> None:
        """The end of the kernel: everything is visible."""
        for slot, stores in enumerate(self._hidden):
            self._publish(slot, stores)
            self._hidden[slot] = []

    def _publish(self, slot: int, stores: list[_Store]) -> None:
        for store in stores:
            self.commit(slot, store.places, store.data)
            self._count_hidden(store.places, store.data.shape[1], -1)

    def commit(self, slot: int, place: Any, data: Any) -> None:
        """Change bytes [n, size] for all; other CTAs keep the sectors that they have cached."""
        size = data.shape[1]
        sectors = place >> 5
        if self._cached_any.take(sectors).any():
            self._keep_stale(slot, place, data)
        words = np.dtype(f"u{min(size, 8)}")
        many = max(1, size // 8)
        cells = np.ascontiguousarray(data).view(words).reshape(-1, many)
        self._bytes.view(words).reshape(-1, many)[place // size] = cells
        if self._tracked:
            self._unwritten.reshape(-1, size)[place // size] = False

    def _keep_stale(self, slot: int, place: Any, data: Any) -> None:
        for sector in np.unique(place >> 5).tolist():
            for other in np.flatnonzero(self._cached[:, sector]).tolist():
                key = other, sector
                if other != slot and key not in self._stale:
                    self._stale[key] = self._bytes[32 * sector : 32 * sector + 32].copy()
                    self._stale_sectors[sector] = True
        for begin, row in zip(place.tolist(), data, strict=True):
            old = self._stale.get((slot, begin >> 5))
            if old is not None:  # a CTA's own stores go through to its cache
                old[begin & 31 : (begin & 31) + len(row)] = row

    def exchange(self, slot: int, place: int, size: int, work: Any) -> int:
        """Replace ``size`` bytes by ``work`` of their old value at once; gives the old value."""
        dtype = np.dtype(f"u{size}")
        old = int(self._bytes[place : place + size].view(dtype)[0])
        new = np.array([work(old) & ((1 << 8 * size) - 1)], dtype)
        self.commit(slot, np.array([place]), new.view("u1").reshape(1, size))
        return old

    def unwritten(self, place: int, size: int) -> bool:
        """Whether some of these bytes have never been stored."""
        return bool(self._unwritten[place : place + size].any())


def _part(store: _Store, chosen: Any) -> _Store:
    return _Store(store.threads[chosen], store.epoch, store.places[chosen], store.data[chosen])
