"""How many connections there may be, and how long each may take over its headers and reading.

uvicorn bounds neither: an open socket that says nothing costs its file descriptor for ever. Here
every connection that has no request in progress stands in a line; its first one is closed when a
new connection finds no place, so whoever sends a request gets through while sockets that say
nothing fill the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from dataclasses import dataclass
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from halfbyte.errors import ConfigError

from .errors import ApiError

logger = logging.getLogger("halfbyte.server")

MAX_CONNECTIONS = 1024
HEADER_TIMEOUT_S = 20.0
WRITE_TIMEOUT_S = 60.0
# The system may raise the soft limit of files up to here; more than the largest server needs.
_MOST_FILES = 1 << 16
# Connections accepted in one turn of the event loop, before any of them is counted.
ACCEPTS = 16
# Bytes of a connection that are parsed in one turn of the event loop. asyncio reads 256 KiB, which
# as chunks of one byte take most of a second, in which nobody else is served.
READ_BYTES = 8 << 10
# Files besides connections: the model, pipes of the template process, logs, libraries.
_OWN_FILES = 64
_FEWEST_CONNECTIONS = 8
_ACCEPT_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds of a server's connections.

    Attributes:
        most: open connections; one more closes the oldest that has no request in progress, or
            is refused with a 503 when there is none.
        header_timeout_s: seconds from the opening of a connection, or from the first byte of a
            later request, to the end of the request's headers.
        write_timeout_s: seconds that a reader may leave a full buffer untouched.
    """

    most: int = MAX_CONNECTIONS
    header_timeout_s: float = HEADER_TIMEOUT_S
    write_timeout_s: float = WRITE_TIMEOUT_S


def raise_file_limit() -> int | None:
    """Raise the soft limit of open files towards the hard one; the limit, or None for no limit."""
    try:
        import resource
    except ImportError:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # macOS refuses more than its own maximum even under an unlimited hard limit.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def connection_limits(wanted: int | None, files: int | None) -> ConnectionLimits:
    """Limits under which accepting never runs out of files.

    Args:
        wanted: ``--max-connections``, or None for as many as fit, at most 1024.
        files: the limit of open files, or None for no limit.

    Raises:
        ConfigError: the files do not suffice.
    """
    if files is None:
        return ConnectionLimits(wanted or MAX_CONNECTIONS)
    # What is closed to make room is closed a turn later.
    reserve = _OWN_FILES + 2 * ACCEPTS
    room = files - reserve
    most = min(MAX_CONNECTIONS, room) if wanted is None else wanted
    if most > room or (most < _FEWEST_CONNECTIONS and wanted is None):
        told = "serving needs open files" if wanted is None else f"--max-connections is {wanted}"
        lower = " or lower --max-connections" if wanted is not None and room > 0 else ""
        raise ConfigError(
            f"{told}, but under the limit of {files} open files {max(room, 0)} connections fit",
            hint=f"raise the limit with `ulimit -n {reserve + (wanted or MAX_CONNECTIONS)}`{lower}",
        )
    return ConnectionLimits(most)


class Connections:
    """The open connections of a server.

    Args:
        limits: bounds.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._open: set[GuardedProtocol] = set()
        # Those without a request in progress, in the order in which they became so.
        self._resting: dict[GuardedProtocol, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def protocol(self, **options: Any) -> GuardedProtocol:
        """A new connection's protocol; uvicorn calls this as its protocol class."""
        return GuardedProtocol(self, **options)

    def enter(self, connection: GuardedProtocol) -> bool:
        """Take in a connection that has just opened; False when there is no place for it."""
        if len(self._open) >= self.limits.most:
            oldest = next(iter(self._resting), None)
            if oldest is None:
                logger.warning(
                    "connections refused: all %d have a request in progress", self.limits.most
                )
                return False
            logger.warning(
                "idle connections closed to make room: %d are the most (--max-connections)",
                self.limits.most,
            )
            self.leave(oldest)
            oldest.transport.abort()
        self._open.add(connection)
        self.rest(connection)
        return True

    def leave(self, connection: GuardedProtocol) -> None:
        """Forget a connection."""
        self._open.discard(connection)
        self._resting.pop(connection, None)

    def rest(self, connection: GuardedProtocol) -> None:
        """Note that a connection has no request in progress."""
        if connection in self._open:
            self._resting.setdefault(connection)

    def work(self, connection: GuardedProtocol) -> None:
        """Note that a connection has a request in progress."""
        self._resting.pop(connection, None)

    def abort_all(self) -> None:
        """Close every connection without waiting for its reader."""
        for connection in list(self._open):
            connection.transport.abort()


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 connection with deadlines for headers and for a reader that stalls.

    Args:
        connections: of the server.
        options: uvicorn's own.
    """

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._all = connections
        self._headers_due: asyncio.TimerHandle | None = None
        self._reader_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection in, or refuse it at once."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):  # what asyncio's own transports pass to ``recv``
            cast(Any, transport).max_size = READ_BYTES
        if self._all.enter(self):
            self._await_headers()
        else:
            self._end(ApiError(503, "The server has no free connection.", retry_after=1))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection and its deadlines."""
        self._all.leave(self)
        self._headers_came()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; what is not a whole head yet has a deadline."""
        super().data_received(data)
        self._sort()

    def on_response_complete(self) -> None:
        """A request is done; the next one may have come with it."""
        super().on_response_complete()
        if not self._busy:
            self._all.rest(self)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, as every error is told; uvicorn would send plain text."""
        if not self._busy:
            self.transport.write(ApiError(400, msg).response())
        self.transport.close()

    def pause_writing(self) -> None:
        """The reader does not keep up."""
        super().pause_writing()
        if self._reader_due is None:
            seconds = self._all.limits.write_timeout_s
            self._reader_due = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The reader has caught up."""
        if self._reader_due is not None:
            self._reader_due.cancel()
            self._reader_due = None
        super().resume_writing()

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _sort(self) -> None:
        """Stand in the line of those without a request, or leave it."""
        if self._busy:
            self._headers_came()
            self._all.work(self)
        elif not self.transport.is_closing():
            self._await_headers()

    def _await_headers(self) -> None:
        if self._headers_due is None:
            seconds = self._all.limits.header_timeout_s
            self._headers_due = self.loop.call_later(seconds, self._headers_late)

    def _headers_came(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _headers_late(self) -> None:
        self._headers_due = None
        if not self._busy and not self.transport.is_closing():
            self._end(ApiError(408, "The request's headers did not arrive in time."))

    def _end(self, error: ApiError) -> None:
        """Answer a request that has not been read, as far as the socket takes it, and close."""
        if self.cycle is None:
            self.transport.write(error.response())
        self.transport.close()


def quiet_accept(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's exception handler: one line when the system cannot accept connections.

    asyncio itself logs a traceback for every connection of the backlog, again each second.
    """
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in _ACCEPT_ERRORS:
        logger.error("cannot accept connections: %s", os.strerror(error.errno or 0))
    else:
        loop.default_exception_handler(context)
