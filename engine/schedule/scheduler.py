"""Which tokens of which requests the next step computes. Pure Python, no torch.

There is no prefill phase and no decode phase, only "tokens known" against "tokens computed"
under one token budget per step: chunked prefill, prefix hits, preemption and recomputation
are the same case. A step goes

    plan = schedule()        # blocks are taken, ``computed`` moves on, a sample is in flight
    ... the runner computes and samples ...
    events = commit(plan, result)    # tokens are appended, finished requests let go

``schedule`` may be called again before the commit of the plan before it (overlap). Then a
finished request may be computed once more; that result is dropped, and its blocks are kept
until no result is in flight. If the runner raises, ``abort(plan)`` gives up the requests of
that plan and leaves all others as they were.
"""

from __future__ import annotations

import itertools
from collections import deque
from operator import attrgetter

from ..request import FinishReason, Request, Sampled, TokenEvent
from .block_pool import BlockPool, Prefix
from .plan import NO_PLAN, RowInit, RowWork, StepPlan, StepResult
from .scheduler_state import RequestState, SchedulerConfig
from .snapshots import SnapshotPool
from .step_cost import StepCost

_URGENCY = attrgetter("urgency")

# Positions of prompts whose logits are read in one step: so many of 150 000 words are 77 MB.
READ_ROOM = 128


class Scheduler:
    """Continuous batching with chunked prefill over a :class:`BlockPool`.

    First come, first served within a priority; running requests go before waiting ones; when
    blocks run out, the newest request of the lowest priority is preempted and recomputed later.

    Args:
        config: limits.
        pool: KV blocks.
        end_tokens: ids that end a text unless the request ignores them.
        snapshots: of what a model keeps once per sequence; None where it keeps nothing.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        pool: BlockPool,
        end_tokens: frozenset[int] = frozenset(),
        snapshots: SnapshotPool | None = None,
    ) -> None:
        assert config.prefix_cache or not snapshots, "snapshots that no prefix leads to"
        self.config = config
        self.pool = pool
        self.end_tokens = end_tokens
        self.snapshots = snapshots
        self.preemptions = 0
        self.cost = StepCost()
        self._states: dict[str, RequestState] = {}
        self._running: list[RequestState] = []
        self._waiting: deque[RequestState] = deque()
        self._draining: list[RequestState] = []
        self._held: dict[str, list[RequestState]] = {}
        self._free_rows = list(range(config.max_batch - 1, -1, -1))
        self._events: list[TokenEvent] = []
        self._arrivals = 0
        self._read_room = READ_ROOM
        self._step = 0

    @property
    def running(self) -> int:
        """Requests that hold a row."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait for a row or for blocks."""
        return len(self._waiting) + sum(map(len, self._held.values()))

    def has_work(self) -> bool:
        """Whether a step would compute, commit or report anything."""
        return bool(self._running or self._waiting or self._draining or self._events)

    def __contains__(self, request_id: str) -> bool:
        """Whether a request is live, or has a result in flight."""
        return request_id in self._states

    def begun(self, request_id: str) -> bool:
        """Whether a request has had a place in a step; True for an unknown one."""
        state = self._states.get(request_id)
        return state is None or state.first_step >= 0

    def cached_tokens(self, request_id: str) -> int:
        """Prompt tokens of a live request that the prefix cache supplied at first admission."""
        return self._states[request_id].cached

    def add(self, request: Request) -> None:
        """Queue a request; its id must be new and its prompt must fit ``max_context``.

        One that shares the prompt of another waits until that one has computed it.
        """
        assert request.id not in self._states and request.prompt
        assert len(request.prompt) + (request.params.max_tokens != 0) <= self.config.max_context
        state = RequestState(request, self._arrivals, list(request.prompt))
        self._arrivals += 1
        self._states[request.id] = state
        if request.first is not None and self._computes(request.first):
            self._held.setdefault(request.first, []).append(state)
        else:
            self._enqueue(state)

    def cancel(self, request_id: str) -> None:
        """End a live request as cancelled; its event comes with the next commit."""
        self.end(request_id, FinishReason.CANCELLED)

    def end(
        self, request_id: str, reason: FinishReason, error: str | None = None, report: bool = True
    ) -> None:
        """End a live request now. With ``report`` a :class:`TokenEvent` says so."""
        state = self._states.get(request_id)
        if state is None or state.finish is not None:
            return
        if state in self._waiting:
            self._waiting.remove(state)
        held = self._held.get(state.request.first or "", [])
        if state in held:
            held.remove(state)
            if not held:
                del self._held[state.request.first or ""]
        self._take_back(state)
        self._finish(state, reason)
        if report:
            self._events.append(TokenEvent(request_id, (), reason, error))

    def schedule(self) -> StepPlan:
        """Plan a step; empty ``work`` when nothing can be computed now."""
        budget = self.config.max_batch_tokens
        self._read_room = READ_ROOM
        work: list[RowWork] = []
        admitted: list[RowInit] = []
        planned: set[str] = set()
        preempted = False
        decodes: dict[str, RowWork] = {}
        if self.config.max_step_s > 0:
            decodes = {s.request.id: s.next_token for s in self._running if self._decodes(s)}
        for state in sorted(self._running, key=_URGENCY):
            if state.row < 0 or budget == 0:
                continue
            count = self._chunk(state, min(state.pending(self.config.max_context), budget))
            if decodes and state.request.id not in decodes:
                # Rows that decode are less urgent, perhaps, but a token of each has its place.
                room = budget - len(decodes.keys() - planned)
                count = self._fitting(decodes, work, state.computed, min(count, room))
            if count <= 0:
                continue
            blocks, lost = self._grow(state, count, planned)
            preempted |= lost
            if blocks is None:
                continue
            work.append(self._launch(state, count, blocks))
            planned.add(state.request.id)
            budget -= count
        while self._waiting and budget and self._free_rows and not preempted:
            item = self._admit(self._waiting[0], budget, decodes, work)
            if item is None:
                # Nothing runs that would free blocks: those that are lent are all that is left.
                if self._running or not self._take_all_back():
                    break
                continue
            self._waiting.popleft()
            admitted.append(item[0])
            work.append(item[1])
            budget -= item[1].count
        self._step += 1
        total = sum(w.count for w in work)
        decode = bool(work) and all(w.count == 1 and w.needs_sample and not w.reads for w in work)
        return StepPlan(self._step, tuple(work), tuple(admitted), total, decode)

    def commit(self, plan: StepPlan, result: StepResult) -> list[TokenEvent]:
        """Take in the step's sampled tokens and report what happened.

        A row that failed ends its request; nothing that it computed in this step is published.
        """
        self.cost.observe(plan.work, result.seconds)
        for item in plan.work:
            state = self._states.get(item.request_id)
            good = state is not None and self._take_in(state, item, result)
            self._settle(item, state if good else None)
        self._drain()
        events, self._events = self._events, []
        return events

    def abort(self, plan: StepPlan, error: str) -> list[TokenEvent]:
        """Give up the requests of a plan whose step failed; the others are untouched."""
        for item in plan.work:
            self._settle(item, None)
            state = self._states.get(item.request_id)
            if state is None:
                continue
            if item.needs_sample:
                state.in_flight -= 1
            # ``done`` stays where it was, so nothing that the failed step wrote is published.
            self.end(item.request_id, FinishReason.ERROR, error)
        return self.commit(NO_PLAN, StepResult())

    def check(self) -> None:
        """Raise AssertionError when blocks, rows or states disagree."""
        self.pool.check()
        if self.snapshots is not None:
            self.snapshots.check()
        busy = [*self._running, *self._draining]
        tables = [*(s.blocks for s in busy), *(s.lent for s in self._waiting)]
        held = set(itertools.chain.from_iterable(tables))
        for first, held_back in self._held.items():
            assert self._computes(first), "a choice waits for a prompt that is computed"
            assert held_back, "an empty list is kept"
        for state in [*self._waiting, *itertools.chain.from_iterable(self._held.values())]:
            assert not state.blocks and state.computed == 0 and state.row == -1
        used = len(self.pool) - self.pool.free_count()
        assert used == len(held), f"{used} blocks in use, {len(held)} held by requests"
        rows = [s.row for s in busy] + self._free_rows
        assert sorted(rows) == list(range(self.config.max_batch)), "a row leaked"
        live = len(busy) + self.waiting
        assert live == len(self._states), "a request leaked"

    def _take_in(self, state: RequestState, item: RowWork, result: StepResult) -> bool:
        """Take in what a step gave for a row; whether what it computed is of use."""
        if item.needs_sample:
            state.in_flight -= 1
        if state.finish is not None or state.epoch != item.epoch:
            return False
        if item.request_id in result.errors:
            self.end(item.request_id, FinishReason.ERROR, result.errors[item.request_id])
            return False
        state.done = item.start + item.count
        for sampled in result.tokens[item.request_id] if item.needs_sample else ():
            if state.finish is None:
                self._append(state, sampled)
        if state.finish is None:
            self._publish(state)
            self._prompt_done(state)
        return True

    def _settle(self, item: RowWork, state: RequestState | None) -> None:
        """What becomes of a state that a step put aside: of no use without the request's."""
        if self.snapshots is not None and item.save >= 0:
            border = (item.start + item.count) // self.pool.block_size
            self.snapshots.settle(item.save, None if state is None else state.prefixes[border - 1])

    def _chunk(self, state: RequestState, count: int) -> int:
        """How many of ``count`` tokens a chunk has: readers need room, a state's copy its end."""
        stop = self._stop(state)
        count = min(count, stop - state.computed) if stop else count
        reader = state.request.reader
        if reader is not None and state.computed < reader.begin:
            return min(count, reader.begin - state.computed)
        if not state.reads:
            return count
        count = min(count, len(state.request.prompt) - state.computed)
        return min(count, self._read_room) if state.reads_logits else count

    def _stop(self, state: RequestState) -> int:
        """Where the state of a request's prompt is put aside next, 0 when nowhere."""
        length = len(state.request.prompt)
        return 0 if self.snapshots is None else self.snapshots.stop(state.computed, length)

    def _computes(self, request_id: str) -> bool:
        """Whether a request is live and its prompt is not computed."""
        state = self._states.get(request_id)
        if state is None or state.finish is not None:
            return False
        return state.done < len(state.request.prompt)

    def _prompt_done(self, state: RequestState) -> None:
        """A prompt may be computed: those that share it go on, and one that only reads it ends."""
        if state.done < len(state.request.prompt):
            return
        # Its last token is computed by each request, for the logits.
        shared = state.blocks[: self._blocks_of(len(state.request.prompt) - 1)]
        for other in self._held.pop(state.request.id, ()):
            # A state has gone on with the text: the prefix cache has snapshots of it.
            if self.snapshots is None:
                self.pool.share(shared)
                other.lent = list(shared)
            self._enqueue(other)
        if state.request.params.max_tokens == 0:
            self._events.append(TokenEvent(state.request.id, (), FinishReason.LENGTH))
            self._finish(state, FinishReason.LENGTH)

    def _release(self, first: str) -> None:
        """Queue the requests that wait for the prompt of another, which will not be computed."""
        for state in self._held.pop(first, ()):
            self._enqueue(state)

    def _take_back(self, state: RequestState) -> bool:
        """Free the blocks that a waiting request was lent; False when there are none."""
        lent, state.lent = state.lent, []
        self.pool.release(lent)
        return bool(lent)

    def _take_all_back(self) -> bool:
        """The same of all requests that wait: they compute their prompts after all."""
        return any([self._take_back(state) for state in self._waiting])

    def _blocks_for(self, state: RequestState, count: int) -> int:
        return self._blocks_of(state.computed + count) - len(state.blocks)

    def _blocks_of(self, tokens: int) -> int:
        return -(-tokens // self.pool.block_size)

    def _grow(
        self, state: RequestState, count: int, planned: set[str]
    ) -> tuple[list[int] | None, bool]:
        """Blocks for ``count`` more tokens, preempting others if need be."""
        preempted = False
        while True:
            blocks = self.pool.allocate(self._blocks_for(state, count))
            if blocks is not None:
                return blocks, preempted
            if self._take_all_back():
                continue
            victim = self._victim(state, planned)
            if victim is None:
                return None, preempted
            self._preempt(victim)
            preempted = True
            if victim is state:
                return None, True

    def _victim(self, asking: RequestState, planned: set[str]) -> RequestState | None:
        """The least urgent request without a result in flight and not yet in this plan."""
        free = [s for s in self._running if s.in_flight == 0 and s.request.id not in planned]
        if not free:
            return None
        worst = max(free, key=_URGENCY)
        if len(self._running) == 1 and worst is asking:
            return None
        return worst if worst.urgency >= asking.urgency else None

    def _preempt(self, state: RequestState) -> None:
        self.preemptions += 1
        state.epoch += 1
        self._running.remove(state)
        self._let_go(state)
        state.computed = state.done = state.promised = 0
        state.prefixes.clear()
        self._enqueue(state)

    def _decodes(self, state: RequestState) -> bool:
        """Whether a request is past its prompt, and somebody waits for its next token."""
        return (
            state.known > len(state.request.prompt) and state.pending(self.config.max_context) == 1
        )

    def _fitting(
        self, decodes: dict[str, RowWork], work: list[RowWork], start: int, most: int
    ) -> int:
        """How many of ``most`` tokens fit into a step beside all that decodes and is planned."""
        chunks = [item for item in work if item.request_id not in decodes]
        beside = (*decodes.values(), *chunks)
        return self.cost.chunk(beside, start, most, self.config.max_step_s)

    def _admit(
        self, state: RequestState, budget: int, decodes: dict[str, RowWork], work: list[RowWork]
    ) -> tuple[RowInit, RowWork] | None:
        """Give a waiting request a row and its first chunk, or None when blocks are short.

        Or when a step with rows that decode has no time left for it.
        """
        hit, computed = self._found(state)
        state.blocks = list(hit)
        state.computed = state.done = computed
        count = self._chunk(state, min(len(state.tokens) - computed, budget))
        if decodes:
            count = self._fitting(decodes, work, computed, count)
        need = self._blocks_for(state, count)
        # A watermark of 1 % keeps the first decode steps from preempting what was just admitted;
        # a request whose longest answer fits will never ask for more.
        longest = len(state.request.prompt) + (state.request.params.max_tokens or 1)
        rest = self._blocks_of(longest) - len(hit) - need
        reserve = min(max(1, len(self.pool) // 100), rest) if self._running else 0
        blocks = None
        if count and need + reserve <= self.pool.free_count():
            blocks = self.pool.allocate(need)
        if blocks is None:
            if not state.lent:
                self.pool.release(hit)
            state.blocks, state.computed, state.done = [], 0, 0
            return None
        # The last block that was lent is not full: what the step adds must not be seen by others.
        source, state.lent = state.lent[len(hit) :], []
        copy = (source[0], blocks[0]) if source else None
        self.pool.release(source)
        if state.first_step < 0:
            state.first_step, state.cached = self._step, state.computed
        state.row = self._free_rows.pop()
        self._running.append(state)
        parent: Prefix | None = None
        for index in range(len(hit) if self.config.prefix_cache else 0):
            parent = self.pool.publish(
                hit[index], parent, state.piece(index, self.pool.block_size), state.extra_key
            )
            state.prefixes.append(parent)
        restore = -1 if self.snapshots is None or parent is None else self.snapshots.slot(parent)
        init = RowInit(state.row, state.request, tuple(state.tokens), tuple(hit), copy, restore)
        return init, self._launch(state, count, blocks)

    def _found(self, state: RequestState) -> tuple[list[int], int]:
        """Full blocks that need no computing, with a reference each, and the positions computed.

        The last token is never among them: its logits are needed.
        """
        last = len(state.tokens) - 1
        if state.lent:
            return state.lent[: last // self.pool.block_size], last
        hit: list[int] = []
        if self.config.prefix_cache:
            if state.request.reader is not None:
                last = min(last, state.request.reader.begin)
            hit = self.pool.match(state.tokens[:last], state.extra_key)
            if self.snapshots is not None:
                hit = hit[: self.snapshots.covered(self.pool.texts(hit))]
        self.pool.share(hit)
        return hit, len(hit) * self.pool.block_size

    def _launch(self, state: RequestState, count: int, blocks: list[int]) -> RowWork:
        start, reads, stop, save = state.computed, state.reads, self._stop(state), -1
        if self.snapshots is not None and stop and start + count == stop:
            save = self.snapshots.reserve()
        state.blocks += blocks
        state.computed += count
        needs_sample = state.computed == state.known and state.request.params.max_tokens != 0
        if reads and state.reads_logits:
            self._read_room -= count
        if needs_sample:
            state.in_flight += 1
            state.promised = state.known + 1
        place = state.row, state.request.id, start, count
        return RowWork(*place, tuple(blocks), needs_sample, state.epoch, reads, save)

    def _append(self, state: RequestState, sampled: Sampled) -> None:
        """Append a sampled token and decide whether the text ends with it."""
        state.tokens.append(sampled.token)
        reason = state.end_by(sampled.token, self.end_tokens, self.config.max_context)
        self._events.append(TokenEvent(state.request.id, (sampled,), reason))
        if reason is not None:
            self._publish(state)
            self._finish(state, reason)

    def _publish(self, state: RequestState) -> None:
        """Enter blocks whose tokens are all known and computed into the prefix index."""
        if not self.config.prefix_cache:
            return
        done = min(state.done, len(state.tokens)) // self.pool.block_size
        for index in range(len(state.prefixes), done):
            parent = state.prefixes[-1] if state.prefixes else None
            state.prefixes.append(
                self.pool.publish(
                    state.blocks[index],
                    parent,
                    state.piece(index, self.pool.block_size),
                    state.extra_key,
                )
            )

    def _finish(self, state: RequestState, reason: FinishReason) -> None:
        state.finish = reason
        self._release(state.request.id)
        if state in self._running:
            self._running.remove(state)
        self._draining.append(state) if state.row >= 0 else self._states.pop(state.request.id)
        self._drain()

    def _drain(self) -> None:
        """Let go of finished requests with no result in flight."""
        for state in [s for s in self._draining if s.in_flight == 0]:
            self._draining.remove(state)
            self._let_go(state)
            del self._states[state.request.id]

    def _let_go(self, state: RequestState) -> None:
        self.pool.release(state.blocks)
        state.blocks = []
        self._free_rows.append(state.row)
        state.row = -1

    def _enqueue(self, state: RequestState) -> None:
        """Insert by urgency; a preempted request goes before later arrivals."""
        index = len(self._waiting)
        while index > 0 and self._waiting[index - 1].urgency > state.urgency:
            index -= 1
        self._waiting.insert(index, state)
