"""The mailbox of one request: an engine client puts deltas in, one reader takes them out.

Everything in this module runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from ..request import Completion, Delta


class RequestStream:
    """Deltas of one request, read by one consumer on the event loop.

    The queue has no bound: it holds at most the tokens that the request may generate, so a slow
    reader never stalls the engine. Closing it before the end cancels the request.

    Args:
        request_id: id under which the engine knows the request.
        prompt_tokens: length of the prompt, 0 when the engine has yet to tokenize it.
        cancel: called with the id when the reader goes away early.
    """

    __slots__ = (
        "_accepted",
        "_cancel",
        "_closed",
        "_error",
        "_final_only",
        "_items",
        "_waiter",
        "completion",
        "first_token_at",
        "id",
        "last_token_at",
        "prompt_tokens",
        "submitted_at",
        "tokens",
    )

    def __init__(self, request_id: str, prompt_tokens: int, cancel: Callable[[str], None]) -> None:
        self.id = request_id
        self.prompt_tokens = prompt_tokens
        self.tokens = 0
        self.submitted_at = time.perf_counter()
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self.completion: Completion | None = None
        self._cancel = cancel
        self._items: deque[Delta] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._accepted = False
        self._closed = False
        self._final_only = False

    # The client's side.

    def accept(self) -> None:
        """The engine has taken the request."""
        self._accepted = True
        self._wake()

    def reject(self, error: Exception) -> None:
        """The engine has refused the request; readers get ``error``."""
        self._error = error
        self._wake()

    def deliver(self, delta: Delta, now: float) -> None:
        """Add a delta that the engine made at ``now`` (`time.perf_counter` seconds)."""
        self._accepted = True
        if delta.token_ids:
            self.tokens += len(delta.token_ids)
            self.last_token_at = now
            if self.first_token_at is None:
                self.first_token_at = now
        if delta.completion is not None:
            self.completion = delta.completion
        if self._closed or (self._final_only and delta.completion is None):
            return
        self._items.append(delta)
        self._wake()

    # The reader's side.

    @property
    def finished(self) -> bool:
        """True once the engine has nothing more to say about this request."""
        return self.completion is not None or self._error is not None

    @property
    def pending(self) -> bool:
        """True when `drain` would return or raise something, or the end is reached."""
        return bool(self._items) or self.finished

    async def accepted(self) -> None:
        """Wait until the engine has taken the request.

        Raises:
            RequestError: the engine refused it (too long, empty, unknown ids).
            EngineDeadError: the engine is gone.
        """
        while not self._accepted and self._error is None:
            await _wait((self,), None)
        if self._error is not None:
            raise self._error

    def drain(self) -> list[Delta]:
        """Take every delta that has come in; raises the refusal when there is one."""
        if not self._items and self._error is not None:
            raise self._error
        out = list(self._items)
        self._items.clear()
        return out

    async def take(self, timeout: float | None = None) -> list[Delta]:
        """Wait for deltas and take all there are.

        Args:
            timeout: seconds; None waits for ever.

        Returns:
            At least one delta, or none on timeout and after the end.
        """
        await ready((self,), timeout)
        return self.drain()

    async def result(self) -> Completion:
        """Wait for the end without waking up for each token; earlier deltas are dropped."""
        self._final_only = True
        self._items.clear()
        while not self.finished:
            await _wait((self,), None)
        if self.completion is None:
            assert self._error is not None
            raise self._error
        return self.completion

    def close(self) -> None:
        """Stop reading; cancels the request unless it has ended. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._items.clear()
        if not self.finished:
            self._cancel(self.id)

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        await ready((self,), None)
        if self._items:
            return self._items.popleft()
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    async def __aenter__(self) -> RequestStream:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def ready(streams: Sequence[RequestStream], timeout: float | None = None) -> bool:
    """Wait until one of the streams has a delta, an error or its end.

    Args:
        streams: at least one; none may have another reader.
        timeout: seconds; None waits for ever.

    Returns:
        False when the time ran out first.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while not any(stream.pending for stream in streams):
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return False
        await _wait(streams, left)
    return True


async def _wait(streams: Sequence[RequestStream], timeout: float | None) -> None:
    """Sleep until a stream is woken. One future and at most one timer, no task: cheap."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    for stream in streams:
        stream._waiter = waiter
    timer = None if timeout is None else loop.call_later(timeout, _settle, waiter)
    try:
        await waiter
    finally:
        if timer is not None:
            timer.cancel()
        for stream in streams:
            stream._waiter = None


def _settle(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
