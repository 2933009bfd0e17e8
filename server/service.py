"""The OpenAI API as plain async functions over schema objects; knows no web framework.

A call returns a response object, or an `EventStream` of framed server-sent events. Failures are
raised as `ApiError` or an error of ours that `as_api_error` can translate. Cancelling the task
that runs a call, or closing its stream, cancels the work in the engine.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import halfbyte
from halfbyte.errors import RequestError

from ..engine.params import PROMPT_ONLY, SamplingParams
from ..engine.request import Completion, PromptReader
from ..engine.run.stats import EngineStats
from ..engine.serve.client import EngineClient, EngineFacts, Health
from .admission import Admission, QueueLimits
from .answers.plan import AnswerPlan
from .dialects.base import Head, ResponseWriter
from .dialects.chat import ChatDialect
from .dialects.completions import CompletionDialect
from .dialects.token_text import TokenText
from .errors import ApiError, as_api_error, no_such_model
from .event_stream import EventStream
from .facts import ServedModel, info_labels
from .job import Call, Job
from .kept import KeptResponses
from .metric_families import Exposition
from .metrics import Metrics
from .responses import (
    ChatCompletion,
    DetokenizeResponse,
    TemplateResponse,
    TextCompletion,
    TokenizeResponse,
)
from .schema import (
    DEFAULT_COMPLETION_TOKENS,
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    ReadingRequest,
    TemplateRequest,
    TokenizeRequest,
)
from .texts import TextWork

logger = logging.getLogger("halfbyte.server")


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """Policies of the service.

    Attributes:
        names: model names that requests may use, the first is the one shown; empty takes the
            engine's.
        queue: bounds of what waits for a place in the batch.
        metrics_prefix: what the names of metrics begin with, before the colon.
        keep_alive_s: seconds of silence after which a stream gets a comment line; also how
            long the status of a stream is held back for an early failure.
        text_threads: threads for templates and tokenizing.
        kept_bytes: of responses that are kept for those that go on from them.
    """

    names: tuple[str, ...] = ()
    queue: QueueLimits = field(default_factory=QueueLimits)
    metrics_prefix: str = "halfbyte"
    keep_alive_s: float = 10.0
    text_threads: int = 2
    kept_bytes: int = 64 << 20


class OpenAIService:
    """Serves one model.

    Args:
        client: the engine; `start` starts it and `close` ends it.
        config: policies.
        facts: what is known of the model's files.
        exposition: the metrics of the server; None makes some.
        kept: responses that later ones may go on from; None keeps this service's alone.

    Attributes:
        names: model names that requests may use, the first is the one shown.
        engine: what stays the same of the engine.
        created: Unix time when the service was made, seconds.
        digest: hexadecimal digits that stand for model, version and engine options.
        fingerprint: value of ``system_fingerprint``, made of it.
        kept: responses that later ones may go on from.
    """

    def __init__(
        self,
        client: EngineClient,
        config: ServiceConfig | None = None,
        facts: ServedModel | None = None,
        *,
        exposition: Exposition | None = None,
        kept: KeptResponses | None = None,
    ) -> None:
        self.config = config or ServiceConfig()
        self.names = self.config.names or (client.name,)
        self.engine: EngineFacts = client
        self.kept = KeptResponses(self.config.kept_bytes) if kept is None else kept
        self._client = client
        self.facts = facts or ServedModel()
        self.metrics = Metrics(
            self.names[0],
            client.stats,
            exposition or Exposition(self.config.metrics_prefix),
            longest=client.max_context,
            infos=info_labels(self),
        )
        self.created = int(time.time())
        self._admission = Admission(client, self.config.queue, self.metrics)
        self._texts = TextWork(client.tokenizer, self.config.text_threads)
        served = [halfbyte.__version__, client.name, client.max_context, asdict(client.config)]
        self.digest = hashlib.sha256(json.dumps(served, sort_keys=True).encode()).hexdigest()
        self.fingerprint = f"hb-{self.digest[:12]}"

    async def start(self) -> None:
        """Start the engine on the running event loop."""
        self._client.observe(self.metrics)
        await self._client.start()

    async def close(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, give the live ones ``drain_s`` seconds, end the rest."""
        self._admission.close()
        await self._client.close(drain_s)
        self._texts.close()

    def cut_short(self) -> None:
        """End the requests that `close` still waits for; their streams get an error event."""
        self._admission.cancel_all()

    # Endpoints.

    async def complete(
        self, request: CompletionRequest, call: Call
    ) -> TextCompletion | EventStream:
        """POST /v1/completions."""

        def writer(head: Head, ids: list[list[int]], echo: Sequence[str]) -> ResponseWriter:
            return CompletionDialect(
                head,
                self._token_text(request),
                request.n or 1,
                with_ids=bool(request.return_token_ids),
                rated=request.logprobs is not None,
                echo=echo,
                prompts=ids,
                prompt_logprobs=request.prompt_logprobs is not None,
            )

        # OpenAI's clients send an empty suffix for none.
        plain = request.model_copy(update={"suffix": request.suffix or None})
        return await self.prolong(plain, call, writer, DEFAULT_COMPLETION_TOKENS)

    async def prolong(
        self,
        request: CompletionRequest,
        call: Call,
        writer: Callable[[Head, list[list[int]], Sequence[str]], ResponseWriter],
        default: int | None,
        kind: str = "cmpl-",
    ) -> Any:
        """What follows prompts, in the form of whatever endpoint asked.

        Args:
            request: the prompts.
            call: the request's record.
            writer: makes the writer of the answers, of the prompts' token ids and of their texts
                where those are wanted.
            default: most tokens where the request gives no limit; None is up to the context.
            kind: what the response's id begins with.

        Returns:
            The writer's response object, or an `EventStream`.
        """
        name = self.served(request.model)
        prompts = request.prompts()
        limit, n = request.token_limit, request.n or 1
        with self._admission.places(len(prompts) * max(n, request.best_of or 1)):
            ids = await self.prompt_ids(request, limit if limit is not None else default)
            whole = prompts if request.truncate_prompt_tokens is None else ids
            echo = await self._texts.echoes(whole) if request.echo else ()
            params = [self._params(request, p, limit, default, "prompt") for p in ids]
            job = self._submit(request, ids, params, call)
        dialect = writer(self._head(kind, request, name, call), ids, echo)
        if request.stream:
            return await self._stream(job, dialect)
        return dialect.body(await self._finish(job), job.usage())

    async def chat(
        self,
        request: ChatCompletionRequest,
        call: Call,
        dialect: Callable[..., ChatDialect] = ChatDialect,
    ) -> ChatCompletion | EventStream:
        """POST /v1/chat/completions.

        Args:
            request: the conversation.
            call: the request's record.
            dialect: makes the writer of the answers; takes what `ChatDialect` does.
        """
        n, rated = request.n or 1, bool(request.logprobs)
        return await self.converse(
            request,
            call,
            lambda head, plan, ids: dialect(
                head,
                self._token_text(request),
                n,
                rated=rated,
                plan=plan,
                prompt=ids if request.return_token_ids else None,
            ),
        )

    async def converse(
        self,
        request: ChatCompletionRequest,
        call: Call,
        writer: Callable[[Head, AnswerPlan, list[int]], ResponseWriter],
        kind: str = "chatcmpl-",
    ) -> Any:
        """The answers to a conversation, in the form of whatever endpoint asked.

        Args:
            request: the conversation.
            call: the request's record.
            writer: makes the writer of the answers, of the response's head, what is to be
                looked for in their texts, and the prompt's token ids.
            kind: what the response's id begins with.

        Returns:
            The writer's response object, or an `EventStream`.
        """
        name = self.served(request.model)
        with self._admission.places(request.n or 1):
            ids, plan = await self._texts.planned_chat(request, self._client.max_context)
            params = self._params(request, ids, request.token_limit, None, "messages")
            if plan.syntax is not None:
                grammar = plan.grammar or params.grammar
                params = replace(
                    params,
                    grammar=grammar,
                    shown_special_ids=plan.shown,
                    reasoning_limit=plan.limit,
                )
            job = self._submit(request, [ids], [params], call)
        dialect = writer(self._head(kind, request, name, call), plan, ids)
        if request.stream:
            return await self._stream(job, dialect)
        return dialect.body(await self._finish(job), job.usage(dialect.reasoning_tokens))

    async def read(
        self,
        request: ReadingRequest,
        call: Call,
        count: int,
        prepare: Callable[[TextWork], Awaitable[Sequence[tuple[list[int], PromptReader]]]],
    ) -> None:
        """Compute prompts, and let readers look at what is computed.

        Args:
            request: what was asked.
            call: its record.
            count: how many prompts there will be.
            prepare: makes the prompts' token ids, and the reader of each.
        """
        with self._admission.places(count):
            prompts = await prepare(self._texts)
            ids, readers = [ids for ids, _ in prompts], [reader for _, reader in prompts]
            job = self._submit(request, ids, [PROMPT_ONLY] * len(ids), call, readers)
        await self._finish(job)

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResponse:
        """POST /tokenize."""
        self.served(request.model)
        if request.messages is not None:
            ids = await self._texts.chat(request.messages, request, tools=request.tools or ())
        else:
            (ids,) = await self._texts.prompts([request.prompt or ""], request.add_special_tokens)
        return TokenizeResponse(
            count=len(ids),
            max_model_len=self._client.max_context,
            tokens=ids,
            token_strs=await self._texts.pieces(ids) if request.return_token_strs else None,
        )

    async def detokenize(self, request: DetokenizeRequest) -> DetokenizeResponse:
        """POST /detokenize; special tokens are part of the text."""
        self.served(request.model)
        text = await self._texts.decode(request.tokens)
        return DetokenizeResponse(prompt=text, content=text)

    async def render(self, request: TemplateRequest) -> TemplateResponse:
        """POST /apply-template."""
        self.served(request.model)
        return TemplateResponse(prompt=await self._texts.render(request.messages, request))

    def stats(self) -> EngineStats:
        """Counters of the engine."""
        return self._client.stats()

    def health(self) -> Health:
        """State of the engine; not accepting once `close` has begun."""
        return replace(self._client.health(), accepting=self._admission.open)

    # Steps of an endpoint.

    def _token_text(self, request: CompletionRequest | ChatCompletionRequest) -> TokenText:
        """How a response writes single tokens."""
        as_ids = bool(request.return_tokens_as_token_ids)
        return TokenText(self._client.tokenizer, as_ids=as_ids)

    def served(self, name: str | None) -> str:
        """The model to answer as; null means the one there is. Raises a 404 for another."""
        if name is None:
            return self.names[0]
        if name not in self.names:
            raise no_such_model(name, self.names)
        return name

    async def prompt_ids(
        self, request: CompletionRequest | EmbeddingRequest, answer: int | None
    ) -> list[list[int]]:
        """Token ids of a request's prompts, of which no more is left than it asks for.

        Raises:
            RequestError: one that leaves no room for an answer, or a wrong
                ``truncate_prompt_tokens``.
        """
        kept, context = request.truncate_prompt_tokens, self._client.max_context
        suffix = request.suffix if isinstance(request, CompletionRequest) else None
        if suffix is not None:
            if kept is not None:
                raise RequestError(
                    f"truncate_prompt_tokens is {kept} beside suffix, which needs the whole prompt",
                    param="truncate_prompt_tokens",
                )
            texts = [prompt for prompt in request.prompts() if isinstance(prompt, str)]
            return await self._texts.filled(texts, suffix, context)
        ids = await self._texts.prompts(
            request.prompts(), request.add_special_tokens, context if kept is None else None
        )
        return [self._texts.cut(prompt, kept, context, answer) for prompt in ids]

    def _params(
        self,
        request: CompletionRequest | ChatCompletionRequest,
        ids: Sequence[int],
        limit: int | None,
        default: int | None,
        prompt_field: str,
    ) -> SamplingParams:
        """Sampling parameters with the token limit checked against the context."""
        room = self._client.max_context - len(ids)
        least = 1 if limit is None else limit
        if room < 0 or least > room:
            asked = "" if limit is None else f" and max_tokens is {limit}"
            raise RequestError(
                f"the context holds {self._client.max_context} tokens, but the prompt has "
                f"{len(ids)}{asked}",
                param=prompt_field if room < 1 else "max_tokens",
                code="context_length_exceeded",
                hint="shorten the prompt or lower max_tokens",
            )
        # The default of 16 gives way to the context; what the client asked for does not.
        asked = min(default or room, room) if limit is None else limit
        params = request.sampling(asked)
        self._texts.check(params.stop_token_ids, "stop_token_ids")
        return params

    def _submit(
        self,
        request: CompletionRequest | ChatCompletionRequest | ReadingRequest,
        ids: Sequence[list[int]],
        params: Sequence[SamplingParams],
        call: Call,
        readers: Sequence[PromptReader] = (),
    ) -> Job:
        self._admission.check_tokens(sum(map(len, ids)))
        call.model = self.served(request.model)
        if call.tenant.quota is not None:
            call.tenant.quota.enter(sum(map(len, ids)))
        job = Job(
            self._client,
            ids,
            params,
            readers,
            request_id=request.request_id or call.request_id,
            priority=call.tenant.priority(request.priority),
            cache_salt=call.tenant.cache_salt(request.cache_salt),
            call=call,
            max_wait_s=self._admission.limits.wait_s,
            on_close=self._admission.leave,
        )
        self._admission.enter(job)
        self.metrics.asked(params)
        return job

    def _head(
        self,
        kind: str,
        request: CompletionRequest | ChatCompletionRequest,
        name: str,
        call: Call,
    ) -> Head:
        suffix = request.request_id or call.request_id or uuid.uuid4().hex
        return Head(
            id=f"{kind}{suffix}",
            created=int(time.time()),
            model=name,
            fingerprint=self.fingerprint,
            with_usage=request.include_usage,
        )

    async def _finish(self, job: Job) -> list[Completion]:
        """Wait for whole answers; leaving early, by whatever way, cancels the job."""
        try:
            await job.accepted()
            return await job.results()
        finally:
            job.close()

    async def _stream(self, job: Job, dialect: ResponseWriter) -> EventStream:
        """Begin a stream once the engine has taken the request and not failed at once."""
        try:
            await job.accepted()
            await job.started(self.config.keep_alive_s)
        except BaseException:
            job.close()
            raise
        return EventStream(self._events(job, dialect), job, dialect.headers)

    async def _events(self, job: Job, dialect: ResponseWriter) -> AsyncGenerator[bytes, None]:
        """All frames of a response; what has come in together goes out together."""
        out = bytearray(dialect.opening(len(job)))
        try:
            async for batch in job.deltas(self.config.keep_alive_s):
                for prompt, delta in batch:
                    out += dialect.delta(prompt, delta)
                if out or not batch:
                    yield bytes(out) or dialect.idle()
                    out.clear()
            out += dialect.closing(job.usage(dialect.reasoning_tokens))
        except Exception as error:
            if not isinstance(error, ApiError):
                logger.exception("a stream failed")
            out += dialect.failure(as_api_error(error))
        finally:
            job.close()
        yield bytes(out)
