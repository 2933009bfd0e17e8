"""Paged KV memory: reference-counted blocks, free ones by what they hold, a verified prefix index.

Pure Python, no torch. Invariants, checked by :meth:`BlockPool.check`: a block is free exactly
when nobody references it; a block in the prefix index keeps its tokens until it is handed out
again; nothing is ever freed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """A text cut into blocks, known by its last block and the prefix before that.

    Attributes:
        digest: key in the index; another text may have the same one.
        parent: the text before this block, None at the beginning.
        tokens: the block's tokens.
        extra_key: namespace.
    """

    digest: bytes
    parent: Prefix | None
    tokens: tuple[int, ...]
    extra_key: bytes

    def same(self, other: Prefix) -> bool:
        """Whether both stand for the same tokens in the same namespace, from the beginning on."""
        a: Prefix | None = self
        b: Prefix | None = other
        # Prefixes share their parents, so this goes one step as a rule.
        while a is not b:
            if a is None or b is None or a.tokens != b.tokens or a.extra_key != b.extra_key:
                return False
            a, b = a.parent, b.parent
        return True


@dataclass(slots=True)
class _Block:
    """One block and its links in the list of free blocks that hold a prefix (-1 = none)."""

    index: int
    references: int = 0
    prefix: Prefix | None = None
    previous: int = -1
    next: int = -1


class BlockPool:
    """Hands out fixed-size KV blocks and finds blocks that already hold a prompt's beginning.

    Args:
        count: number of blocks.
        block_size: tokens in a block.
        keep: how many blocks may be touched for the sake of the prefix index; beyond them the
            least recently used prefix goes before a block that was never used. None: all.

    Free blocks are handed out in this order: those that hold no prefix, the last one freed first,
    so that the memory touched stays what is needed at once; blocks never used, as far as ``keep``
    goes; prefixes, least recently used first; the rest of those never used. Prefixes are doubly
    linked inside the blocks, so that a hit takes a block out of their middle in O(1).
    """

    def __init__(self, count: int, block_size: int, keep: int | None = None) -> None:
        self.block_size = block_size
        self._blocks = [_Block(i) for i in range(count)]
        self._keep = count if keep is None else min(keep, count)
        self._touched = 0
        self._empty: list[int] = []
        self._head = self._tail = -1
        self._cached = 0
        self._index: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def free_count(self) -> int:
        """Blocks that nobody references."""
        return len(self._empty) + self._cached + len(self._blocks) - self._touched

    @property
    def keep(self) -> int:
        """Blocks that may be touched for the sake of the prefix index."""
        return self._keep

    @property
    def touched(self) -> int:
        """Blocks that were handed out at least once: those whose memory the system has given."""
        return self._touched

    def match(self, tokens: Sequence[int], extra_key: bytes = b"") -> list[int]:
        """Cached blocks that hold the longest beginning of ``tokens``, whole blocks only.

        A hit is confirmed by comparing the stored tokens and all before them, so a hash
        collision cannot mix two texts. The blocks are not referenced yet: call :meth:`share`
        before anything else.
        """
        found: list[int] = []
        parent: Prefix | None = None
        for start in range(0, len(tokens) - self.block_size + 1, self.block_size):
            wanted = _prefix(parent, tuple(tokens[start : start + self.block_size]), extra_key)
            index = self._index.get(wanted.digest)
            parent = None if index is None else self._blocks[index].prefix
            if index is None or parent is None or not parent.same(wanted):
                break
            found.append(index)
        return found

    def texts(self, blocks: Sequence[int]) -> list[Prefix]:
        """The texts up to the ends of blocks that :meth:`match` found."""
        prefixes = [self._blocks[index].prefix for index in blocks]
        return [prefix for prefix in prefixes if prefix is not None]

    def allocate(self, count: int) -> list[int] | None:
        """``count`` blocks with one reference each, or None (and nothing taken) if too few."""
        if count > self.free_count():
            return None
        return [self._take() for _ in range(count)]

    def share(self, blocks: Sequence[int]) -> None:
        """Add one reference to each block that :meth:`match` found; its contents stay."""
        for index in blocks:
            block = self._blocks[index]
            if block.references == 0:
                self._unlink(block)
            block.references += 1

    def publish(
        self,
        index: int,
        parent: Prefix | None,
        tokens: tuple[int, ...],
        extra_key: bytes = b"",
    ) -> Prefix:
        """Enter a full, computed block into the prefix index; returns the text up to its end.

        When an equal block, or another one of the same hash, is indexed already, that one stays
        and this one keeps no entry.
        """
        assert len(tokens) == self.block_size and self._blocks[index].references > 0
        prefix = _prefix(parent, tokens, extra_key)
        holder = self._index.get(prefix.digest)
        if holder is not None:
            known = self._blocks[holder].prefix
            return known if known is not None and known.same(prefix) else prefix
        self._blocks[index].prefix = prefix
        self._index[prefix.digest] = index
        return prefix

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference of each block of a table, tail first.

        Tail first means that the end of a text is reused before its beginning, which other
        texts are likelier to share.
        """
        for index in reversed(blocks):
            block = self._blocks[index]
            assert block.references > 0, f"block {index} freed twice"
            block.references -= 1
            if block.references:
                continue
            if block.prefix is None:
                self._empty.append(index)
            else:
                self._append(block)

    def check(self) -> None:
        """Raise AssertionError when an invariant is broken (tests, and the idle engine)."""
        seen: set[int] = set()
        index, previous = self._head, -1
        while index != -1:
            block = self._blocks[index]
            assert block.prefix is not None, f"block {index} holds nothing and is kept"
            assert index not in seen, f"block {index} is on the list twice"
            assert block.previous == previous, f"block {index} has a wrong back link"
            seen.add(index)
            previous, index = index, block.next
        assert previous == self._tail and len(seen) == self._cached
        for index in [*self._empty, *range(self._touched, len(self._blocks))]:
            assert index not in seen, f"block {index} is free twice"
            assert self._blocks[index].prefix is None, f"block {index} holds a prefix"
            seen.add(index)
        for block in self._blocks:
            assert (block.index in seen) == (block.references == 0), f"block {block.index} leaked"
        for digest, index in self._index.items():
            prefix = self._blocks[index].prefix
            assert prefix and prefix.digest == digest, f"stale prefix entry for block {index}"

    def _take(self) -> int:
        """Hand out the block whose contents are missed least."""
        if self._empty:
            index = self._empty.pop()
        elif self._touched < (self._keep if self._cached else len(self._blocks)):
            index, self._touched = self._touched, self._touched + 1
        else:
            index = self._head
        block = self._blocks[index]
        if block.prefix is not None:
            self._unlink(block)
            del self._index[block.prefix.digest]
            block.prefix = None
        block.references = 1
        return index

    def _unlink(self, block: _Block) -> None:
        if block.previous == -1:
            self._head = block.next
        else:
            self._blocks[block.previous].next = block.next
        if block.next == -1:
            self._tail = block.previous
        else:
            self._blocks[block.next].previous = block.previous
        block.previous = block.next = -1
        self._cached -= 1

    def _append(self, block: _Block) -> None:
        block.previous, block.next = self._tail, -1
        if self._tail == -1:
            self._head = block.index
        else:
            self._blocks[self._tail].next = block.index
        self._tail = block.index
        self._cached += 1


def _prefix(parent: Prefix | None, tokens: tuple[int, ...], extra_key: bytes) -> Prefix:
    digest = block_hash(parent.digest if parent else None, tokens, extra_key)
    return Prefix(digest, parent, tokens, extra_key)


def block_hash(parent: bytes | None, tokens: Sequence[int], extra_key: bytes) -> bytes:
    """Chained BLAKE2b-128 of a block's tokens, its parent's hash and a namespace key."""
    # A key may have 64 bytes; a longer one is hashed, for cut off it would meet others.
    key = extra_key if len(extra_key) <= 64 else blake2b(extra_key).digest()
    digest = blake2b(digest_size=16, key=key)
    digest.update(parent or b"")
    digest.update(b"".join(t.to_bytes(4, "little") for t in tokens))
    return digest.digest()
