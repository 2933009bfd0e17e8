"""``Engine``: the public face. It opens the model and takes turns at the step loop."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, Unpack, overload

from torch import Tensor

from halfbyte.errors import RequestError

from ..loaders import open_checkpoint
from ..loaders.model.quantizing import QuantizingCheckpoint
from ..loaders.store.model_store import resolve_model
from .answers import AnswerScore
from .backends import make_backend
from .backends.activations import check_activations
from .backends.packed_cache import open_packed_cache
from .beam import Beam, BeamSearch
from .config import make_config
from .fields import EngineOptions, SamplingFields
from .grammar.compiler import GrammarCompiler
from .models.decoder import Decoder
from .params import SamplingParams, sampling_params
from .progress import BatchProgress, reporting
from .reading import PromptReading
from .request import Completion, Delta, PromptReader, PromptScore
from .run.memory import MemoryPlan, free_memory, plan_memory
from .run.readers import Pooling
from .run.stats import EngineStats, Stopwatch
from .run.step_loop import build_loop
from .run.warmup import make_ready
from .serve.interrupts import uninterrupted
from .serve.process import OwnProcess
from .serve.turns import Turns
from .text.collector import collector_paused
from .text.prompts import Prompt, Prompts, TokenIds, only_ids, prompt_ids, prompt_list
from .text.token_bound import TokenLimit
from .text.tokenizer import Tokenizer
from .text.tokenizer_thread import TokenizerThread

log = logging.getLogger(__name__)


Conversation: TypeAlias = Sequence[Mapping[str, Any]]
"""Messages with ``role`` and ``content``, oldest first."""


class Engine:
    """Loads a model and generates text.

    Several threads may use one engine: they compute in turn, a step at a time, and requests of
    all of them run as one batch.

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
        **options: Unpack[EngineOptions],
    ) -> None:
        self.config = make_config({**options})
        self._turns = Turns()
        self.startup: dict[str, float] = {}
        clock = Stopwatch(self.startup)
        self._process = OwnProcess()
        path = resolve_model(model)
        with collector_paused():
            checkpoint = open_checkpoint(path)
        try:
            if self.config.quantize is not None:
                checkpoint = QuantizingCheckpoint(checkpoint, self.config.quantize)
            check_activations(self.config.activations, checkpoint)
            clock("headers")
            self.model_config = checkpoint.config
            self.name = self.model_config.name or path.stem
            backend = make_backend(self.config)
            clock("backend")
            source = checkpoint.tokenizer()
            clock("vocabulary")
            # Before the weights, so that a wish that cannot be met is refused at once.
            self.memory: MemoryPlan = plan_memory(
                self.model_config, self.config, backend.kv_dtype, free_memory(backend.device)
            )
            cache = open_packed_cache(self.config, checkpoint, backend.packer)
            with TokenizerThread(source, self.model_config.vocab_size) as building:
                told = building.beside(progress)
                network = Decoder(self.model_config, checkpoint, backend, told, cache)
                clock("weights")
                self.tokenizer: Tokenizer = building.result()
            clock("tokenizer")
            if cache is not None:
                cache.save()
                clock("packed cache")
            self.report = checkpoint.report()
        finally:
            checkpoint.close()
        self.backend = backend.name
        self.max_context = self.memory.max_context
        self.weight_bytes: int = network.weight_bytes
        """Bytes of weights that one decode step reads."""
        self._loop = build_loop(network, self.tokenizer, self.config, self.memory)
        ends = frozenset(self.model_config.eos_token_ids) | self.tokenizer.eos_ids
        self._grammars = GrammarCompiler(self.tokenizer, self.model_config.vocab_size, ends)
        clock("kv cache")
        self._monitor = make_ready(self._loop.runner, self.config, self.max_context)
        clock("warm-up")
        log.debug("loaded %s from %s as %r", model, path, self.config)
        for phase, seconds in self.startup.items():
            log.debug("%s took %.3f s", phase, seconds)
        log.debug("ready: %r", self)

    def __repr__(self) -> str:
        state = "closed" if self._loop.closed else f"{self.weight_bytes / 1e6:.3g} MB of weights"
        return (
            f"<Engine {self.name!r}: {self.model_config.architecture}, {state}, "
            f"backend {self.backend}, context {self.max_context}, batch {self.config.max_batch}>"
        )

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        reader: PromptReader | None = None,
    ) -> str:
        """Queue a prompt (text or token ids); returns the request's id.

        The answer ends when the context is full, even if ``max_tokens`` asks for more. A
        ``reader`` (``engine/run/readers.py``) looks at what is computed of the prompt.

        Raises:
            RequestError: no or too long prompt, unknown token ids, id in use, or two readers.
        """
        params = sampling_params(params, {})
        ids = self._tokens(prompt, self._limit())
        grammar = self._grammars.of(params)
        with self._turn(), uninterrupted():
            return self._loop.submit(
                ids, params, request_id, priority, cache_salt, grammar=grammar, reader=reader
            )

    def cancel(self, request_id: str) -> None:
        """End a request; its last delta comes with the next step. Unknown ids are ignored."""
        if self._turns.mine:  # a signal handler or a finalizer in the middle of a step
            self._loop.abandoned.append(request_id)
            return
        with self._turn(), uninterrupted():
            self._loop.cancel(request_id)

    def _turn(self) -> Turns:
        """Whose turn it is, in this process. Raises EngineDeadError in a child forked too soon."""
        if self._process.enter(self._loop.has_work() or self._turns.taken):
            self._turns = Turns()
        return self._turns

    def begun(self, request_id: str) -> bool:
        """Whether a request has left the queue; True for an unknown one."""
        return self._loop.scheduler.begun(request_id)

    def has_work(self) -> bool:
        """Whether :meth:`step` would do anything."""
        return self._loop.has_work()

    def step(self) -> list[Delta]:
        """Compute one step; returns what became known of requests that :meth:`submit` queued.

        Order: plan, launch, draw, commit; with ``overlap``: plan, launch, commit of the step
        before, draw.
        A request whose own row fails ends alone, with an error delta. If the whole computation
        raises, the requests of this step end so, the others go on, and nothing computed in the
        step is shared.

        Raises:
            EngineDeadError: steps failed several times in a row; nothing more will come.
        """
        with self._turn(), uninterrupted():
            self._loop.advance()
            return self._loop.outbox.take_rest()

    def generate(
        self,
        prompts: Prompts,
        params: SamplingParams | Iterable[SamplingParams | None] | None = None,
        *,
        progress: bool | BatchProgress = False,
        **fields: Unpack[SamplingFields],
    ) -> list[Completion]:
        """Answer all prompts as one batch, in order.

        Args:
            prompts: one prompt or several, each text or token ids (list, array, generator).
            params: sampling parameters, one for all or one for each.
            progress: True shows a bar on the terminal (stderr); or what is called with the prompts
                answered, those there are, and the tokens drawn so far.
            fields: fields of ``SamplingParams`` that replace those of ``params``.

        Returns:
            A completion for each prompt. One whose step failed has the finish reason ``error``
            and the text so far.

        Raises:
            RequestError: any prompt or parameter is unusable; then nothing runs.
        """
        items = prompt_list(prompts)
        if params is None or isinstance(params, SamplingParams):
            each: list[SamplingParams | None] = [params] * len(items)
        elif isinstance(params, (Mapping, str)):
            raise RequestError(f"params is {params!r:.60}; expected SamplingParams", param="params")
        else:
            each = list(params)
        if len(each) != len(items):
            raise RequestError(
                f"{len(each)} sampling parameters for {len(items)} prompts", param="params"
            )
        wanted = [
            (self._tokens(prompt, self._limit()), sampling_params(p, fields))
            for prompt, p in zip(items, each, strict=True)
        ]
        with reporting(progress) as report:
            return self._run([(ids, checked, None) for ids, checked in wanted], report)

    def _run(
        self,
        wanted: Sequence[tuple[list[int], SamplingParams, PromptReader | None]],
        report: BatchProgress = lambda done, total, tokens: None,
    ) -> list[Completion]:
        """Run prompts as one batch, each with its parameters and its reader; in order."""
        grammars = [self._grammars.of(params) for _, params, _ in wanted]
        names: list[str] = []
        done: dict[str, Completion] = {}
        box: deque[Delta] = deque()
        tokens = 0
        try:
            for (ids, params, reader), grammar in zip(wanted, grammars, strict=True):
                with self._turn(), uninterrupted():
                    names.append(self._loop.submit(ids, params, grammar=grammar, reader=reader))
                    self._loop.outbox.open(names[-1], box)
            while len(done) < len(names):
                for delta in self._receive(box):
                    tokens += len(delta.token_ids)
                    if delta.completion is not None:
                        done[delta.request_id] = delta.completion
                report(len(done), len(names), tokens)
        finally:
            self._let_go([n for n in names if n not in done], names)
        return [done[name] for name in names]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        **fields: Unpack[SamplingFields],
    ) -> Generator[Delta, None, None]:
        """Deltas of one answer as they come; closing the iterator cancels the request.

        Arguments and errors as for :meth:`generate`, raised by the first ``next``.
        """
        checked = sampling_params(params, fields)
        if checked.choices > checked.n:
            raise RequestError(
                f"best_of is {checked.best_of}: the best of them are known at the end only",
                param="best_of",
                hint="leave it out, or use generate",
            )
        ids = self._tokens(prompt, self._limit())
        grammar = self._grammars.of(checked)
        box: deque[Delta] = deque()
        names: list[str] = []
        finished = False
        try:
            with self._turn(), uninterrupted():
                names.append(self._loop.submit(ids, checked, grammar=grammar))
                self._loop.outbox.open(names[0], box)
            while not finished:
                for delta in self._receive(box):
                    finished = delta.completion is not None
                    yield delta
        finally:
            self._let_go([] if finished else names, names)

    @overload
    def chat(
        self,
        messages: Conversation,
        params: SamplingParams | None = None,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **fields: Unpack[SamplingFields],
    ) -> Completion: ...

    @overload
    def chat(
        self,
        messages: Iterable[Conversation],
        params: SamplingParams | None = None,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **fields: Unpack[SamplingFields],
    ) -> list[Completion]: ...

    def chat(
        self,
        messages: Conversation | Iterable[Conversation],
        params: SamplingParams | None = None,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **fields: Unpack[SamplingFields],
    ) -> Completion | list[Completion]:
        """Answer a conversation, or several as one batch, through the model's chat template.

        Args:
            messages: one conversation, or an iterable of them.
            params: sampling parameters.
            chat_template_kwargs: variables for the template (``tools``, ``enable_thinking`` ...).
            fields: fields of ``SamplingParams`` that replace those of ``params``.

        Returns:
            A completion for one conversation, a list for several.

        Raises:
            RequestError: malformed messages, or as for :meth:`generate`.
            TokenizerError: the model has no chat template.
            TemplateError: the template failed or refused.
        """
        # A text or one bare message is no list of conversations: it is refused as it was given.
        bare = isinstance(messages, (str, bytes, Mapping))
        many: Any = messages if bare else list(messages)
        single = bare or not many or isinstance(many[0], Mapping)
        given = chat_template_kwargs or {}
        limit = self._limit("messages")
        prompts = [
            self.tokenizer.encode_chat(one, limit=limit, **given)
            for one in ([many] if single else many)
        ]
        done = self.generate(prompts, params, **fields)
        return done[0] if single else done

    def logits(self, token_ids: TokenIds) -> Tensor:
        """Float32 logits [T, V] at every position of a prompt of token ids.

        Raises:
            RequestError: text instead of ids, an unknown id, none, or more than the context holds.
            EngineDeadError: the computation failed.
        """
        return self._reading.logits(self._tokens(only_ids(token_ids)))

    def score(self, prompts: Prompts) -> list[PromptScore]:
        """Log-probabilities (natural) of each prompt's tokens given those before them.

        ``prompts`` is one prompt or several, each text or token ids; they run as one batch, beside
        what else runs. Raises as :meth:`logits` does.
        """
        return self._reading.scores([self._tokens(p) for p in prompt_list(prompts)])

    def embed(
        self, prompts: Prompts, *, pooling: Pooling = "mean", normalize: bool = True
    ) -> Tensor:
        """Hidden states after the last norm, pooled over each prompt: float32 [N, D].

        Args:
            prompts: one prompt or several, each text or token ids; they run as one batch.
            pooling: ``mean`` over all positions, the ``last`` one, or the first (``cls``).
            normalize: scale each vector to length 1.

        Raises:
            RequestError: an unknown pooling, or as for :meth:`logits`.
        """
        each = [self._tokens(prompt) for prompt in prompt_list(prompts)]
        return self._reading.vectors(each, pooling, normalize)

    def choose(self, prompt: Prompt, answers: Sequence[str]) -> list[AnswerScore]:
        """How likely each of some answers is to follow a prompt, in the order given.

        Args:
            prompt: text or token ids.
            answers: texts; at least one, none empty.

        Raises:
            RequestError: no answers, an empty one, or as for :meth:`logits`.
        """
        return self._reading.choices(self._tokens(prompt), answers, self.tokenizer)

    def beam_search(
        self, prompt: Prompt, *, width: int = 4, max_tokens: int = 64, length_penalty: float = 1.0
    ) -> list[Beam]:
        """The likeliest answers that a beam search finds, best first.

        Args:
            prompt: text or token ids.
            width: beams that are kept and returned, at most 10.
            max_tokens: most tokens of an answer.
            length_penalty: scores are ``logprob / tokens ** length_penalty``.

        Raises:
            RequestError: a value is outside its range, or the prompt is unusable.
        """
        search = BeamSearch(width, max_tokens, length_penalty)
        ids = self._tokens(prompt, self._limit())
        if len(ids) + max_tokens > self.max_context:
            raise RequestError(
                f"the context holds {self.max_context} tokens, but the prompt has {len(ids)} and "
                f"max_tokens is {max_tokens}",
                param="max_tokens",
                code="context_length_exceeded",
            )
        ends = frozenset(self.model_config.eos_token_ids) | self.tokenizer.eos_ids
        beams = search.run(ids, ends, self.generate)
        return [
            replace(beam, text=self.tokenizer.decode(beam.token_ids, continuation=True))
            for beam in beams
        ]

    def prepare(self, params: SamplingParams) -> None:
        """Compile what parameters need, from any thread; a later request with them finds it done.

        Raises RequestError for a grammar that cannot be honoured.
        """
        self._grammars.of(params)

    def _receive(self, box: deque[Delta]) -> list[Delta]:
        """What has come into a box; computes a step when it is empty."""
        with self._turn(), uninterrupted():
            if not box:
                self._loop.advance()
            deltas = list(box)
            box.clear()
            return deltas

    def _let_go(self, live: Sequence[str], names: Sequence[str]) -> None:
        """Nobody waits for ``names`` any more; ``live`` are those that have not ended."""
        if self._turns.mine:
            # The collector finalizes a forgotten stream in the middle of a step of this thread.
            self._loop.abandoned.extend(live)
            return
        if self._process.inherited:
            return  # they run in the process that this one was forked from
        with self._turns, uninterrupted():
            self._loop.discard(live)
            self._loop.outbox.close(names)

    def stats(self) -> EngineStats:
        """Counters and gauges; after :meth:`close` those of its moment."""
        return self._loop.stats()

    def reserve(self) -> None:
        """Take the memory that prefixes may fill from the system now, not request by request.

        For servers, whose need is then known at the start. Only while nothing was computed.
        """
        with self._turn(), uninterrupted():
            self._loop.reserve()

    def close(self) -> None:
        """Cancel live requests, refuse new ones, free the weights and the KV cache."""
        if self._process.inherited and self._loop.has_work():
            return  # all of it belongs to the process that this one was forked from
        with self._turn(), uninterrupted():
            if self._loop.closed:
                return
            if self._monitor is not None:
                self._monitor.disarm()
            self._loop.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def _reading(self) -> PromptReading:
        # Made for each call: kept, it would keep the engine, whose memory then waits for a
        # collection of garbage when the last reference is gone.
        return PromptReading(self._run, self.max_context)

    def _tokens(self, prompt: Prompt, limit: TokenLimit | None = None) -> list[int]:
        """Token ids of a prompt, checked against the vocabulary."""
        return prompt_ids(prompt, self.tokenizer, self.model_config.vocab_size, limit)

    def _limit(self, param: str = "prompt") -> TokenLimit:
        """Texts that are far too long are refused before they are tokenized."""
        return TokenLimit(self.max_context, param)
