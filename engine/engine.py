"""``Engine``: the public face. It wires the parts together and runs the step loop."""

from __future__ import annotations

import itertools
import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from halfbyte.errors import EngineDeadError, RequestError

from ..loaders import open_checkpoint
from ..loaders.quantizing import QuantizingCheckpoint
from ..loaders.store import resolve_model
from .backends import make_ops
from .block_pool import BlockPool
from .config import make_config
from .graphs import GraphPool
from .kv_cache import KVCache
from .layers.rope import Rotaries
from .memory import MemoryPlan, free_memory, plan_memory
from .model_runner import ModelRunner
from .models.registry import model_class
from .outbox import Outbox
from .output import OutputProcessor
from .plan import StepPlan
from .prompts import Prompt, only_ids, prompt_ids, prompt_list
from .request import Completion, Delta, PromptScore, Request, SamplingParams, TokenEvent
from .rows import Rows
from .sampler import Sampler
from .scheduler import Scheduler, SchedulerConfig
from .scoring import prompt_logits, score_prompt
from .stats import EngineStats, Stopwatch
from .tokenizer import Tokenizer
from .warmup import make_ready

log = logging.getLogger(__name__)

# One failure may be the fault of a request; several in a row are the engine's.
MAX_FAILED_STEPS = 3
# Tokens whose logits are computed at once: all of them, over the whole vocabulary, stay in memory.
LOGITS_CHUNK = 256


class Engine:
    """Loads a model and generates text; one thread may use an engine at a time.

    Args:
        model: local path, registered name (``smollm2``) or an already pulled repository id.
        progress: called with (layers loaded, layers in all).
        options: fields of :class:`EngineConfig`.

    Raises:
        HalfbyteError: the model is missing, damaged or not supported, or an option is wrong.
    """

    def __init__(
        self,
        model: str | Path = "smollm2",
        *,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> None:
        self.config = make_config(options)
        self.startup: dict[str, float] = {}
        clock = Stopwatch(self.startup)
        path = resolve_model(model)
        checkpoint = open_checkpoint(path)
        try:
            if self.config.quantize is not None:
                checkpoint = QuantizingCheckpoint(checkpoint, self.config.quantize)
            clock("headers")
            self.model_config = checkpoint.config
            family = model_class(self.model_config.architecture)
            self.name = self.model_config.name or path.stem
            ops = make_ops(self.config)
            clock("backend")
            source = checkpoint.tokenizer()
            self.tokenizer = Tokenizer.from_source(source, self.model_config.vocab_size)
            clock("tokenizer")
            # Before the weights, so that a wish that cannot be met is refused at once.
            self.memory: MemoryPlan = plan_memory(
                self.model_config, self.config, ops.kv_dtype, free_memory(ops.device)
            )
            network = family(self.model_config, checkpoint, ops, progress)
            clock("weights")
            self.report = checkpoint.report()
        finally:
            checkpoint.close()
        self.backend = ops.name
        self.max_context = self.memory.max_context
        self._network = network
        self._rotary = Rotaries(self.model_config)
        self._build(network)
        clock("kv cache")
        self._monitor = make_ready(self._runner, self.config, self.max_context)
        clock("warm-up")

    def _build(self, network: Any) -> None:
        """KV cache, scheduler and runner around a loaded network."""
        cfg, size = self.config, self.config.block_size
        end_tokens = frozenset(self.model_config.eos_token_ids) | self.tokenizer.eos_ids
        self._pool = BlockPool(self.memory.blocks, size)
        # Keys that depend on the length of their text cannot serve another one.
        share = cfg.prefix_cache and not self._rotary.varies(self.max_context)
        limits = SchedulerConfig(cfg.max_batch, cfg.max_batch_tokens, self.max_context, share)
        self._scheduler = Scheduler(limits, self._pool, end_tokens)
        kv = KVCache(
            self.model_config, self.memory.blocks, size, network.ops.kv_dtype, network.ops.device
        )
        rows = Rows(cfg.max_batch, self.max_context, size, self._rotary)
        graphs = GraphPool(network, kv, cfg.max_batch)
        valid = min(self.tokenizer.vocab_size, self.model_config.vocab_size)
        sampler = Sampler(valid, network.ops, self.tokenizer.suppressed)
        self._runner = ModelRunner(network, kv, rows, sampler, graphs)
        self._output = OutputProcessor(self.tokenizer, end_tokens)
        self._outbox = Outbox()
        self._in_flight: tuple[StepPlan, dict[str, int]] | None = None
        self._ids = itertools.count()
        self._seeds = itertools.count()
        self._failures = 0
        self._steps = self._prompt_tokens = self._generated = self._cached = 0
        self._finished: dict[str, int] = {}
        self._closed = False

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one decode step reads."""
        return self._network.weight_bytes

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> str:
        """Queue a prompt (text or token ids); returns the request's id.

        The answer ends when the context is full, even if ``max_tokens`` asks for more.

        Raises:
            RequestError: empty or too long prompt, unknown token ids, or an id in use.
        """
        if self._closed:
            raise EngineDeadError("the engine is closed")
        params = params or SamplingParams()
        if not isinstance(params, SamplingParams):
            raise RequestError(f"params is {params!r:.60}; expected SamplingParams", param="params")
        ids = self._tokens(prompt)
        room = self.max_context - len(ids)
        if room < 1:
            raise RequestError(
                f"the prompt has {len(ids)} tokens, but the context holds {self.max_context} "
                "with the answer",
                param="prompt",
                code="context_length_exceeded",
                hint="shorten the prompt or raise max_context",
            )
        seed = None if params.greedy else self._seed(params)
        limit = min(params.max_tokens or room, room)
        resolved = replace(
            params, seed=seed, max_tokens=limit, min_tokens=min(params.min_tokens, limit)
        )
        name = request_id or next(n for n in map("req-{}".format, self._ids) if self._unused(n))
        if name in self._output:
            raise RequestError(f"request id {name!r} is in use", param="request_id")
        if not self._unused(name):
            self._settle()  # its last delta is out, but its last step is not committed
        request = Request(name, ids, resolved, priority, cache_salt)
        self._output.add(request, seed)
        self._scheduler.add(request)
        return name

    def cancel(self, request_id: str) -> None:
        """End a request; its last delta comes with the next step. Unknown ids are ignored."""
        self._scheduler.cancel(request_id)

    def begun(self, request_id: str) -> bool:
        """Whether a request has left the queue; True for an unknown one."""
        return self._scheduler.begun(request_id)

    def has_work(self) -> bool:
        """Whether :meth:`step` would do anything."""
        return bool(self._in_flight or self._outbox) or self._scheduler.has_work()

    def step(self) -> list[Delta]:
        """Compute one step; returns what became known of requests that :meth:`submit` queued.

        Order: plan, launch, sample, commit; with ``overlap`` the commit is of the step before.
        If the computation raises, the requests of this step end with an error delta, the others
        go on, and nothing computed in the step is shared.

        Raises:
            EngineDeadError: steps failed several times in a row; nothing more will come.
        """
        self._advance()
        return self._outbox.take_rest()

    def _advance(self) -> None:
        """Compute one step and put its deltas into the outbox."""
        with self._runner.threads():
            self._step()

    def _step(self) -> None:
        plan = self._scheduler.schedule()
        events = []
        try:
            for init in plan.admitted:
                cached = self._scheduler.cached_tokens(init.request.id)
                self._output.started(init.request.id, cached)
            forward = self._runner.launch(plan) if plan.work else None
            if self._in_flight is not None:
                events += self._scheduler.commit(*self._in_flight)
                self._in_flight = None
            sampled = self._runner.sample(forward) if forward is not None else {}
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            failed = self._scheduler.abort(plan, reason)
            self._put(events + failed)
            if not isinstance(error, Exception):
                raise
            self._scheduler.check()
            self._failures += 1
            log.exception("a step failed; %d requests end", len(failed))
            if self._failures >= MAX_FAILED_STEPS:
                raise EngineDeadError(
                    f"{self._failures} steps failed in a row: {reason}"
                ) from error
            return
        self._failures = 0
        self._steps += bool(plan.work)
        if self.config.overlap and plan.work:
            self._in_flight = (plan, sampled)
        else:
            events += self._scheduler.commit(plan, sampled)
        self._put(events)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Answer all prompts as one batch, in order.

        ``prompts`` is one prompt or a list of them, each text or token ids; ``params`` is one
        for all or one for each. A completion whose step failed has the finish reason ``error``
        and the text so far. Raises RequestError before anything runs if any is unusable.
        """
        items = prompt_list(prompts)
        each = [params] * len(items) if not isinstance(params, Sequence) else list(params)
        if len(each) != len(items):
            raise RequestError(
                f"{len(each)} sampling parameters for {len(items)} prompts", param="params"
            )
        names: list[str] = []
        done: dict[str, Completion] = {}
        box: deque[Delta] = deque()
        try:
            for prompt, one in zip(items, each, strict=True):
                names.append(self.submit(prompt, one))
                self._outbox.open(names[-1], box)
            while len(done) < len(names):
                self._advance()
                while box:
                    delta = box.popleft()
                    if delta.completion is not None:
                        done[delta.request_id] = delta.completion
        finally:
            self._discard([n for n in names if n not in done])
            self._outbox.close(names)
        return [done[name] for name in names]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Delta]:
        """Deltas of one answer as they come; closing the iterator cancels the request."""
        name = self.submit(prompt, params)
        box: deque[Delta] = deque()
        self._outbox.open(name, box)
        finished = False
        try:
            while not finished:
                while box:
                    delta = box.popleft()
                    finished = delta.completion is not None
                    yield delta
                if not finished:
                    self._advance()
        finally:
            if not finished:
                self._discard([name])
            self._outbox.close([name])

    def logits(self, token_ids: list[int]) -> Tensor:
        """Float32 logits [T, V] at every position of a prompt of token ids.

        Raises:
            RequestError: text instead of ids, an unknown id, none, or more than the context holds.
        """
        if self._closed:
            raise EngineDeadError("the engine is closed")
        ids = self._tokens(only_ids(token_ids))
        if len(ids) > self.max_context:
            raise RequestError(
                f"{len(ids)} tokens, but the context holds {self.max_context}",
                param="token_ids",
                code="context_length_exceeded",
            )
        chunk = min(self.config.max_batch_tokens, LOGITS_CHUNK)
        with self._runner.threads():
            return prompt_logits(self._network, self._rotary, ids, self.config.block_size, chunk)

    def score(self, prompts: Sequence[list[int]]) -> list[PromptScore]:
        """Log-probabilities (natural) of each prompt's tokens given those before them."""
        return [score_prompt(self.logits(ids), list(ids)) for ids in prompts]

    def stats(self) -> EngineStats:
        """Counters and gauges."""
        return EngineStats(
            running=self._scheduler.running,
            waiting=self._scheduler.waiting,
            kv_blocks_used=len(self._pool) - self._pool.free_count(),
            kv_blocks_total=len(self._pool),
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generated,
            cached_tokens=self._cached,
            preemptions=self._scheduler.preemptions,
            steps=self._steps,
            finished=dict(self._finished),
        )

    def close(self) -> None:
        """Cancel live requests and refuse new ones; memory goes with the object."""
        self._closed = True
        if self._monitor is not None:
            self._monitor.disarm()
        self._discard(self._output.live())
        self._outbox.take_rest()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _tokens(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, checked against the vocabulary."""
        return prompt_ids(prompt, self.tokenizer, self.model_config.vocab_size)

    def _unused(self, name: str) -> bool:
        """Whether no live request has this id, nor one whose last step is not committed."""
        return name not in self._output and name not in self._scheduler

    def _seed(self, params: SamplingParams) -> int:
        if params.seed is not None:
            return params.seed
        if self.config.seed is not None:
            return (self.config.seed + next(self._seeds) * 0x9E3779B97F4A7C15) & ((1 << 63) - 1)
        return secrets.randbits(63)

    def _put(self, events: Sequence[TokenEvent]) -> None:
        """Turn events into deltas for the outbox, and count."""
        for event in events:
            self._generated += len(event.tokens)
            delta = self._output.process(event)
            if delta is None:
                continue
            self._outbox.put(delta)
            done = delta.completion
            if done is not None:
                if event.finish is None:
                    # A stop string ended it; the scheduler cannot know.
                    self._scheduler.end(event.request_id, done.finish_reason, report=False)
                self._prompt_tokens += done.usage.prompt_tokens
                self._cached += done.usage.cached_tokens
                reason = done.finish_reason.value
                self._finished[reason] = self._finished.get(reason, 0) + 1

    def _discard(self, names: Sequence[str]) -> None:
        """Cancel requests that nobody waits for any more, and run their last events off."""
        for name in names:
            self._scheduler.cancel(name)
        if names:
            self._settle()

    def _settle(self) -> None:
        """Commit what is in flight, without a new step."""
        plan, sampled = self._in_flight or (StepPlan(0, (), (), (), 0, False), {})
        self._in_flight = None
        self._put(self._scheduler.commit(plan, sampled))
