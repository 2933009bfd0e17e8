"""Block pool against a plain model of it: references, reuse order, and what may be shared."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule

import halfbyte.engine.schedule.block_pool as block_pool_module
from halfbyte.engine.schedule.block_pool import BlockPool, Prefix, block_hash

SIZE = 2


def publish_all(pool: BlockPool, blocks: list[int], tokens: list[int], key: bytes = b"") -> None:
    """Enter a text's whole blocks into the index."""
    parent: Prefix | None = None
    size = pool.block_size
    for index in range(len(tokens) // size):
        piece = tuple(tokens[index * size : (index + 1) * size])
        parent = pool.publish(blocks[index], parent, piece, key)


class Pool(RuleBasedStateMachine):
    """Texts hold tables of blocks; the model knows what each block holds and who refers to it."""

    tables = Bundle("tables")

    @initialize(count=st.integers(1, 8), keep=st.none() | st.integers(0, 8))
    def start(self, count: int, keep: int | None) -> None:
        self.pool = BlockPool(count, SIZE, keep)
        self.keep = count if keep is None else keep
        self.references: Counter[int] = Counter()
        self.empty: list[int] = []  # freed without a prefix, the last one handed out first
        self.kept: list[int] = []  # freed with a prefix, the first one handed out first
        self.fresh = list(range(count))  # never handed out
        self.holder: dict[tuple[int, ...], int] = {}  # all tokens up to a block's end -> block

    def take(self) -> int:
        """The policy in a few words: what is missed least goes first."""
        touched = len(self.pool) - len(self.fresh)
        if self.empty:
            return self.empty.pop()
        if self.fresh and (touched < self.keep or not self.kept):
            return self.fresh.pop(0)
        block = self.kept.pop(0)
        self.holder = {text: b for text, b in self.holder.items() if b != block}
        return block

    @property
    def free(self) -> int:
        return len(self.empty) + len(self.kept) + len(self.fresh)

    @rule(
        target=tables,
        tokens=st.lists(st.integers(0, 1), min_size=SIZE, max_size=8),
        computed=st.booleans(),
    )
    def begin(self, tokens: list[int], computed: bool) -> list[int]:
        """Look up, share, allocate the rest, compute, publish: what an admission does.

        A request that is cancelled or fails before it computed publishes nothing.
        """
        texts = [tuple(tokens[: end + SIZE]) for end in range(0, len(tokens) - SIZE + 1, SIZE)]
        hit = self.pool.match(tokens)
        assert hit == [self.holder[text] for text in texts[: len(hit)]], "a wrong block was shared"
        assert len(hit) == len(texts) or texts[len(hit)] not in self.holder, "a block was missed"
        self.pool.share(hit)
        for block in hit:
            self.references[block] += 1
            if block in self.kept:
                self.kept.remove(block)
        need = -(-len(tokens) // SIZE) - len(hit)
        fresh = self.pool.allocate(need)
        if need > self.free:
            assert fresh is None
            self.give_up(hit)
            return []
        assert fresh is not None and fresh == [self.take() for _ in range(need)], (
            "what is missed least must go first"
        )
        for block in fresh:
            self.references[block] += 1
        table = hit + fresh
        if computed:
            publish_all(self.pool, table, tokens)
            for text, block in zip(texts, table, strict=False):
                self.holder.setdefault(text, block)
        return table

    @rule(table=consumes(tables))
    def give_up(self, table: list[int]) -> None:
        self.pool.release(table)
        for block in reversed(table):
            self.references[block] -= 1
            if not self.references[block]:
                kept = block in self.holder.values()
                (self.kept if kept else self.empty).append(block)

    @rule()
    def check(self) -> None:
        self.pool.check()
        assert self.pool.free_count() == self.free
        assert self.pool.touched == len(self.pool) - len(self.fresh)
        assert len(self.pool) - self.free == sum(1 for n in self.references.values() if n)


TestPool = Pool.TestCase
TestPool.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, print_blob=True
)


def test_double_free_asserts() -> None:
    pool = BlockPool(4, SIZE)
    blocks = pool.allocate(2)
    assert blocks is not None
    pool.release(blocks)
    with pytest.raises(AssertionError, match=f"block {blocks[1]} freed twice"):
        pool.release(blocks)


def test_all_or_nothing() -> None:
    pool = BlockPool(3, SIZE)
    assert pool.allocate(4) is None and pool.free_count() == 3
    assert pool.allocate(0) == []
    assert sorted(pool.allocate(3) or []) == [0, 1, 2]
    assert pool.allocate(1) is None
    pool.check()


def test_the_tail_of_a_text_is_evicted_first() -> None:
    pool = BlockPool(4, SIZE)
    text = [1, 2, 3, 4, 5, 6]
    blocks = pool.allocate(3) or []
    publish_all(pool, blocks, text)
    pool.release(blocks)
    # The never-used block goes first, then the text from its end.
    assert pool.allocate(1) == [3]
    assert pool.match(text) == blocks
    for left in (2, 1, 0):
        assert pool.allocate(1) == [blocks[left]]
        assert pool.match(text) == blocks[:left]


def test_a_freed_block_is_found_again_and_kept_from_reuse() -> None:
    pool = BlockPool(3, SIZE)
    text = [1, 2, 3, 4]
    blocks = pool.allocate(2) or []
    publish_all(pool, blocks, text)
    pool.release(blocks)
    hit = pool.match(text)
    assert hit == blocks
    pool.share(hit)
    assert pool.free_count() == 1 and pool.allocate(2) is None
    pool.check()


def test_only_whole_blocks_from_the_beginning_match() -> None:
    pool = BlockPool(4, SIZE)
    blocks = pool.allocate(2) or []
    publish_all(pool, blocks, [1, 2, 3, 4])
    assert pool.match([1]) == []
    assert pool.match([1, 2, 3]) == blocks[:1]
    assert pool.match([1, 2, 3, 5]) == blocks[:1]
    assert pool.match([3, 4]) == [], "a block is known with all that is before it"
    assert pool.match([1, 2, 3, 4], b"salt") == []


def test_short_texts_go_round_in_the_same_memory() -> None:
    """None of them fills a block, so nothing of them is worth keeping."""
    pool = BlockPool(1000, SIZE)
    for _ in range(500):
        tables = [pool.allocate(1) or [] for _ in range(3)]
        for table in tables:
            pool.release(table)
    assert pool.touched == 3
    pool.check()


def test_prefixes_take_no_more_fresh_memory_than_they_may() -> None:
    pool = BlockPool(100, SIZE, keep=10)
    for number in range(50):
        table = pool.allocate(2) or []
        publish_all(pool, table, [number, 1, number, 2])
        pool.release(table)
    assert pool.touched == 10
    assert len(pool.match([49, 1, 49, 2])) == 2 and pool.match([0, 1]) == []
    # What is in use at once is never refused for their sake.
    assert len(pool.allocate(100) or []) == 100
    pool.check()


def test_equal_blocks_keep_one_entry() -> None:
    pool = BlockPool(4, SIZE)
    first, second = pool.allocate(1) or [], pool.allocate(1) or []
    a = pool.publish(first[0], None, (1, 2))
    b = pool.publish(second[0], None, (1, 2))
    assert a is b and pool.match([1, 2]) == first
    pool.release(second)
    assert pool.match([1, 2]) == first
    pool.check()


def test_a_beginning_computed_again_leads_to_its_cached_continuation() -> None:
    """The first block is evicted while a later one is in use; its return finds that one again."""
    pool = BlockPool(3, SIZE)
    blocks = pool.allocate(2) or []
    publish_all(pool, blocks, [1, 2, 3, 4])
    pool.release(blocks[:1])
    assert pool.allocate(2) == [2, blocks[0]]
    assert pool.match([1, 2, 3, 4]) == []
    pool.publish(2, None, (1, 2))
    assert pool.match([1, 2, 3, 4]) == [2, blocks[1]]


def test_colliding_parents_do_not_lead_into_another_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """[1 2][7 8] is cached, [1 2] evicted and [3 4], of the same hash, put in its place."""

    def same_for_beginnings(parent: bytes | None, tokens: tuple[int, ...], key: bytes) -> bytes:
        return b"beginning" if parent is None else block_hash(parent, tokens, key)

    monkeypatch.setattr(block_pool_module, "block_hash", same_for_beginnings)
    pool = BlockPool(3, SIZE)
    blocks = pool.allocate(2) or []
    publish_all(pool, blocks, [1, 2, 7, 8])
    pool.release(blocks[:1])
    assert pool.allocate(2) == [2, blocks[0]]
    pool.publish(2, None, (3, 4))
    assert pool.match([3, 4, 7, 8]) == [2]
    assert pool.match([1, 2, 7, 8]) == []


def test_hash_depends_on_everything() -> None:
    base = block_hash(None, (1, 2), b"")
    others = [
        block_hash(base, (1, 2), b""),
        block_hash(None, (2, 1), b""),
        block_hash(None, (1, 2 << 8), b""),
        block_hash(None, (1, 2, 0), b""),
        block_hash(None, (1, 2), b"a"),
        block_hash(None, (1, 2), b"x" * 64),
        block_hash(None, (1, 2), b"x" * 65),
        block_hash(None, (1, 2), b"x" * 66),
    ]
    assert len({base, *others}) == len(others) + 1
    assert base == block_hash(None, [1, 2], b"") and len(base) == 16
