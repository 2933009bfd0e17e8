"""The FastAPI face: thin routes over `OpenAIService`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

import halfbyte
from halfbyte.errors import HalfbyteError

from .bodies import Bodies, BodyLimits
from .endpoints import (
    ABSENT,
    ENDPOINTS,
    FACTS,
    FAMILY_ENDPOINTS,
    HOST_ENDPOINTS,
    HOST_FACTS,
    KEPT,
    Endpoint,
    Fact,
    HostEndpoint,
    KeptWork,
)
from .error_forms import error_json
from .errors import ApiError, as_api_error, engine_down
from .event_stream import EventStream
from .hosting.host import Lease, ModelHost
from .hosting.listing import find_model
from .job import Call
from .json_body import asked_model, json_answer
from .metrics import CONTENT_TYPE
from .middleware import Exchange, Gate, RequestLog
from .openapi import OF_MODELS, Operation, Routes
from .page.fields import PageFields, page_fields
from .page.site import PAGE_OFF, ChatPage, add_page_files
from .responses import HealthStatus, ModelCard, VersionInfo
from .service import OpenAIService
from .tenant import OPEN_PATHS, Keyring
from .tracing import RequestTracer
from .uploads.routes import FILES_PATH, UPLOADS_REFUSED, Uploads, add_upload_routes

logger = logging.getLogger("halfbyte.server")


def create_app(
    host: ModelHost,
    *,
    keyring: Keyring | None = None,
    hosts: Collection[str] | None = None,
    origins: Sequence[str] = (),
    body_limits: BodyLimits | None = None,
    uploads: Uploads | None = None,
    page: ChatPage | None = None,
    tracer: RequestTracer | None = None,
) -> ASGIApp:
    """The ASGI application of a server's models; its lifespan starts and closes them.

    Args:
        host: of the models, not started yet.
        keyring: knows the API keys; None is open to all.
        hosts: names allowed in the Host header; None allows all.
        origins: web origins whose pages may read the answers (CORS); ``*`` is all of them.
        body_limits: of request bodies; None takes the usual ones.
        uploads: files of clients, and batches over them; None refuses both.
        page: what is at ``/``; None has nothing there.
        tracer: makes spans of requests, or None.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await host.start()
        if uploads is not None:
            uploads.batches.start()
        try:
            yield
        finally:
            if uploads is not None:
                await uploads.batches.close()
            await host.close()
            if page is not None:
                page.close()

    app = FastAPI(
        title="Halfbyte",
        version=halfbyte.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    keyring = keyring or Keyring()
    routes = Routes(app, closed=not keyring.open)
    _add_endpoints(routes, host, {**ENDPOINTS, **FAMILY_ENDPOINTS}, HOST_ENDPOINTS)
    for (method, path), work in KEPT.items():
        told = Operation((work.gives,), statuses=(404,))
        routes.add(method, path, _kept_route(host, work), told)
    _add_information(routes, host)
    if page is not None:
        _add_endpoints(routes, host, page.endpoints, page.host_endpoints)
        routes.add("GET", "/page/fields", _fields_route, Operation((PageFields,)))
        add_page_files(app, page)
    else:
        _add_refusals(app, {"/": (404, PAGE_OFF)})
    _add_refusals(app, ABSENT)
    if uploads is not None:
        add_upload_routes(routes, uploads, origins)
    else:
        _add_refusals(app, UPLOADS_REFUSED)
    _add_errors(app)
    paths = list(routes.complete()["paths"])
    bodies = Bodies(body_limits or BodyLimits(), host.http_metrics)
    inner = Exchange(app, host.http_metrics, bodies, FILES_PATH if uploads else None)
    files = () if page is None else page.files
    gate = Gate(inner, keyring, hosts, OPEN_PATHS.union(files))
    paths += ["/openapi.json", *files]
    outer = RequestLog(gate, host.http_metrics, paths, tracer)
    if not origins:
        return outer
    # Outermost: a preflight carries no key, and a page must be able to read refusals as well.
    return CORSMiddleware(
        outer,
        allow_origins=origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["X-Request-Id", "Retry-After"],
    )


class EventResponse(Response):
    """Sends an `EventStream`, and closes it and gives its model back whatever happens."""

    def __init__(self, events: EventStream, lease: Lease) -> None:
        super().__init__(headers=dict(events.headers))
        del self.headers["content-length"]
        self._events = events
        self._lease = lease

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the events as they come."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for frames in self._events:
                await send({"type": "http.response.body", "body": frames, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            try:
                await self._events.aclose()
            finally:
                self._lease.release()


def _add_endpoints(
    routes: Routes,
    host: ModelHost,
    of_models: Mapping[str, Endpoint],
    of_all: Mapping[str, HostEndpoint],
) -> None:
    for path, endpoint in of_models.items():
        told = Operation(endpoint.gives, endpoint.asks, OF_MODELS, endpoint.streams)
        routes.add("POST", path, _route(host, endpoint), told)
    for path, endpoint in of_all.items():
        told = Operation((endpoint.gives,), endpoint.asks, OF_MODELS)
        routes.add("POST", path, _host_route(host, endpoint), told)


async def _fields_route() -> Response:
    return json_answer(page_fields())


def _kept_route(host: ModelHost, work: KeptWork) -> Callable[[Request, str], Awaitable[Response]]:
    async def handle(request: Request, id: str) -> Response:
        return json_answer(work.answer(host.kept, id, request.state.call))

    return handle


def _refusal(status: int, reason: str) -> Callable[[], Awaitable[Response]]:
    async def handle() -> Response:
        raise ApiError(status, reason)

    return handle


def _fact_route(
    host: ModelHost, fact: Fact[OpenAIService]
) -> Callable[[str | None], Awaitable[Response]]:
    async def handle(model: str | None = None) -> Response:
        async with host.lent(model) as service:
            service.served(model)
            return json_answer(fact.answer(service))

    return handle


def _host_fact_route(host: ModelHost, fact: Fact[ModelHost]) -> Callable[[], Awaitable[Response]]:
    async def handle() -> Response:
        return json_answer(fact.answer(host))

    return handle


def _host_route(
    host: ModelHost, endpoint: HostEndpoint
) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        asked = await asked_model(endpoint.asks, request)
        return json_answer(await endpoint.answer(host, asked, request.state.call))

    return handle


def _route(host: ModelHost, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """The handler of an endpoint: it has its model until the answer's last byte is on its way."""

    async def handle(request: Request) -> Response:
        asked = await asked_model(endpoint.asks, request)
        lease = await host.take(asked.wanted_model)
        try:
            answer = await endpoint.answer(lease.service, asked, request.state.call)
        except BaseException:
            lease.release()
            raise
        if isinstance(answer, EventStream):
            return EventResponse(answer, lease)
        lease.release()
        return json_answer(answer)

    return handle


def _add_refusals(app: FastAPI, reasons: Mapping[str, tuple[int, str]]) -> None:
    """Answer requests for what is not there with a status and the reason, path by path."""
    for path, (status, reason) in reasons.items():
        app.add_api_route(
            path,
            _refusal(status, reason),
            methods=["GET", "POST", "DELETE"],
            include_in_schema=False,
        )


def _add_information(routes: Routes, host: ModelHost) -> None:
    for path, fact in FACTS.items():
        told = Operation((fact.gives,), statuses=OF_MODELS)
        routes.add("GET", path, _fact_route(host, fact), told)
    for path, fact in HOST_FACTS.items():
        routes.add("GET", path, _host_fact_route(host, fact), Operation((fact.gives,)))

    async def model(name: str) -> Response:
        return json_answer(find_model(host, name))

    async def health() -> Response:
        """Alive: 200 while the engine runs."""
        if not host.health().alive:
            raise engine_down()
        return json_answer(HealthStatus(status="ok"))

    async def ready() -> Response:
        """Taking requests: 503 while shutting down as well."""
        if not host.health().accepting:
            raise engine_down()
        return json_answer(HealthStatus(status="ready"))

    async def version() -> Response:
        return json_answer(VersionInfo(version=halfbyte.__version__))

    async def metrics() -> Response:
        return Response(host.exposition.render(), headers={"Content-Type": CONTENT_TYPE})

    one = Operation((ModelCard,), statuses=(404,))
    routes.add("GET", "/v1/models/{name:path}", model, one)
    well = Operation((HealthStatus,))
    for path in ("/v1/health", "/health"):
        routes.add("GET", path, health, well)
    routes.add("HEAD", "/health", health, Operation())
    routes.add("GET", "/ready", ready, well)
    routes.add("GET", "/version", version, Operation((VersionInfo,)))
    routes.add("GET", "/metrics", metrics, Operation(media="text/plain"))


def _add_errors(app: FastAPI) -> None:
    def respond(request: Request, error: Exception) -> Response:
        api_error = as_api_error(error)
        call: Call = request.state.call
        call.finish = api_error.code
        if isinstance(error, HalfbyteError) and api_error.status == 500:
            logger.error("request %s failed", call.request_id, exc_info=error)
        return _error_response(api_error, request)

    def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        target = f"{request.method} {request.url.path[:200]}"
        texts = {404: f"There is no {target} here.", 405: f"{target} is not allowed."}
        message = texts.get(error.status_code, str(error.detail))
        response = _error_response(ApiError(error.status_code, message), request)
        response.headers.update(error.headers or {})
        if error.status_code == 405:
            response.headers["Allow"] = ", ".join(_allowed(request))
        return response

    def refuse_query(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:])
        told = ApiError(400, f"{name}: {first['msg']}", param=name)
        return _error_response(told, request)

    for kind in (ApiError, HalfbyteError, Exception):
        app.add_exception_handler(kind, respond)
    app.add_exception_handler(RequestValidationError, refuse_query)
    app.add_exception_handler(HTTPException, refuse)


def _allowed(request: Request) -> list[str]:
    """The methods that a request's path has, each of which is a route of its own here."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    found = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in found for method in route.methods or ()})


def _error_response(error: ApiError, request: Request) -> Response:
    body = error_json(error, request.url.path)
    return Response(body, error.status, headers=error.headers(), media_type="application/json")
