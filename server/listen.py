"""The socket and the HTTP server: listen early, limit connections, drain on a signal."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from types import FrameType
from typing import Any

import uvicorn

from halfbyte.errors import ConfigError, EngineDeadError

from ..engine.serve.client import Health
from .connections import ACCEPTS, Connections, quiet_accept
from .tls import TlsFiles

# Connections that the system holds until they are accepted.
_BACKLOG = 1024
# Bytes of request line plus headers; h11 refuses more with a 400.
_MAX_HEADER_BYTES = 32 << 10
# Idle seconds before an unused connection is closed; longer than HTTP clients keep theirs.
_KEEP_ALIVE_S = 75
# After the drain time the ended streams still have to write their last event, seconds; after a
# second signal they have less.
_EPILOGUE_S = 15.0
_SHORT_EPILOGUE_S = 5.0
_POLL_S = 0.05


def listen(host: str, port: int) -> socket.socket:
    """Take an address and listen on it, so that nobody else can.

    A socket that is only bound does not keep a second server from binding the same port.

    Args:
        host: address or name.
        port: TCP port; 0 lets the system choose.

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
            listener.listen(_BACKLOG)
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


def host_names(host: str, allowed: Iterable[str], *, guarded: bool) -> set[str] | None:
    """Names that the Host header may have, or None for any.

    Args:
        host: address that the server listens on.
        allowed: ``--allowed-hosts``: names without ports; ``*`` is any.
        guarded: whether to check also when no names are given, against DNS rebinding.

    Raises:
        ConfigError: a name that no Host header can have.
    """
    names = {name.strip().lower() for name in allowed}
    for name in names:
        bracketed = name.startswith("[") and name.endswith("]")
        if not name or "/" in name or (":" in name and not bracketed and name.count(":") == 1):
            raise ConfigError(
                f"--allowed-hosts has {name!r:.100}; expected a host name without scheme and port"
            )
    if "*" in names or not (guarded or names):
        return None
    names = {name.strip("[]") for name in names}
    return {"localhost", "127.0.0.1", "::1", host.lower(), *names}


def check_origins(origins: Iterable[str]) -> list[str]:
    """Web origins as browsers send them.

    Raises:
        ConfigError: one that no browser sends.
    """
    out = [origin.strip() for origin in origins]
    for origin in out:
        scheme, separator, rest = origin.partition("://")
        if origin != "*" and not (scheme and separator and rest and not set(rest) & set("/?# ")):
            raise ConfigError(
                f"--cors-origin has {origin!r:.100}; expected scheme://host[:port] without a "
                "path, or *"
            )
    return out


def url_of(host: str, port: int, *, secure: bool = False) -> str:
    """A URL under which this machine reaches the server, by HTTPS where that is ``secure``."""
    shown = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "[::1]"}.get(host, host)
    name = f"[{shown}]" if ":" in shown and "[" not in shown else shown
    return f"{'https' if secure else 'http'}://{name}:{port}"


def uvicorn_config(
    app: Any, connections: Connections, tls: TlsFiles | None = None
) -> uvicorn.Config:
    """uvicorn's settings: limits, no websockets, no log lines for requests; HTTPS with ``tls``."""
    protocol: Any = connections.protocol  # uvicorn only calls it, class or not
    return uvicorn.Config(
        app,
        http=protocol,
        backlog=ACCEPTS,
        ws="none",
        lifespan="on",
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        timeout_keep_alive=_KEEP_ALIVE_S,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ssl_certfile=None if tls is None else tls.certfile,
        ssl_keyfile=None if tls is None else str(tls.keyfile),
    )


class DrainingServer(uvicorn.Server):
    """uvicorn that lets running requests end.

    The first signal drains, the second ends the live requests with an error, the third quits.

    Args:
        config: of uvicorn.
        connections: those that the configuration's protocol counts.
        drain: ends the service; awaited while the connections finish.
        cut_short: ends the requests that the drain waits for.
        health: of the service; a dead engine ends the server.
        on_ready: called when connections are accepted.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        connections: Connections,
        *,
        drain: Callable[[], Coroutine[Any, Any, None]],
        cut_short: Callable[[], None],
        health: Callable[[], Health],
        on_ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._connections = connections
        self._health = health
        self._drain = drain
        self._cut_short = cut_short
        self._on_ready = on_ready
        self._signals = 0

    def run_on(self, listener: socket.socket) -> None:
        """Serve until a signal; a drained end returns.

        Raises:
            SystemExit: status 1 after a second signal.
            EngineDeadError: the engine died; whoever supervises us should start us again.
        """
        self.run(sockets=[listener])
        if self._signals > 1:
            sys.exit(1)
        health = self._health()
        if health.dead:
            raise EngineDeadError(health.error or "the engine died")

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True ends the server."""
        return await super().on_tick(counter) or self._health().dead

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections and say so."""
        asyncio.get_running_loop().set_exception_handler(quiet_accept)
        await super().startup(sockets=sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)  # asyncio has set it to the number of accepts in a turn
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests, end the live ones within their time, close the connections."""
        end = asyncio.ensure_future(self._end())
        await super().shutdown(sockets=sockets)
        await end

    async def _end(self) -> None:
        """End the service, then the connections that are left."""
        drain = asyncio.ensure_future(self._drain())
        while not drain.done() and self._signals < 2:
            await asyncio.wait({drain}, timeout=_POLL_S)
        if self._signals > 1:
            self._cut_short()
        until = time.monotonic() + (_SHORT_EPILOGUE_S if self._signals > 1 else _EPILOGUE_S)
        while len(self._connections) and time.monotonic() < until:
            await asyncio.sleep(_POLL_S)
        # Their handlers end as if the clients had left, which leaves no traceback.
        self._connections.abort_all()
        await drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Count a signal; the third one quits without a clean end.

        uvicorn's own version would raise the signal again at the end and spoil the exit status.
        """
        self._signals += 1
        self.should_exit = True
        if self._signals > 2:
            os._exit(1)
