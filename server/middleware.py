"""Pure ASGI layers around the routes: access, one line per request, body limit, disconnects.

Order, outermost first: `RequestLog` (request id, access line, last resort for errors), `Gate` (Host
check, API keys), `Exchange` (reads the body, cancels the handler when the client leaves).
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Collection, MutableMapping
from contextlib import ExitStack
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .bodies import Bodies, ClientGone
from .error_forms import error_json
from .errors import ApiError, as_api_error
from .job import Call
from .log import with_fields
from .metrics import HttpMetrics
from .tenant import OPEN_PATHS, Keyring
from .tracing import RequestTracer

logger = logging.getLogger("halfbyte.server")
access = logging.getLogger("halfbyte.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Asked every few seconds by whoever watches the server: an access line only when they fail.
_PROBES = frozenset({"/health", "/v1/health", "/ready"})
_CLIENT_CLOSED = 499
# Larger answers are sent in such pieces, and count against a budget until their readers have them.
_PIECE_BYTES = 1 << 16


class RequestLog:
    """Gives each request an id and an access line, and turns stray errors into responses.

    Args:
        app: the next layer.
        metrics: counts responses by route and status.
        routes: paths that may appear as a metric label; others are ``other``. ``{name}`` is a
            part of a path, ``{name:path}`` all the rest.
        tracer: makes spans, or None.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: HttpMetrics,
        routes: Collection[str],
        tracer: RequestTracer | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = frozenset(route for route in routes if "{" not in route)
        self._patterns = [(route, _pattern(route)) for route in routes if "{" in route]
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one connection; everything but HTTP passes unchanged."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        given = _header(scope, b"x-request-id")
        call = Call(given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        scope.setdefault("state", {})["call"] = call
        id_header = (b"x-request-id", call.request_id.encode())
        status = 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), id_header]
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        except ClientGone:
            call.finish, status = "disconnected", _CLIENT_CLOSED
        except Exception as error:
            if not isinstance(error, ApiError):
                logger.exception("request %s failed", call.request_id)
            if status == 0:
                await _send_error(tagged, as_api_error(error), scope["path"])
        finally:
            status = status or _CLIENT_CLOSED  # cancelled from outside, by a shutdown
            seconds = time.perf_counter() - began
            self._metrics.response(self._label(scope["path"]), status)
            if self._tracer is not None:
                self._tracer.record(scope, call, status, seconds)
            if status >= 400 or scope["path"] not in _PROBES:
                fields = _access_fields(scope, call, status, seconds)
                access.info("%s", _access_line(fields), extra=with_fields(**fields))

    def _label(self, path: str) -> str:
        if path in self._routes:
            return path
        return next((name for name, known in self._patterns if known.fullmatch(path)), "other")


class Gate:
    """Lets in requests that carry a key and name a host of ours; finds out whose they are.

    Args:
        app: the next layer.
        keyring: knows the API keys.
        hosts: names that the Host header may have, without port; None allows all. A server on
            the loopback address without keys needs it against DNS rebinding.
        open_paths: what anybody may ask for, without a key.
    """

    def __init__(
        self,
        app: ASGIApp,
        keyring: Keyring,
        hosts: Collection[str] | None,
        open_paths: Collection[str] = OPEN_PATHS,
    ) -> None:
        self._app = app
        self._keyring = keyring
        self._open_paths = open_paths
        self._hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse or pass on.

        Raises:
            ApiError: 401 or 403.
        """
        if scope["type"] == "http":
            self._check_host(_header(scope, b"host"))
            if scope["path"] not in self._open_paths:
                call: Call = scope["state"]["call"]
                given = _header(scope, b"authorization"), _header(scope, b"x-api-key")
                call.tenant = self._keyring.tenant(*given)
        await self._app(scope, receive, send)

    def _check_host(self, header: str) -> None:
        name = _host_name(header)
        if self._hosts is not None and name not in self._hosts:
            raise ApiError(
                403,
                f"The Host header {header[:80]!r} is not one of this server's names; "
                f"start it with --allowed-hosts {name[:80] or 'NAME'} to admit it.",
            )


class Exchange:
    """Reads the body within its bounds, then races the handler against the client's leaving.

    Args:
        app: the next layer; gets the whole body in one message.
        metrics: counts disconnects.
        bodies: bounds of the server's request bodies.
        on_disk: the path under which bodies and answers are files, never whole in memory: what is
            posted there reaches the handler as it comes, and has bounds of its own. None: nowhere.
    """

    def __init__(
        self, app: ASGIApp, metrics: HttpMetrics, bodies: Bodies, on_disk: str | None = None
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._bodies = bodies
        self._on_disk = on_disk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one exchange.

        Raises:
            ApiError: 413, 408 or 503, before the handler runs.
            ClientGone: the client left; the handler has been cancelled.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._is_file(scope) and scope["method"] == "POST":
            await self._app(scope, receive, send)
            return
        async with self._bodies.read(receive, _header(scope, b"content-length")) as body:
            await self._run(scope, body, receive, send)

    def _is_file(self, scope: Scope) -> bool:
        return self._on_disk is not None and scope["path"].startswith(self._on_disk)

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Run the handler until it ends or the client leaves."""
        complete = asyncio.Event()
        answer = ExitStack()
        replayed = refused = False

        async def replay() -> Message:
            nonlocal replayed
            if not replayed:
                replayed = True
                return {"type": "http.request", "body": body, "more_body": False}
            await complete.wait()
            return {"type": "http.disconnect"}

        async def watched(message: Message) -> None:
            nonlocal refused
            if refused:
                return
            if message["type"] == "http.response.start":
                size = int(dict(message.get("headers", ())).get(b"content-length", b"0"))
                try:
                    if size > _PIECE_BYTES and not self._is_file(scope):
                        answer.enter_context(self._bodies.answer(size))
                except ApiError as error:
                    refused = True
                    complete.set()
                    await _send_error(send, error, scope["path"])
                    return
            if len(message.get("body", b"")) > _PIECE_BYTES:
                message = await _send_all_but_the_last_piece(send, message)
            # Before sending: a server may say "disconnect" as soon as the last byte is out.
            if message["type"] == "http.response.body" and not message.get("more_body"):
                complete.set()
            await send(message)

        handler = asyncio.ensure_future(self._app(scope, replay, watched))
        watcher = asyncio.ensure_future(_until_disconnect(receive))
        try:
            await asyncio.wait({handler, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if handler.done() or complete.is_set():
                await handler
                return
            handler.cancel()
            await asyncio.wait({handler})
            self._metrics.disconnect()
            raise ClientGone
        finally:
            for task in (handler, watcher):
                task.cancel()
            await asyncio.gather(handler, watcher, return_exceptions=True)
            answer.close()


async def _send_all_but_the_last_piece(send: Send, message: Message) -> Message:
    """Send a long body bit by bit, each when the one before is on its way; the rest of it."""
    body = memoryview(message["body"])
    while len(body) > _PIECE_BYTES:
        await send({**message, "body": bytes(body[:_PIECE_BYTES]), "more_body": True})
        body = body[_PIECE_BYTES:]
    return {**message, "body": bytes(body)}


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_error(send: Send, error: ApiError, path: str) -> None:
    """Answer a request for ``path`` with an error's status and body."""
    body = error_json(error, path)
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    headers.update(error.headers())
    raw = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _header(scope: MutableMapping[str, Any], name: bytes) -> str:
    """The first header of this name, or an empty string."""
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return ""


def _pattern(route: str) -> re.Pattern[str]:
    """What matches the paths of a route with names in braces."""
    text = re.escape(route)
    for found in re.findall(r"\\{[^}]*\\}", text):
        text = text.replace(found, ".+" if ":path" in found else "[^/]+")
    return re.compile(text)


def _host_name(host: str) -> str:
    """A Host header without its port, lower case; IPv6 brackets removed."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _access_fields(scope: Scope, call: Call, status: int, seconds: float) -> dict[str, Any]:
    """What is logged of a request: no prompt and no key; what the client typed is cut."""
    fields: dict[str, Any] = {
        "method": scope["method"],
        "path": ascii(scope["path"])[1:-1][:120],
        "status": status,
        "seconds": round(seconds, 6),
        "request_id": call.request_id,
    }
    if call.prompt_tokens:
        fields["prompt_tokens"] = call.prompt_tokens
        fields["cached_tokens"] = call.cached_tokens
        fields["completion_tokens"] = call.completion_tokens
    if call.ttft_s is not None:
        fields["ttft_s"] = round(call.ttft_s, 6)
    if call.finish:
        fields["finish"] = call.finish
    return fields


def _access_line(fields: dict[str, Any]) -> str:
    """The same as one line of text."""
    line = "{method} {path} {status} {seconds:.3f}s id={request_id}".format_map(fields)
    if "prompt_tokens" in fields:
        counts = "prompt={prompt_tokens} cached={cached_tokens} completion={completion_tokens}"
        line += " " + counts.format_map(fields)
    if "ttft_s" in fields:
        line += f" ttft={fields['ttft_s']:.3f}s"
    if "finish" in fields:
        line += f" finish={fields['finish']}"
    return line
