"""The OpenAI API as plain async functions over schema objects; knows no web framework.

A call returns a response object, or an `EventStream` of framed server-sent events. Failures are
raised as `ApiError` or an error of ours that `as_api_error` can translate. Cancelling the task
that runs a call, or closing its stream, cancels the work in the engine.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import halfbyte
from halfbyte.errors import RequestError

from ..engine.params import PROMPT_ONLY, SamplingParams
from ..engine.request import Completion, PromptReader
from ..engine.serve.client import EngineClient, Health
from .admission import Admission, QueueLimits
from .dialects.base import Dialect, Head
from .dialects.chat import ChatDialect
from .dialects.completions import CompletionDialect
from .dialects.token_text import TokenText
from .errors import ApiError, as_api_error
from .job import Call, Job
from .metrics import Metrics
from .responses import (
    ChatCompletion,
    DetokenizeResponse,
    EmbeddingItem,
    EmbeddingList,
    EmbeddingUsage,
    ModelCard,
    ModelList,
    TextCompletion,
    TokenizeResponse,
)
from .schema import (
    DEFAULT_COMPLETION_TOKENS,
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from .sse import DONE, KEEP_ALIVE, frame
from .texts import TextWork

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("halfbyte.server")


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """Policies of the service.

    Attributes:
        names: model names that requests may use, the first is the one shown; empty takes the
            engine's.
        queue: bounds of what waits for a place in the batch.
        keep_alive_s: seconds of silence after which a stream gets a comment line; also how
            long the status of a stream is held back for an early failure.
        text_threads: threads for templates and tokenizing.
    """

    names: tuple[str, ...] = ()
    queue: QueueLimits = field(default_factory=QueueLimits)
    keep_alive_s: float = 10.0
    text_threads: int = 2


def _encoded(vector_D: Tensor, encoding: str | None) -> list[float] | str:
    """A vector [D] as numbers, or as base64 of its little-endian float32."""
    if encoding == "base64":
        return base64.b64encode(vector_D.numpy().astype("<f4").tobytes()).decode()
    return vector_D.tolist()


class EventStream:
    """Framed events of one response; must be closed, which cancels what still runs."""

    def __init__(self, events: AsyncGenerator[bytes, None], job: Job) -> None:
        self._events = events
        self._job = job

    def __aiter__(self) -> AsyncGenerator[bytes, None]:
        return self._events

    async def aclose(self) -> None:
        """End the stream. A generator never started runs no finally, hence the job here."""
        self._job.close()
        await self._events.aclose()


class OpenAIService:
    """Serves one model.

    Args:
        client: the engine; `start` starts it and `close` ends it.
        config: policies.
    """

    def __init__(self, client: EngineClient, config: ServiceConfig | None = None) -> None:
        self.config = config or ServiceConfig()
        self.names = self.config.names or (client.name,)
        self.metrics = Metrics(self.names[0], client.stats)
        self._client = client
        self._created = int(time.time())
        self._admission = Admission(client, self.config.queue, self.metrics)
        self._texts = TextWork(client.tokenizer, self.config.text_threads)
        self._tokens = TokenText(client.tokenizer)
        facts = [halfbyte.__version__, client.name, client.max_context, asdict(client.config)]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self.fingerprint = f"hb-{digest[:12]}"

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
        name = self._served(request.model)
        prompts = request.prompts()
        limit, n = request.token_limit, request.n or 1
        with self._admission.places(len(prompts) * max(n, request.best_of or 1)):
            ids = await self._texts.prompts(
                prompts, request.add_special_tokens, self._client.max_context
            )
            echo = await self._texts.echoes(prompts) if request.echo else ()
            params = [
                self._params(request, p, limit, DEFAULT_COMPLETION_TOKENS, "prompt") for p in ids
            ]
            job = self._submit(request, ids, params, call)
        dialect = CompletionDialect(
            self._head("cmpl", request, name, call),
            self._tokens,
            n,
            rated=request.logprobs is not None,
            echo=echo,
            prompts=ids,
            prompt_logprobs=request.prompt_logprobs is not None,
        )
        if request.stream:
            return await self._stream(job, dialect)
        return dialect.body(await self._finish(job), job.usage())

    async def chat(
        self, request: ChatCompletionRequest, call: Call
    ) -> ChatCompletion | EventStream:
        """POST /v1/chat/completions."""
        name = self._served(request.model)
        n = request.n or 1
        with self._admission.places(n):
            ids, plan = await self._texts.planned_chat(request, self._client.max_context)
            params = self._params(request, ids, request.token_limit, None, "messages")
            if plan.syntax is not None:
                grammar = plan.grammar or params.grammar
                params = replace(params, grammar=grammar, shown_special_ids=plan.shown)
            job = self._submit(request, [ids], [params], call)
        head = self._head("chatcmpl", request, name, call)
        dialect = ChatDialect(head, self._tokens, n, rated=bool(request.logprobs), plan=plan)
        if request.stream:
            return await self._stream(job, dialect)
        return dialect.body(await self._finish(job), job.usage(dialect.reasoning_tokens))

    async def embed(self, request: EmbeddingRequest, call: Call) -> EmbeddingList:
        """POST /v1/embeddings. Raises RequestError for an empty text."""
        from ..engine.run.readers import PoolingReader

        name = self._served(request.model)
        prompts = request.prompts()
        with self._admission.places(len(prompts)):
            ids = await self._texts.prompts(
                prompts, request.add_special_tokens, self._client.max_context
            )
            for index, prompt in enumerate(ids):
                self._texts.check(prompt, "input")
                if not prompt:
                    raise RequestError(f"input[{index}] is empty: it has no token", param="input")
            readers = [PoolingReader(request.pooling or "mean") for _ in ids]
            job = self._submit(request, ids, [PROMPT_ONLY] * len(ids), call, readers)
        await self._finish(job)
        vectors = [reader.pooled(normalize=request.normalize is not False) for reader in readers]
        return EmbeddingList(
            data=[
                EmbeddingItem(index=index, embedding=_encoded(vector, request.encoding_format))
                for index, vector in enumerate(vectors)
            ],
            model=name,
            usage=EmbeddingUsage(prompt_tokens=call.prompt_tokens, total_tokens=call.prompt_tokens),
        )

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResponse:
        """POST /tokenize."""
        self._served(request.model)
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
        self._served(request.model)
        return DetokenizeResponse(prompt=await self._texts.decode(request.tokens))

    def models(self) -> ModelList:
        """GET /v1/models."""
        return ModelList(data=[self._card(name) for name in self.names])

    def model(self, name: str) -> ModelCard:
        """GET /v1/models/{name}; raises a 404 for another model."""
        return self._card(self._served(name))

    def health(self) -> Health:
        """State of the engine; not accepting once `close` has begun."""
        return replace(self._client.health(), accepting=self._admission.open)

    # Steps of an endpoint.

    def _card(self, name: str) -> ModelCard:
        return ModelCard(
            id=name,
            created=self._created,
            root=self._client.name,
            max_model_len=self._client.max_context,
        )

    def _served(self, name: str | None) -> str:
        """The model to answer as; null means the one there is."""
        if name is None:
            return self.names[0]
        if name not in self.names:
            raise ApiError(
                404,
                f"The model {name[:200]!r} does not exist here; this server has "
                f"{', '.join(self.names)}.",
                param="model",
                code="model_not_found",
            )
        return name

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
        request: CompletionRequest | ChatCompletionRequest | EmbeddingRequest,
        ids: Sequence[list[int]],
        params: Sequence[SamplingParams],
        call: Call,
        readers: Sequence[PromptReader] = (),
    ) -> Job:
        self._admission.check_tokens(sum(map(len, ids)))
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
            id=f"{kind}-{suffix}",
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

    async def _stream(self, job: Job, dialect: Dialect) -> EventStream:
        """Begin a stream once the engine has taken the request and not failed at once."""
        try:
            await job.accepted()
            await job.started(self.config.keep_alive_s)
        except BaseException:
            job.close()
            raise
        return EventStream(self._events(job, dialect), job)

    async def _events(self, job: Job, dialect: Dialect) -> AsyncGenerator[bytes, None]:
        """All frames of a response; what has come in together goes out together."""
        out = bytearray(dialect.opening(len(job)))
        try:
            async for batch in job.deltas(self.config.keep_alive_s):
                for prompt, delta in batch:
                    out += dialect.delta(prompt, delta)
                if out or not batch:
                    yield bytes(out) or KEEP_ALIVE
                    out.clear()
            if dialect.head.with_usage:
                out += dialect.usage(job.usage(dialect.reasoning_tokens).model_dump())
            out += DONE
        except Exception as error:
            if not isinstance(error, ApiError):
                logger.exception("a stream failed")
            out += frame(as_api_error(error).body())
        finally:
            job.close()
        yield bytes(out)
