"""Reading request bodies under three bounds: bytes of one, time for one, bytes of all together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from starlette.types import Message, Receive

from .errors import ApiError
from .metrics import HttpMetrics, Refusal


class ClientGone(Exception):
    """The client left before its response was complete."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Bounds of request bodies.

    Attributes:
        most: bytes of one body.
        timeout_s: seconds from the end of the headers to the end of the body.
        together: bytes of all bodies that are being received or answered, and as many of large
            answers that are not read yet.
    """

    most: int = 8 << 20
    timeout_s: float = 60.0
    together: int = 64 << 20


@dataclass(slots=True, eq=False)
class _Upload:
    """A body on its way in; ``deadline`` is moved to now when it has to make room."""

    deadline: asyncio.Timeout
    size: int = 0
    evicted: bool = False


class Bodies:
    """The request bodies of a server.

    When all bodies together pass their budget, the largest of those still coming in is given up:
    small requests get through whoever fills the rest.

    Args:
        limits: bounds.
        metrics: counts what is refused for want of room.
    """

    def __init__(self, limits: BodyLimits, metrics: HttpMetrics) -> None:
        self.limits = limits
        self._metrics = metrics
        self._uploads: set[_Upload] = set()
        self._held = 0
        self._unread = 0

    @property
    def held(self) -> int:
        """Bytes of all bodies now."""
        return self._held

    @asynccontextmanager
    async def read(self, receive: Receive, length: str) -> AsyncIterator[bytes]:
        """A whole body, which counts against the budget until the block is left.

        Args:
            receive: ASGI's.
            length: the Content-Length header, empty when there is none.

        Raises:
            ApiError: 413, 408, or 503 when there is no room.
            ClientGone: the client left.
        """
        if length.isdigit() and (len(length) > 18 or int(length) > self.limits.most):
            raise self._too_large()
        size = 0
        try:
            body = await self._receive(receive)
            size = len(body)
            yield body
        finally:
            self._held -= size

    @contextmanager
    def answer(self, size: int) -> Iterator[None]:
        """Count an answer of ``size`` bytes until the block is left.

        Raises:
            ApiError: 503, others that nobody reads leave no room for it.
        """
        if self._unread and self._unread + size > self.limits.together:
            self._metrics.rejection(Refusal.ANSWERS_FULL)
            raise ApiError(503, "Too many large answers wait for their readers.", retry_after=1)
        self._unread += size
        try:
            yield
        finally:
            self._unread -= size

    async def _receive(self, receive: Receive) -> bytes:
        body = bytearray()
        upload: _Upload | None = None
        complete = False
        try:
            async with asyncio.timeout(self.limits.timeout_s) as deadline:
                upload = _Upload(deadline)
                self._uploads.add(upload)
                while not complete:
                    message = await receive()
                    complete = self._add(upload, body, message)
        except TimeoutError:
            if upload is not None and upload.evicted:
                self._metrics.rejection(Refusal.BODIES_FULL)
                raise ApiError(
                    503, "The server is receiving too many request bodies.", retry_after=1
                ) from None
            raise ApiError(408, "The request body did not arrive in time.") from None
        finally:
            if upload is not None:
                self._uploads.discard(upload)
                self._held -= upload.size
        self._held += len(body)
        return bytes(body)

    def _add(self, upload: _Upload, body: bytearray, message: Message) -> bool:
        """Take in one message; True when it was the last one."""
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        if len(body) + len(piece) > self.limits.most:
            raise self._too_large()
        body += piece
        upload.size += len(piece)
        self._held += len(piece)
        while self._held > self.limits.together and self._uploads:
            self._evict(max(self._uploads, key=lambda u: u.size))
        return not message.get("more_body") and not upload.evicted

    def _evict(self, upload: _Upload) -> None:
        """Give up a body; its reader wakes up at once."""
        self._uploads.discard(upload)
        self._held -= upload.size
        upload.size = 0
        upload.evicted = True
        if not upload.deadline.expired():
            upload.deadline.reschedule(asyncio.get_running_loop().time())

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The request body is larger than {self.limits.most} bytes.")
