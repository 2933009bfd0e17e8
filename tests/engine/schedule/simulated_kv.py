"""A stand-in for the model runner that proves, slot by slot, that every key a token needs is there.

Each prefix of tokens (under a cache salt) has one exact identity. Computing a position stores its
prefix's identity in the KV slot; before that, the slots of all earlier positions must hold theirs.
Where the model keeps a state per sequence, too, each slot of states holds the identity of the one
prefix that its state stands for, and a row that goes on must find that of its own text there.
The next token is a hash of the prefix, so what a prompt answers alone can be worked out without any
scheduler. How many tokens follow it unasked, as a grammar forces them, is a hash as well, and makes
no difference to the text.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import halfbyte.engine.schedule.scheduler as scheduler_module
from halfbyte.engine.request import FinishReason, Request, Sampled, TokenEvent
from halfbyte.engine.schedule.block_pool import BlockPool
from halfbyte.engine.schedule.plan import RowWork, StepPlan, StepResult
from halfbyte.engine.schedule.scheduler import Scheduler
from halfbyte.engine.schedule.scheduler_state import SchedulerConfig
from halfbyte.engine.schedule.snapshots import SnapshotPool

Failure = Literal["early", "late"] | None

END = 0
GARBAGE = -1


class Prefixes:
    """Exact identities of token sequences: equal iff all tokens (and the salt) are."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, int], int] = {}

    def root(self, salt: str) -> int:
        return self._known.setdefault((salt, -1), len(self._known))

    def extend(self, prefix: int, token: int) -> int:
        return self._known.setdefault((prefix, token), len(self._known))

    def chain(self, salt: str, tokens: list[int]) -> list[int]:
        out, at = [], self.root(salt)
        for token in tokens:
            at = self.extend(at, token)
            out.append(at)
        return out


def next_token(tokens: list[int]) -> int:
    """What the model answers after ``tokens``: 0 (the end) to 6."""
    return zlib.crc32(bytes(tokens)) % 7


def drawn(tokens: list[int], request: Request) -> int:
    """What the sampler draws: below ``min_tokens`` no token that would end the text."""
    params, token = request.params, next_token(tokens)
    if len(tokens) - len(request.prompt) < params.min_tokens:
        ends = {*params.stop_token_ids, *(() if params.ignore_eos else (END,))}
        while token in ends:
            token = (token + 1) % 7
    return token


@dataclass(frozen=True, slots=True)
class Forcing:
    """Stands for a grammar as ``Request.draw``: up to ``most`` tokens follow a drawn one."""

    most: int

    def count(self, tokens: list[int]) -> int:
        return zlib.crc32(bytes([7, *tokens])) % (self.most + 1)


def step_tokens(tokens: list[int], request: Request, max_context: int) -> list[int]:
    """What a step gives after ``tokens``: the drawn token, and those that are forced.

    As many as still have room in the answer, as with the engine's sampler.
    """
    room = max_context - len(tokens)
    if request.params.max_tokens is not None:
        room = min(room, request.params.max_tokens - (len(tokens) - len(request.prompt)))
    text = [*tokens, drawn(tokens, request)]
    if request.draw is not None:
        for _ in range(min(request.draw.count(text), room - 1)):
            text.append(drawn(text, request))
    return text[len(tokens) :]


@dataclass(slots=True)
class Shown:
    """A reader that checks what it is shown: each position of the prompt, in order.

    Attributes:
        length: of the prompt.
        begin: the first position of interest.
        hidden: hidden states are read.
        seen: positions up to this one were shown.
        shown: positions in all, those that came again after a preemption included.
    """

    length: int
    begin: int = 0
    hidden: bool = False
    seen: int = -1
    shown: int = 0

    def read(self, start: int, rows_TC: Any) -> None:
        raise AssertionError("nothing is computed here")

    def show(self, start: int, count: int) -> None:
        """What ``read`` would be called with: ``count`` positions from ``start``."""
        self.seen = max(self.seen, self.begin)
        assert self.begin <= start <= self.seen, f"position {start} is shown after {self.seen}"
        assert start + count <= self.length, "more than the prompt is shown"
        self.seen = max(self.seen, start + count)
        self.shown += count

    @property
    def complete(self) -> bool:
        return self.seen == self.length or self.begin >= self.length


def alone(request: Request, max_context: int) -> tuple[list[int], FinishReason]:
    """Tokens and finish of a request that has the machine to itself, from the definitions."""
    tokens, params = list(request.prompt), request.params
    if params.max_tokens == 0:
        return [], FinishReason.LENGTH
    while True:
        token = drawn(tokens, request)
        tokens.append(token)
        count = len(tokens) - len(request.prompt)
        stops = (token == END and not params.ignore_eos) or token in params.stop_token_ids
        if stops:
            return tokens[len(request.prompt) :], FinishReason.STOP
        if count == params.max_tokens or len(tokens) >= max_context:
            return tokens[len(request.prompt) :], FinishReason.LENGTH


@dataclass(slots=True)
class _Row:
    """Tokens that the device knows, the identities of their prefixes, and its blocks."""

    owner: str
    tokens: list[int]
    chain: list[int]
    blocks: list[int]


@dataclass(slots=True)
class Simulation:
    """A scheduler, its pool and simulated memory; ``step`` runs one step as the engine does."""

    block_size: int
    blocks: int
    config: SchedulerConfig
    overlap: bool = False
    keep: int | None = None
    clock: Callable[[tuple[RowWork, ...]], float] | None = None
    slots: int | None = None
    every: int = 8
    seconds: list[float] = field(default_factory=list)
    pool: BlockPool = field(init=False)
    scheduler: Scheduler = field(init=False)
    prefixes: Prefixes = field(default_factory=Prefixes)
    memory: dict[tuple[int, int], int] = field(default_factory=dict)
    states: dict[int, int] = field(default_factory=dict)
    snapshots: SnapshotPool | None = None
    saved: int = 0
    restored: int = 0
    rows: dict[int, _Row] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)
    outputs: dict[str, list[int]] = field(default_factory=dict)
    finished: dict[str, FinishReason] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    computed: dict[str, int] = field(default_factory=dict)
    prompts_done: set[str] = field(default_factory=set)
    forced: int = 0
    nothing_drawn: int = 0
    plans: list[StepPlan] = field(default_factory=list)
    pending: tuple[StepPlan, StepResult] | None = None
    idle: int = 0

    def __post_init__(self) -> None:
        self.pool = BlockPool(self.blocks, self.block_size, self.keep)
        if self.slots is not None:
            slots = self.slots if self.config.prefix_cache else 0
            batch = self.config.max_batch
            self.snapshots = SnapshotPool(batch, slots, self.block_size, self.every)
        self.scheduler = Scheduler(self.config, self.pool, frozenset({END}), self.snapshots)

    def add(self, request: Request) -> None:
        self.requests[request.id] = request
        self.outputs[request.id] = []
        self.scheduler.add(request)

    @property
    def live(self) -> list[str]:
        ended = self.finished.keys() | self.silent
        return sorted(self.requests.keys() - ended)

    def has_work(self) -> bool:
        return self.scheduler.has_work() or self.pending is not None

    def cancel(self, name: str) -> None:
        self.scheduler.cancel(name)
        self.cancelled.add(name)

    def end_silently(self, name: str) -> None:
        """As the engine does when a stop string ends a text."""
        self.scheduler.end(name, FinishReason.STOP, report=False)
        self.silent.add(name)

    def step(self, fail: Failure = None) -> StepPlan:
        """One step; it may fail before or after the step before it is committed."""
        plan = self.scheduler.schedule()
        self.plans.append(plan)
        self._check_plan(plan)
        if fail and plan.work:
            self._garble(plan)
            if fail == "late":
                self._commit_pending()
            self._take(self.scheduler.abort(plan, "the step failed"))
        else:
            result = self._execute(plan)
            self._commit_pending()
            if self.overlap and plan.work:
                self.pending = (plan, result)
            else:
                self._take(self.scheduler.commit(plan, result))
        self.scheduler.check()
        busy = bool(plan.work) or self.pending is not None
        self.idle = 0 if busy or not self.has_work() else self.idle + 1
        assert self.idle < 3, "there is work, but nothing is planned"
        return plan

    def drain(self, most: int = 20_000) -> None:
        for _ in range(most):
            if not self.has_work():
                return
            self.step()
        raise AssertionError(f"not done after {most} steps")

    def verify(self) -> None:
        """After the last step: nothing leaked, and every answer is that of the prompt alone."""
        assert not self.has_work() and self.scheduler.running == self.scheduler.waiting == 0
        assert self.pool.free_count() == len(self.pool)
        self.scheduler.check()
        if self.snapshots is not None:
            self.snapshots.check(reserved=0)
        assert not self.live, f"never finished: {self.live}"
        for name, request in self.requests.items():
            tokens, reason = alone(request, self.config.max_context)
            got = self.outputs[name]
            whole = name not in self.silent and self.finished[name] in (
                FinishReason.STOP,
                FinishReason.LENGTH,
            )
            if whole:
                assert got == tokens, f"{name}: {got} instead of {tokens}"
                assert self.finished[name] is reason
                assert name in self.prompts_done
            else:
                assert got == tokens[: len(got)], f"{name}: {got} does not begin {tokens}"

    def _commit_pending(self) -> None:
        if self.pending is not None:
            self._take(self.scheduler.commit(*self.pending))
            self.pending = None

    def _check_plan(self, plan: StepPlan) -> None:
        """What a plan must respect, whatever the model does with it."""
        names = [w.request_id for w in plan.work]
        taken = [w.row for w in plan.work]
        assert len(set(names)) == len(names) and len(set(taken)) == len(taken)
        assert sum(w.count for w in plan.work) == plan.total_tokens
        assert plan.total_tokens <= self.config.max_batch_tokens
        assert len(names) <= self.config.max_batch
        assert all(w.count > 0 for w in plan.work)
        single = all(w.count == 1 and w.needs_sample and not w.reads for w in plan.work)
        assert plan.pure_decode == (bool(plan.work) and single)
        held = [s.row for s in [*self.scheduler._running, *self.scheduler._draining]]
        assert len(set(held)) == len(held), "a row was given away while in use"
        self.rows = {number: row for number, row in self.rows.items() if number in held}
        for init in plan.admitted:
            first = init.request.first
            ended = self.finished.keys() | self.silent | self.cancelled
            assert first is None or first in self.prompts_done | ended, "it did not wait"
            chain = self.prefixes.chain(self._namespace(init.request), list(init.tokens))
            self.rows[init.row] = _Row(init.request.id, list(init.tokens), chain, list(init.blocks))
        read = 0
        for item in plan.work:
            row = self.rows[item.row]
            assert row.owner == item.request_id
            request, end = self.requests[item.request_id], item.start + item.count
            assert not (item.needs_sample and request.params.max_tokens == 0)
            self._check_reading(item, request)
            if item.reads and request.reader is not None and not request.reader.hidden:
                read += item.count
            self.computed[item.request_id] = self.computed.get(item.request_id, 0) + item.count
            row.blocks += item.new_blocks
            # As many blocks as the positions need, no more.
            assert len(row.blocks) == -(-end // self.block_size)
            assert len(set(row.blocks)) == len(row.blocks)
            written = {row.blocks[p // self.block_size] for p in range(item.start, end)}
            for number, other in self.rows.items():
                if number != item.row:
                    assert not written & set(other.blocks), "two texts write to one block"
        assert read <= scheduler_module.READ_ROOM, "more logits than a step has room for"

    def _execute(self, plan: StepPlan) -> StepResult:
        """Compute a plan, let readers read, draw: rows know the drawn tokens at once.

        A row draws nothing when its next token was known already: it was launched before anybody
        had looked at the forced tokens of the step before.
        """
        sampled: dict[str, tuple[Sampled, ...]] = {}
        errors: dict[str, str] = {}
        size = self.block_size
        for init in plan.admitted:
            if init.copy is not None:
                source, target = init.copy
                for offset in range(size):
                    held = self.memory.get((source, offset))
                    self.memory[target, offset] = GARBAGE if held is None else held
            if init.restore >= 0:
                self.states[init.row] = self.states[init.restore]
                self.restored += 1
        for item in plan.work:
            row = self.rows[item.row]
            if item.request_id in self.broken:
                # Its keys are not numbers from here on, and nothing can be drawn.
                errors[item.request_id] = "broken"
                for p in range(item.start, item.start + item.count):
                    self.memory[row.blocks[p // size], p % size] = GARBAGE
                self._advance(item, GARBAGE)
                if item.needs_sample:
                    sampled[item.request_id] = ()
                    if len(row.tokens) == item.start + item.count:
                        row.tokens.append(0)
                        row.chain.append(GARBAGE)
                continue
            assert len(row.tokens) >= item.start + item.count, "computes an unknown token"
            for p in range(item.start):
                held = self.memory.get((row.blocks[p // size], p % size))
                assert held == row.chain[p], f"{item.request_id}: wrong key at {p} of {item}"
            for p in range(item.start, item.start + item.count):
                self.memory[row.blocks[p // size], p % size] = row.chain[p]
            if self.snapshots is not None and item.start:
                before = self.states.get(item.row)
                assert before == row.chain[item.start - 1], f"{item.request_id}: wrong state"
            self._advance(item, row.chain[item.start + item.count - 1])
            request = self.requests[item.request_id]
            if item.reads and isinstance(request.reader, Shown):
                request.reader.show(item.start, item.count)
            if not item.needs_sample:
                continue
            new: list[int] = []
            if len(row.tokens) == item.start + item.count:
                new = step_tokens(row.tokens, request, self.config.max_context)
            else:
                assert self.overlap and request.draw is not None, "it was known already"
                self.nothing_drawn += 1
            for token in new:
                row.tokens.append(token)
                row.chain.append(self.prefixes.extend(row.chain[-1], token))
            self.forced += len(new[1:])
            sampled[item.request_id] = tuple(map(Sampled, new))
        took = self.clock(plan.work) if self.clock is not None and plan.work else 0.0
        self.seconds.append(took)
        return StepResult(sampled, errors, took)

    def _namespace(self, request: Request) -> str:
        """Whose prefixes a request may share: its tenant's, or those of its choices alone."""
        if self.config.prefix_cache:
            return request.cache_salt
        return f"{request.cache_salt}/{request.first or request.id}"

    def _check_reading(self, item: RowWork, request: Request) -> None:
        """A reader sees what is computed from its first position to the prompt's end."""
        reader, end = request.reader, item.start + item.count
        if reader is None:
            assert not item.reads
            return
        assert item.reads == (reader.begin <= item.start < len(request.prompt))
        # No chunk goes over either end of what is read.
        assert not item.start < reader.begin < end
        assert not item.start < len(request.prompt) < end

    def _garble(self, plan: StepPlan) -> None:
        """A failing step may leave anything in the slots that it was to write."""
        for item in plan.work:
            row = self.rows[item.row]
            for p in range(item.start, item.start + item.count):
                self.memory[row.blocks[p // self.block_size], p % self.block_size] = GARBAGE
            self._advance(item, GARBAGE)

    def _advance(self, item: RowWork, state: int) -> None:
        """A row's state after its work, and the copy that is put aside."""
        self.states[item.row] = state
        if item.save >= 0:
            assert self.snapshots is not None and item.save >= self.config.max_batch
            assert (item.start + item.count) % self.block_size == 0
            self.states[item.save] = state
            self.saved += 1

    def _take(self, events: list[TokenEvent]) -> None:
        for event in events:
            name = event.request_id
            if name in self.silent:
                continue
            assert name not in self.finished, f"{name} speaks after its end"
            assert event.tokens or event.finish is not None, "an event of nothing"
            self.outputs[name] += [sampled.token for sampled in event.tokens]
            request = self.requests[name]
            if event.tokens or event.finish is FinishReason.LENGTH:
                # The whole prompt is computed before anything comes out.
                self.prompts_done.add(name)
                reader = request.reader
                assert not isinstance(reader, Shown) or reader.complete, "not all was read"
            if event.finish is not None:
                self.finished[name] = event.finish
                assert (event.error is not None) == (event.finish is FinishReason.ERROR)
