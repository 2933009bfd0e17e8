"""A stand-in for the model runner that proves, slot by slot, that every key a token needs is there.

Each prefix of tokens (under a cache salt) has one exact identity. Computing a position stores its
prefix's identity in the KV slot; before that, the slots of all earlier positions must hold theirs.
The next token is a hash of the prefix, so what a prompt answers alone can be worked out without any
scheduler.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from halfbyte.engine.params import SamplingParams
from halfbyte.engine.request import FinishReason, Request, Sampled, TokenEvent
from halfbyte.engine.schedule.block_pool import BlockPool
from halfbyte.engine.schedule.plan import RowWork, StepPlan, StepResult
from halfbyte.engine.schedule.scheduler import Scheduler
from halfbyte.engine.schedule.scheduler_state import SchedulerConfig

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
    seconds: list[float] = field(default_factory=list)
    pool: BlockPool = field(init=False)
    scheduler: Scheduler = field(init=False)
    prefixes: Prefixes = field(default_factory=Prefixes)
    memory: dict[tuple[int, int], int] = field(default_factory=dict)
    rows: dict[int, _Row] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)
    outputs: dict[str, list[int]] = field(default_factory=dict)
    finished: dict[str, FinishReason] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    plans: list[StepPlan] = field(default_factory=list)
    pending: tuple[StepPlan, StepResult] | None = None
    idle: int = 0

    def __post_init__(self) -> None:
        self.pool = BlockPool(self.blocks, self.block_size, self.keep)
        self.scheduler = Scheduler(self.config, self.pool, frozenset({END}))

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
        single = all(w.count == 1 and w.needs_sample for w in plan.work)
        assert plan.pure_decode == (bool(plan.work) and single)
        held = [s.row for s in [*self.scheduler._running, *self.scheduler._draining]]
        assert len(set(held)) == len(held), "a row was given away while in use"
        self.rows = {number: row for number, row in self.rows.items() if number in held}
        for init in plan.admitted:
            chain = self.prefixes.chain(init.request.cache_salt, list(init.tokens))
            self.rows[init.row] = _Row(init.request.id, list(init.tokens), chain, list(init.blocks))
        for item in plan.work:
            row = self.rows[item.row]
            assert row.owner == item.request_id
            row.blocks += item.new_blocks
            # As many blocks as the positions need, no more.
            assert len(row.blocks) == -(-(item.start + item.count) // self.block_size)
            assert len(set(row.blocks)) == len(row.blocks)
            written = {
                row.blocks[p // self.block_size] for p in range(item.start, item.start + item.count)
            }
            for number, other in self.rows.items():
                if number != item.row:
                    assert not written & set(other.blocks), "two texts write to one block"

    def _execute(self, plan: StepPlan) -> StepResult:
        sampled: dict[str, tuple[Sampled, ...]] = {}
        errors: dict[str, str] = {}
        size = self.block_size
        for item in plan.work:
            row = self.rows[item.row]
            if item.request_id in self.broken:
                # Its keys are not numbers from here on, and nothing can be drawn.
                errors[item.request_id] = "broken"
                for p in range(item.start, item.start + item.count):
                    self.memory[row.blocks[p // size], p % size] = GARBAGE
                if item.needs_sample:
                    row.tokens.append(0)
                    row.chain.append(GARBAGE)
                continue
            assert len(row.tokens) >= item.start + item.count, "computes an unknown token"
            for p in range(item.start):
                held = self.memory.get((row.blocks[p // size], p % size))
                assert held == row.chain[p], f"{item.request_id}: wrong key at {p} of {item}"
            for p in range(item.start, item.start + item.count):
                self.memory[row.blocks[p // size], p % size] = row.chain[p]
            if item.needs_sample:
                assert len(row.tokens) == item.start + item.count
                token = drawn(row.tokens, self.requests[item.request_id])
                row.tokens.append(token)
                row.chain.append(self.prefixes.extend(row.chain[-1], token))
                sampled[item.request_id] = (Sampled(token),)
        took = self.clock(plan.work) if self.clock is not None and plan.work else 0.0
        self.seconds.append(took)
        return StepResult(sampled, errors, took)

    def _garble(self, plan: StepPlan) -> None:
        """A failing step may leave anything in the slots that it was to write."""
        for item in plan.work:
            row = self.rows[item.row]
            for p in range(item.start, item.start + item.count):
                self.memory[row.blocks[p // self.block_size], p % self.block_size] = GARBAGE

    def _take(self, events: list[TokenEvent]) -> None:
        for event in events:
            name = event.request_id
            if name in self.silent:
                continue
            assert name not in self.finished, f"{name} speaks after its end"
            self.outputs[name] += [sampled.token for sampled in event.tokens]
            if event.finish is not None:
                self.finished[name] = event.finish
                assert (event.error is not None) == (event.finish is FinishReason.ERROR)


def random_request(rng: random.Random, name: str, max_context: int) -> Request:
    """Prompts share beginnings often; limits, stops and priorities vary."""
    length = rng.randint(1, max_context - 1)
    if rng.random() < 0.6:
        prompt = ([1, 2, 3] * max_context)[:length]
        if rng.random() < 0.5:
            prompt[rng.randrange(length)] = 4
    else:
        prompt = [rng.randint(1, 3) for _ in range(length)]
    most = rng.choice([None, 1, 2, 5, 20])
    params = SamplingParams(
        max_tokens=most,
        min_tokens=rng.randint(0, most or 6) if rng.random() < 0.3 else 0,
        stop_token_ids=(5,) if rng.random() < 0.2 else (),
        ignore_eos=rng.random() < 0.3,
    )
    salt = rng.choice(["", "", "a"])
    return Request(name, prompt, params, priority=rng.choice([0, 0, 1, -1]), cache_salt=salt)


def random_simulation(rng: random.Random) -> Simulation:
    """Pools are at most a few blocks larger than one context, so preemption is common."""
    size, context = rng.choice([1, 2, 4, 8]), rng.randint(3, 48)
    blocks = -(-context // size) + rng.choice([0, 0, 1, 2, 6])
    batch = rng.randint(1, 6)
    config = SchedulerConfig(
        max_batch=batch,
        max_batch_tokens=max(batch, rng.randint(1, 24)),
        max_context=context,
        prefix_cache=rng.random() < 0.7,
        max_step_s=rng.choice([0.0, 1e-3, 0.1]),
    )
    keep = rng.choice([None, rng.randint(0, blocks)])
    return Simulation(
        size,
        blocks,
        config,
        overlap=rng.random() < 0.5,
        keep=keep,
        clock=rng.choice([None, lambda work: rng.uniform(1e-6, 1.0)]),
    )


def random_run(seed: int) -> Simulation:
    """One whole random schedule, verified; returns it for counting."""
    rng = random.Random(seed)
    sim = random_simulation(rng)
    waiting = [
        random_request(rng, f"r{i}", sim.config.max_context) for i in range(rng.randint(1, 10))
    ]
    fail_rate = rng.choice([0.0, 0.0, 0.02, 0.1])
    stop_rate = rng.choice([0.0, 0.02, 0.1])
    break_rate = rng.choice([0.0, 0.0, 0.05])
    while waiting or sim.has_work():
        while waiting and rng.random() < 0.4:
            sim.add(waiting.pop())
        if sim.live and rng.random() < stop_rate:
            name = rng.choice(sim.live)
            sim.cancel(name) if rng.random() < 0.5 else sim.end_silently(name)
        if sim.live and rng.random() < break_rate:
            sim.broken.add(rng.choice(sim.live))
        sim.step(rng.choice(["early", "late"]) if rng.random() < fail_rate else None)
        assert len(sim.plans) < 20_000
    sim.verify()
    return sim
