"""Snapshots of what a model keeps once per sequence, taken where a block of the text ends.

Such a state stands for everything before one position and cannot be cut back, so keys and values
that the prefix cache holds are of use only up to a border at which the state was put aside. Pure
Python, no torch: a slot is an index into the memory of all states, behind those of the rows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from .block_pool import Prefix

# A long prompt's state is put aside every so many tokens, beside its last block border.
SNAPSHOT_TOKENS = 8192


class SnapshotPool:
    """Which slot holds the state after which text; the one not asked for the longest goes first.

    Args:
        first: the first slot, after those of the rows.
        count: slots; 0 = no state is put aside, so there are no prefix hits.
        block_size: tokens in a block.
        every: tokens between two snapshots of a long prompt.
    """

    def __init__(
        self, first: int, count: int, block_size: int, every: int = SNAPSHOT_TOKENS
    ) -> None:
        self._count = count
        self._first = first
        self._size = block_size
        self._every = max(every // block_size, 1) * block_size
        self._free = list(range(first + count - 1, first - 1, -1))
        self._held: OrderedDict[bytes, tuple[Prefix, int]] = OrderedDict()
        self._reserved: set[int] = set()

    def __len__(self) -> int:
        return self._count

    @property
    def held(self) -> int:
        """Snapshots that a prompt may begin with."""
        return len(self._held)

    def stop(self, computed: int, prompt: int) -> int:
        """Where a chunk that begins at ``computed`` has to end at the latest, so that a state can
        be put aside there; 0 = anywhere.

        The last border of a prompt lies before its last token, which is always computed.
        """
        last = (prompt - 1) // self._size * self._size
        if not self._count or computed >= last:
            return 0
        return min((computed // self._every + 1) * self._every, last)

    def covered(self, prefixes: Sequence[Prefix]) -> int:
        """How many of a text's first blocks are of use: up to the last with a snapshot."""
        for count in range(len(prefixes), 0, -1):
            if self._find(prefixes[count - 1]) is not None:
                return count
        return 0

    def slot(self, prefix: Prefix) -> int:
        """The slot with the state after a text that :meth:`covered` found."""
        slot = self._find(prefix)
        assert slot is not None, "a text is continued that has no snapshot"
        self._held.move_to_end(prefix.digest)
        return slot

    def reserve(self) -> int:
        """A slot to put a state into, -1 when all wait for theirs; :meth:`settle` must follow."""
        if self._free:
            slot = self._free.pop()
        elif self._held:
            _, (_, slot) = self._held.popitem(last=False)
        else:
            return -1
        self._reserved.add(slot)
        return slot

    def settle(self, slot: int, prefix: Prefix | None) -> None:
        """The state after ``prefix`` is in a reserved slot; None: it is not, or of no use."""
        self._reserved.remove(slot)
        if prefix is None or prefix.digest in self._held:
            self._free.append(slot)
        else:
            self._held[prefix.digest] = prefix, slot

    def check(self, reserved: int = -1) -> None:
        """Raise AssertionError when a slot is lost or in two places, or so many do not wait."""
        every = [*self._free, *self._reserved, *(slot for _, slot in self._held.values())]
        assert sorted(every) == list(range(self._first, self._first + self._count)), "a slot leaked"
        assert reserved in (-1, len(self._reserved)), "a slot waits for a state that never comes"

    def _find(self, prefix: Prefix) -> int | None:
        known, slot = self._held.get(prefix.digest, (None, 0))
        return slot if known is not None and known.same(prefix) else None
