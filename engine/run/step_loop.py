"""The step loop of one engine: queue, plan, compute, commit, hand out."""

from __future__ import annotations

import copy
import itertools
import logging
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from halfbyte.errors import EngineDeadError, RequestError, described

from ..config import EngineConfig
from ..grammar.base import Grammar
from ..models.decoder import Decoder, block_states
from ..models.rope import Rotaries
from ..param_table import INT63
from ..params import SamplingParams
from ..request import FinishReason, MemoryFault, PromptReader, Request, TokenEvent
from ..schedule.block_pool import BlockPool
from ..schedule.plan import NO_PLAN, StepPlan, StepResult
from ..schedule.scheduler import Scheduler
from ..schedule.scheduler_state import SchedulerConfig
from ..schedule.snapshots import SnapshotPool
from ..serve.outbox import Outbox
from ..serve.output import OutputProcessor
from ..text.tokenizer import Tokenizer
from .draw_state import DrawStates
from .kv_cache import KVCache
from .memory import MemoryPlan, prefix_blocks
from .model_runner import ModelRunner
from .readers import LogprobReader
from .rows import Rows
from .sampler import Sampler
from .stats import EngineStats, StepTally

log = logging.getLogger(__name__)

# One failed step may be bad luck (memory was short); several in a row are the engine's end. What
# fails in one row alone is not counted.
MAX_FAILED_STEPS = 3
# Longest step on a CPU while a request is being answered, unless ``max_step_ms`` says otherwise.
CPU_STEP_MS = 100


class StepLoop:
    """Requests on their way through scheduler, runner and output. One thread at a time.

    Args:
        config: of the engine.
        max_context: most tokens of prompt and answer.
        scheduler: plans steps.
        runner: computes them.
        output: turns tokens into text.
        draws: makes what a request carries from one drawn token to the next.

    Attributes:
        runner: as given, until :meth:`close`.
        scheduler: as given.
        outbox: where deltas wait for whoever asked.
        abandoned: ids to cancel before the next step; may be appended to at any time.
        closed: nothing runs any more.
    """

    def __init__(
        self,
        config: EngineConfig,
        max_context: int,
        scheduler: Scheduler,
        runner: ModelRunner,
        output: OutputProcessor,
        draws: DrawStates,
    ) -> None:
        self.runner = runner
        self.scheduler = scheduler
        self.outbox = Outbox()
        self.abandoned: deque[str] = deque()
        self.closed = False
        auto = runner.sampler.drawer.reads_late
        self._overlap = auto if config.overlap is None else config.overlap
        self._config = config
        self._max_context = max_context
        self._output = output
        self._draws = draws
        # The step whose result was not asked for yet.
        self._in_flight: tuple[StepPlan, Callable[[], StepResult]] | None = None
        self._ids = itertools.count()
        self._seeds = itertools.count()
        self._failures = 0
        self._prompt_tokens = self._generated = self._cached = 0
        self._steps = StepTally()
        self._finished: dict[str, int] = {}

    def require_open(self) -> None:
        """Raise EngineDeadError after :meth:`close`."""
        if self.closed:
            raise EngineDeadError("the engine is closed")

    def submit(
        self,
        ids: list[int],
        params: SamplingParams,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        *,
        grammar: Grammar | None = None,
        reader: PromptReader | None = None,
    ) -> str:
        """Queue a prompt of token ids; returns the request's id.

        ``grammar`` is that of the parameters, compiled; ``reader`` looks at what is computed of
        the prompt. Raises RequestError.
        """
        self.require_open()
        room = self._max_context - len(ids)
        if room < (params.max_tokens != 0):
            raise RequestError(
                f"the prompt has {len(ids)} tokens, but the context holds {self._max_context} "
                "with the answer",
                param="prompt",
                code="context_length_exceeded",
                hint="shorten the prompt or raise max_context",
            )
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        seed = None if params.greedy else self._seed(params)
        resolved = replace(
            params, seed=seed, max_tokens=limit, min_tokens=min(params.min_tokens, limit)
        )
        if params.prompt_logprobs is not None:
            if reader is not None:
                raise RequestError(
                    f"prompt_logprobs is {params.prompt_logprobs} beside a reader of the prompt",
                    param="prompt_logprobs",
                    hint="leave one of them out",
                )
            reader = LogprobReader(ids, params.prompt_logprobs)
        name = request_id or next(n for n in map("req-{}".format, self._ids) if self._unused(n))
        names = [f"{name}\0{index}" if index else name for index in range(params.choices)]
        self._claim(names)
        draw = self._draws.make(params, grammar)
        draws = [draw, *(draw.again(grammar) for _ in range(params.choices - 1))]
        requests = [
            Request(
                id=own,
                prompt=ids,
                params=_reseeded(resolved, index) if index else resolved,
                priority=priority,
                cache_salt=cache_salt,
                draw=draw,
                reader=None if index else reader,
                first=name if index else None,
                index=index,
            )
            for index, (own, draw) in enumerate(zip(names, draws, strict=True))
        ]
        self._output.add(requests)
        for request in requests:
            self.scheduler.add(request)
        return name

    def cancel(self, request_id: str) -> None:
        """End all choices of a request; its last delta comes with the next step."""
        for name in self._output.members(request_id):
            self.scheduler.cancel(name)

    def has_work(self) -> bool:
        """Whether :meth:`advance` would do anything, or deltas wait that nobody took."""
        return bool(self._in_flight or self.outbox) or self.scheduler.has_work()

    def advance(self) -> None:
        """Compute one step and put its deltas into the outbox.

        A request whose own row fails ends alone, with an error delta. If the whole computation
        raises, the requests of the step end so, the others go on, and nothing computed in the
        step is shared.

        Raises:
            EngineDeadError: closed, or steps failed several times in a row.
        """
        self.require_open()
        while self.abandoned:
            self.cancel(self.abandoned.popleft())
        with self.runner.executor.threads():
            self._step()

    def discard(self, names: Sequence[str]) -> None:
        """Cancel requests that nobody waits for any more, and run their last events off."""
        for name in names:
            self.cancel(name)
        if names:
            self._settle()

    def stats(self) -> EngineStats:
        """Counters and gauges."""
        return EngineStats(
            running=self.scheduler.running,
            waiting=self.scheduler.waiting,
            kv_blocks_used=len(self.scheduler.pool) - self.scheduler.pool.free_count(),
            kv_blocks_total=len(self.scheduler.pool),
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generated,
            cached_tokens=self._cached,
            preemptions=self.scheduler.preemptions,
            steps=self._steps.steps,
            finished=dict(self._finished),
            step_tokens=self._steps.tokens,
            step_sizes=self._steps.sizes,
        )

    def close(self) -> None:
        """Cancel what is live and let go of the runner, which holds weights and KV cache."""
        self.discard(self._output.live())
        self.outbox.take_rest()
        self.closed = True
        del self.runner

    def _step(self) -> None:
        plan = self.scheduler.schedule()
        events = []
        try:
            for init in plan.admitted:
                cached = self.scheduler.cached_tokens(init.request.id)
                self._output.started(init.request.id, cached)
            forward = self.runner.launch(plan) if plan.work else None
            events += self._land()
            if forward is not None:
                self._in_flight = plan, self.runner.draw(forward, self._overlap)
            if not self._overlap:
                events += self._land()
        except BaseException as error:
            reason = described(error)
            if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
                reason = MemoryFault(reason)
            failed = self.scheduler.abort(plan, reason)
            self._put(events + failed)
            if not isinstance(error, Exception):
                raise
            self.scheduler.check()
            self._failures += 1
            log.exception("a step failed; %d requests end", len(failed))
            if self._failures >= MAX_FAILED_STEPS:
                raise EngineDeadError(
                    f"{self._failures} steps failed in a row: {reason}"
                ) from error
            return
        self._failures = 0
        if plan.work:
            self._steps.add(plan.total_tokens)
        else:
            events += self.scheduler.commit(plan, StepResult())
        self._put(events)

    def _land(self) -> list[TokenEvent]:
        """Read and commit the step that is in flight."""
        if self._in_flight is None:
            return []
        (plan, read), self._in_flight = self._in_flight, None
        try:
            result = read()
        except BaseException as error:
            # Computed long ago, as it were: the step that came after fails by the same.
            self._put(self.scheduler.abort(plan, described(error)))
            raise
        for name, why in result.errors.items():
            log.warning("request %s failed: %s", _shown(name), why)
        return self.scheduler.commit(plan, result)

    def _settle(self) -> None:
        """Commit what is in flight, without a new step."""
        self._put(self._land() or self.scheduler.commit(NO_PLAN, StepResult()))

    def _put(self, events: Sequence[TokenEvent]) -> None:
        """Turn events into deltas for the outbox, and count."""
        for event in events:
            self._generated += len(event.tokens)
            try:
                delta = self._output.process(event)
            except Exception as error:
                # Its text cannot be made: its own failure, so the other requests go on.
                log.exception("the text of request %s failed", _shown(event.request_id))
                text = described(error)
                self.scheduler.end(event.request_id, FinishReason.ERROR, report=False)
                event = TokenEvent(event.request_id, (), FinishReason.ERROR, text)
                delta = self._output.process(event)
            if delta is None:
                continue
            self.outbox.put(delta)
            if delta.finish is not None and event.finish is None:
                # A stop string ended it; the scheduler cannot know.
                self.scheduler.end(event.request_id, delta.finish, report=False)
            done = delta.completion
            if done is not None:
                self._prompt_tokens += done.usage.prompt_tokens
                self._cached += done.usage.cached_tokens
                reason = done.finish_reason.value
                self._finished[reason] = self._finished.get(reason, 0) + 1

    def reserve(self) -> None:
        """Take the memory of the blocks that prefixes may fill; see ``Engine.reserve``."""
        assert self.scheduler.pool.touched == 0
        self.runner.kv.touch(self.scheduler.pool.keep)

    def _claim(self, names: Sequence[str]) -> None:
        """Make sure that no request has one of the ids of another's choices."""
        ended = names[0] not in self._output
        if ended and any(name in self.scheduler for name in names):
            self._settle()  # its last delta is out, but its last step is not committed
        if not ended or any(name in self.scheduler for name in names):
            raise RequestError(f"request id {names[0]!r} is in use", param="request_id")

    def _unused(self, name: str) -> bool:
        """Whether no live request has this id, nor one whose last step is not committed."""
        return name not in self._output and name not in self.scheduler

    def _seed(self, params: SamplingParams) -> int:
        if params.seed is not None:
            return params.seed
        if self._config.seed is not None:
            return (self._config.seed + next(self._seeds) * 0x9E3779B97F4A7C15) & ((1 << 63) - 1)
        return secrets.randbits(63)


def build_loop(
    network: Decoder, tokenizer: Tokenizer, config: EngineConfig, memory: MemoryPlan
) -> StepLoop:
    """KV cache, scheduler, runner and output around a loaded network."""
    size, rotary, longest = config.block_size, Rotaries(network.config), memory.max_context
    end_tokens = frozenset(network.config.eos_token_ids) | tokenizer.eos_ids
    keep = prefix_blocks(memory, config, network.backend.device)
    pool = BlockPool(memory.blocks, size, keep)
    # Keys that depend on the length of their text cannot serve another one.
    share = config.prefix_cache and not rotary.varies(longest)
    # A GPU's steps are bounded by their tokens alone until someone has timed them there.
    auto = CPU_STEP_MS if network.backend.device.type == "cpu" else 0
    step_ms = auto if config.max_step_ms is None else config.max_step_ms
    limits = SchedulerConfig(
        config.max_batch, config.max_batch_tokens, longest, share, step_ms / 1000
    )
    specs, backend, batch = block_states(network.config), network.backend, config.max_batch
    slots = batch + memory.snapshots
    kv = KVCache(specs, memory.blocks, size, backend.kv_dtype, backend.device, slots)
    kept = memory.snapshots if share else 0
    if kv.stateful and not kept:
        log.info("no snapshots of states are kept: every prompt is computed from its beginning")
    snapshots = SnapshotPool(batch, kept, size) if kv.stateful else None
    scheduler = Scheduler(limits, pool, end_tokens, snapshots)
    rows = Rows(batch, longest, size, rotary, kv.stateful)
    valid = min(tokenizer.vocab_size, network.config.vocab_size)
    sampler = Sampler(valid, backend.drawer, tokenizer.suppressed, end_tokens)
    executor = backend.executor(network, kv, config.max_batch)
    runner = ModelRunner(network, kv, rows, sampler, executor)
    output = OutputProcessor(tokenizer, end_tokens)
    draws = DrawStates(tokenizer, valid)
    return StepLoop(config, longest, scheduler, runner, output, draws)


def _shown(name: str) -> str:
    """The id of a choice, for the log."""
    first, choice, index = name.partition("\0")
    return f"{first} (choice {index})" if choice else first


def _reseeded(params: SamplingParams, index: int) -> SamplingParams:
    """The parameters of a choice: choice i draws what a request with seed + i would.

    Not by ``replace``: that would take a seed of -1 for none, and check long lists once a choice.
    """
    other = copy.copy(params)
    if params.seed is not None:
        seed = (params.seed + index + INT63 + 1) % (2 * INT63 + 2) - INT63 - 1
        object.__setattr__(other, "seed", seed)
    return other
