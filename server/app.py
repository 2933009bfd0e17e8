"""The FastAPI face: thin routes over `OpenAIService`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

import halfbyte
from halfbyte.errors import HalfbyteError

from .bodies import Bodies, BodyLimits
from .endpoints import ABSENT, ENDPOINTS, FACTS, FAMILY_ENDPOINTS, KEPT, Endpoint, Fact, KeptWork
from .error_forms import error_json
from .errors import ApiError, as_api_error, engine_down
from .event_stream import EventStream
from .job import Call
from .json_body import asked_model, json_answer
from .metrics import CONTENT_TYPE
from .middleware import Exchange, Gate, RequestLog
from .schema import RequestModel, json_schemas
from .service import OpenAIService
from .tenant import Keyring
from .tracing import RequestTracer
from .uploads.routes import FILES_PATH, UPLOADS_REFUSED, Uploads, add_upload_routes

logger = logging.getLogger("halfbyte.server")

_EVERY = {**ENDPOINTS, **FAMILY_ENDPOINTS}


def create_app(
    service: OpenAIService,
    *,
    keyring: Keyring | None = None,
    hosts: Collection[str] | None = None,
    origins: Sequence[str] = (),
    body_limits: BodyLimits | None = None,
    uploads: Uploads | None = None,
    tracer: RequestTracer | None = None,
) -> ASGIApp:
    """The ASGI application of a service; its lifespan starts and closes the service.

    Args:
        service: not started yet.
        keyring: knows the API keys; None is open to all.
        hosts: names allowed in the Host header; None allows all.
        origins: web origins whose pages may read the answers (CORS); ``*`` is all of them.
        body_limits: of request bodies; None takes the usual ones.
        uploads: files of clients, and batches over them; None refuses both.
        tracer: makes spans of requests, or None.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        if uploads is not None:
            uploads.batches.start()
        try:
            yield
        finally:
            if uploads is not None:
                await uploads.batches.close()
            await service.close()

    app = FastAPI(
        title="Halfbyte",
        version=halfbyte.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    _add_endpoints(app, service)
    _add_information(app, service)
    if uploads is not None:
        add_upload_routes(app, uploads, origins)
    else:
        _add_refusals(app, UPLOADS_REFUSED)
    _add_errors(app)
    _document(app)
    routes = list(app.openapi()["paths"])
    bodies = Bodies(body_limits or BodyLimits(), service.metrics)
    inner = Exchange(app, service.metrics, bodies, FILES_PATH if uploads else None)
    gate = Gate(inner, keyring or Keyring(), hosts)
    outer = RequestLog(gate, service.metrics, [*routes, "/openapi.json"], tracer)
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
    """Sends an `EventStream` and closes it whatever happens."""

    def __init__(self, events: EventStream) -> None:
        super().__init__(headers=dict(events.headers))
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the events as they come."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for frames in self._events:
                await send({"type": "http.response.body", "body": frames, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._events.aclose()


def _takes(model: type[RequestModel]) -> dict[str, Any]:
    """What the OpenAPI document says about a route's body."""
    ref = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": ref}}}}


def _add_endpoints(app: FastAPI, service: OpenAIService) -> None:
    for path, endpoint in _EVERY.items():
        app.add_api_route(
            path,
            _route(service, endpoint),
            methods=["POST"],
            name=_name(path),
            openapi_extra=_takes(endpoint.asks),
        )

    for (method, path), work in KEPT.items():
        app.add_api_route(
            path, _kept_route(service, work), methods=[method], name=f"{method.lower()}_response"
        )


def _kept_route(
    service: OpenAIService, work: KeptWork
) -> Callable[[Request, str], Awaitable[Response]]:
    async def handle(request: Request, id: str) -> Response:
        return json_answer(work(service, id, request.state.call))

    return handle


def _name(path: str) -> str:
    """What the OpenAPI document calls the route of a path."""
    return path.removeprefix("/v1/").replace("/", "_").strip("_")


def _refusal(status: int, reason: str) -> Callable[[], Awaitable[Response]]:
    async def handle() -> Response:
        raise ApiError(status, reason)

    return handle


def _fact_route(service: OpenAIService, fact: Fact) -> Callable[[], Awaitable[Response]]:
    async def handle() -> Response:
        return json_answer(fact(service))

    return handle


def _route(service: OpenAIService, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """The handler of an endpoint."""

    async def handle(request: Request) -> Response:
        asked = await asked_model(endpoint.asks, request)
        answer = await endpoint.answer(service, asked, request.state.call)
        return EventResponse(answer) if isinstance(answer, EventStream) else json_answer(answer)

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


def _add_information(app: FastAPI, service: OpenAIService) -> None:
    _add_refusals(app, ABSENT)
    for path, fact in FACTS.items():
        app.add_api_route(path, _fact_route(service, fact), methods=["GET"], name=_name(path))

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return json_answer(service.model(name))

    @app.head("/health", include_in_schema=False)
    @app.get("/v1/health")
    @app.get("/health")
    async def health() -> dict[str, str]:
        """Alive: 200 while the engine runs."""
        if not service.health().alive:
            raise engine_down()
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """Taking requests: 503 while shutting down as well."""
        if not service.health().accepting:
            raise engine_down()
        return {"status": "ready"}

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": halfbyte.__version__}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


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


def _error_response(error: ApiError, request: Request) -> Response:
    body = error_json(error, request.url.path)
    return Response(body, error.status, headers=error.headers(), media_type="application/json")


def _document(app: FastAPI) -> None:
    """Add the request bodies, which the routes parse themselves, to the OpenAPI document."""
    document = app.openapi()
    document.setdefault("components", {}).setdefault("schemas", {}).update(
        json_schemas([endpoint.asks for endpoint in _EVERY.values()])
    )
