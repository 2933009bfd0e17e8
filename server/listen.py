"""The socket and the HTTP server: bind early, limit headers, drain on a signal."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import sys
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

import uvicorn

from halfbyte.errors import ConfigError, EngineDeadError

from ..engine.client import Health

# Bytes of request line plus headers; h11 refuses more with a 400.
_MAX_HEADER_BYTES = 32 << 10
# Idle seconds before an unused connection is closed; longer than HTTP clients keep theirs.
_KEEP_ALIVE_S = 75
# After the drain time the ended streams still have to write their last event, seconds.
_EPILOGUE_S = 15


def bind(host: str, port: int) -> socket.socket:
    """Take an address without listening on it yet.

    Raises:
        ConfigError: the address is unknown, in use or not permitted.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"port is {port}; expected 0 to 65535")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(
            f"cannot listen on {host!r:.100} port {port}: {error}", hint="choose another --port"
        ) from None
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can reach a bound socket."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def own_names(host: str) -> set[str]:
    """Host header names of a server that only this machine can reach."""
    return {"localhost", "127.0.0.1", "::1", host.lower()}


def url_of(host: str, port: int) -> str:
    """A URL under which this machine reaches the server."""
    shown = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown and '[' not in shown else shown}:{port}"


def uvicorn_config(app: Any, drain_s: float) -> uvicorn.Config:
    """uvicorn's settings: limits, no websockets, no log lines of its own."""
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(drain_s) + _EPILOGUE_S,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )


class DrainingServer(uvicorn.Server):
    """uvicorn that lets running requests end: first signal drains, second one quits at once.

    Args:
        config: of uvicorn.
        drain: ends the service; awaited while the connections finish.
        health: of the service; a dead engine ends the server.
        on_ready: called when connections are accepted.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        drain: Callable[[], Coroutine[Any, Any, None]],
        health: Callable[[], Health],
        on_ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._health = health
        self._drain = drain
        self._on_ready = on_ready

    def run_on(self, listener: socket.socket) -> None:
        """Serve until a signal; a drained end returns.

        Raises:
            SystemExit: status 1 after a second signal.
            EngineDeadError: the engine died; whoever supervises us should start us again.
        """
        self.run(sockets=[listener])
        if self.force_exit:
            sys.exit(1)
        health = self._health()
        if health.dead:
            raise EngineDeadError(health.error or "the engine died")

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True ends the server."""
        return await super().on_tick(counter) or self._health().dead

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections and say so."""
        await super().startup(sockets=sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests, end the live ones within their time, close the connections."""
        drain = asyncio.ensure_future(self._drain())
        await super().shutdown(sockets=sockets)
        if self.force_exit:
            drain.cancel()
        else:
            await drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal; whichever comes second forces the end.

        uvicorn's own version would raise the signal again at the end and spoil the exit status.
        """
        self.force_exit = self.should_exit
        self.should_exit = True
