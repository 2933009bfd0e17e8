"""The engine requests behind one HTTP request: submitted together, ended together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from ..engine.params import SamplingParams
from ..engine.request import (
    Completion,
    Delta,
    FinishReason,
    MemoryFault,
    PromptReader,
    RequestFault,
)
from ..engine.serve.client import EngineClient
from ..engine.serve.stream import RequestStream, ready
from .dialects.base import failed as failed_answer
from .errors import ApiError, engine_down, internal_error
from .responses import CompletionTokensDetails, PromptTokensDetails, UsageInfo
from .tenant import Tenant

logger = logging.getLogger("halfbyte.server")


@dataclass(slots=True)
class Call:
    """The record of one HTTP request, of which the access line is made.

    Attributes:
        request_id: id in the ``X-Request-Id`` header and the log.
        prompt_tokens: over all prompts.
        completion_tokens: over all answers.
        cached_tokens: prompt tokens that the prefix cache saved.
        ttft_s: seconds from submission to the first token of any answer; None before it.
        finish: finish reasons, joined by ``+``; or the error code.
        model: name that the request is answered under; empty before that is known.
        params: of its first prompt; not in the access line, like what follows.
        queue_s: seconds from submission to the first computation, where it has ended.
        tenant: whose request it is.
    """

    request_id: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    ttft_s: float | None = None
    finish: str = ""
    model: str = ""
    params: SamplingParams | None = None
    queue_s: float | None = None
    tenant: Tenant = field(default_factory=Tenant)


class Job:
    """One engine request per prompt.

    A job that has no place in the batch after ``max_wait_s`` ends, and its client is told so.

    Args:
        client: the engine.
        prompts: token ids, each non-empty.
        params: one for each prompt.
        readers: what looks at each prompt, or none at all.
        request_id: base of the engine's request ids.
        priority: smaller runs earlier.
        cache_salt: prefix-cache namespace.
        call: record that gets counts and times.
        max_wait_s: seconds; 0 is no bound.
        on_close: called when the job is closed.
    """

    def __init__(
        self,
        client: EngineClient,
        prompts: Sequence[list[int]],
        params: Sequence[SamplingParams],
        readers: Sequence[PromptReader] = (),
        *,
        request_id: str,
        priority: int,
        cache_salt: str,
        call: Call,
        max_wait_s: float = 0.0,
        on_close: Callable[[Job], None] = lambda _: None,
    ) -> None:
        self._client = client
        self._call = call
        self._max_wait_s = max_wait_s
        self._on_close = on_close
        self._expired = False
        self._charged = 0
        self._timer: asyncio.TimerHandle | None = None
        self._submitted_at = time.monotonic()
        self._streams: list[RequestStream] = []
        call.prompt_tokens = sum(map(len, prompts))
        call.params = params[0] if params else None
        try:
            for index, (prompt, param) in enumerate(zip(prompts, params, strict=True)):
                self._streams.append(
                    client.submit(
                        prompt,
                        param,
                        request_id=f"{request_id}-{index}",
                        priority=priority,
                        cache_salt=cache_salt,
                        reader=readers[index] if readers else None,
                    )
                )
        except BaseException:
            self.close()
            raise
        if max_wait_s:
            self._timer = asyncio.get_running_loop().call_later(max_wait_s, self._expire)

    @property
    def waiting_tokens(self) -> int:
        """Tokens of the prompts whose answers have not begun."""
        return sum(s.prompt_tokens for s in self._streams if not _begun(s))

    @property
    def waited_s(self) -> float:
        """Seconds since submission while an answer has not begun, else 0."""
        waits = any(not _begun(s) for s in self._streams)
        return time.monotonic() - self._submitted_at if waits else 0.0

    def __len__(self) -> int:
        return len(self._streams)

    async def accepted(self) -> None:
        """Wait until the engine has taken all prompts; raises its refusal."""
        for stream in self._streams:
            await stream.accepted()

    async def started(self, timeout: float) -> None:
        """Wait for the first delta, at most ``timeout`` seconds; raises an early failure."""
        await ready(self._streams, timeout)
        for stream in self._streams:
            if stream.completion is not None:
                self._check(stream.completion)

    async def results(self) -> list[Completion]:
        """The whole answers, in the order of the prompts.

        Raises:
            ApiError: one of them failed.
        """
        done = []
        for stream in self._streams:
            done.append(await stream.result())
            self._check(done[-1])
        self.record()
        return done

    async def deltas(self, idle_s: float) -> AsyncIterator[list[tuple[int, Delta]]]:
        """Deltas with the index of their prompt, all that have come in at a time.

        Yields an empty list after ``idle_s`` seconds without any. Ends when all answers have.

        Raises:
            ApiError: an answer failed.
        """
        open_streams = dict(enumerate(self._streams))
        while open_streams:
            if not await ready(list(open_streams.values()), idle_s):
                yield []
                continue
            batch: list[tuple[int, Delta]] = []
            failed: Completion | None = None
            for index, stream in list(open_streams.items()):
                deltas = stream.drain()
                done = stream.completion
                if done is not None:
                    del open_streams[index]
                    failed = failed_answer(done) or failed
                    if failed is not None:
                        deltas = [delta for delta in deltas if delta.completion is None]
                batch += [(index, delta) for delta in deltas]
            if batch:
                yield batch
            if failed is not None:
                self._check(failed)
        self.record()

    def usage(self, reasoning_tokens: Callable[[Completion], int] = lambda _: 0) -> UsageInfo:
        """Counts over all answers, once they have ended.

        Args:
            reasoning_tokens: counts those of the answers to a prompt.
        """
        self.record()
        done = [s.completion for s in self._streams if s.completion is not None]
        call = self._call
        return UsageInfo(
            prompt_tokens=call.prompt_tokens,
            completion_tokens=call.completion_tokens,
            total_tokens=call.prompt_tokens + call.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=call.cached_tokens),
            completion_tokens_details=CompletionTokensDetails(
                reasoning_tokens=sum(map(reasoning_tokens, done))
            ),
        )

    def record(self) -> None:
        """Write counts and times so far into the call's record."""
        call = self._call
        done = [s.completion for s in self._streams if s.completion is not None]
        call.completion_tokens = sum(
            s.tokens if s.completion is None else s.completion.usage.completion_tokens
            for s in self._streams
        )
        call.cached_tokens = sum(c.usage.cached_tokens for c in done)
        call.finish = "+".join(sorted({c.finish_reason.value for c in done}))
        first = [s.first_token_at - s.submitted_at for s in self._streams if s.first_token_at]
        call.ttft_s = min(first, default=None)
        call.queue_s = max((c.timings.queue_s for c in done), default=None)

    def close(self) -> None:
        """Cancel what has not ended. May be called twice."""
        if self._streams:
            self.record()
            self._charge()
        for stream in self._streams:
            stream.close()
        if self._timer is not None:
            self._timer.cancel()
        self._on_close(self)

    def _charge(self) -> None:
        """Count what was generated since it was counted last against the tenant's quota."""
        quota, done = self._call.tenant.quota, self._call.completion_tokens
        if quota is not None:
            quota.spend(done - self._charged)
            self._charged = done

    def cancel(self) -> None:
        """End what has not ended; whoever reads the job is told that the server ended it."""
        for stream in self._streams:
            self._client.cancel(stream.id)

    def _expire(self) -> None:
        """The time to wait is over: give up what the engine has not begun with."""
        self._expired = True
        for stream in self._streams:
            if not _begun(stream):
                self._client.cancel_waiting(stream.id)

    def _check(self, completion: Completion) -> None:
        """Raise what the client is told about answers that did not end by themselves."""
        failed = failed_answer(completion)
        if failed is None:
            return
        completion = failed
        if isinstance(completion.error, RequestFault):
            raise ApiError(400, completion.error, code="request_failed")
        if isinstance(completion.error, MemoryFault):
            raise ApiError(
                503,
                "There was not enough memory for this request; try again later.",
                code="out_of_memory",
                retry_after=5,
            )
        if completion.finish_reason is FinishReason.ERROR:
            logger.error("request %s failed: %s", self._call.request_id, completion.error)
            raise internal_error() if self._client.health().alive else engine_down()
        if self._expired and not completion.usage.completion_tokens:
            raise ApiError(
                503,
                f"The request waited {self._max_wait_s:g} s for a place in the batch, "
                "the longest that this server lets one wait.",
                code="queue_timeout",
                retry_after=5,
            )
        raise ApiError(
            503,
            "The server ended this request because it is shutting down.",
            code="request_cancelled",
            retry_after=5,
        )


def _begun(stream: RequestStream) -> bool:
    return stream.first_token_at is not None or stream.finished
