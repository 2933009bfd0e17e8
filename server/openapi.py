"""The OpenAPI document: what each route takes, what it gives, and how it fails.

Routes are added through `Routes`, which notes of each what the document says; nothing of it is
written a second time. Bodies and answers are our own to parse and write, so FastAPI knows only the
paths and the parameters in paths and queries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter

from .error_forms import error_form
from .request_model import RequestModel
from .responses import ResponseModel
from .tenant import OPEN_PATHS

_REF = "#/components/schemas/{model}"
# What any request may get: it is no HTTP, a wrong Host header, a body that is slow or large (of a
# GET as well), a failure of ours, no room. 405 belongs to methods that a path has not, so to no
# operation.
_EVERYWHERE = (400, 403, 408, 413, 500, 503)
_OF_BODIES = 415
_OF_KEYS = 401
OF_MODELS = (404, 429)
"""Statuses of requests that need a model: there is none of that name, or too many wait for it."""

_MEANINGS = {
    400: "A field, the body as a whole, or the request itself is not as it must be; the message "
    "says what.",
    401: "No API key, or one that is not known here.",
    403: "The key, the Host header or the server's options do not allow it.",
    404: "There is nothing of that name.",
    408: "The request did not arrive in time.",
    409: "It cannot be done with what is there now.",
    413: "The body is too large.",
    415: "The body is not of the media type that is expected.",
    429: "Too much waits already; try again later.",
    500: "The server failed; its log has the details.",
    503: "The server cannot answer now: it starts, ends, or has no room.",
    507: "There is no room for more files.",
}
_HEADERS = {
    401: ("WWW-Authenticate", "string"),
    429: ("Retry-After", "integer"),
    503: ("Retry-After", "integer"),
}
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


@dataclass(frozen=True, slots=True)
class Operation:
    """What the document says of a route.

    Attributes:
        gives: kinds of its JSON answers.
        asks: schema of its JSON bodies, or None.
        statuses: of errors that not every route has.
        streams: media type of its streamed answers; empty where there are none.
        media: media type of its answers where they are no JSON.
        form: schema of a form that it takes in place of JSON.
    """

    gives: tuple[type[ResponseModel], ...] = ()
    asks: type[RequestModel] | None = None
    statuses: tuple[int, ...] = ()
    streams: str = ""
    media: str = ""
    form: Mapping[str, Any] | None = None


class Routes:
    """Adds routes to an application, and completes its document when all are there.

    Args:
        app: gets them.
        closed: requests need a key, but for those that anybody may send.
    """

    def __init__(self, app: FastAPI, *, closed: bool) -> None:
        self._app = app
        self._closed = closed
        self._operations: dict[tuple[str, str], Operation] = {}

    def add(self, method: str, path: str, handle: Callable[..., Any], operation: Operation) -> None:
        """Add a route.

        Args:
            method: of HTTP.
            path: as FastAPI writes it.
            handle: FastAPI's handler.
            operation: what the document says.
        """
        name = "_".join([method.lower(), *re.findall(r"\w+", path.replace(":path}", "}"))])
        self._app.add_api_route(path, handle, methods=[method], name=name, operation_id=name)
        self._operations[method.lower(), path.replace(":path}", "}")] = operation

    def complete(self) -> dict[str, Any]:
        """Complete the application's document, and give it."""
        document = self._app.openapi()
        schemas = _schemas(self._operations.values())
        responses: dict[str, Any] = {}
        for (method, path), operation in self._operations.items():
            entry = document["paths"][path][method]
            entry.update(self._described(path, operation, schemas, responses))
        document["components"] = {
            "schemas": schemas.components,
            "responses": responses,
            "securitySchemes": _SECURITY,
        }
        return document

    def _described(
        self, path: str, operation: Operation, schemas: _Schemas, responses: dict[str, Any]
    ) -> dict[str, Any]:
        """Body, answers and security of an operation; ``responses`` gets the errors' parts."""
        out: dict[str, Any] = {}
        content: Mapping[str, Any] | None = operation.form
        if operation.asks is not None:
            content = {"application/json": {"schema": _ref(operation.asks.__name__)}}
        if content is not None:
            out["requestBody"] = {"required": True, "content": content}
        free = path in OPEN_PATHS
        keys = () if free else (_OF_KEYS,)
        bodies = () if content is None else (_OF_BODIES,)
        out["responses"] = {"200": _success(operation, schemas)}
        for status in sorted({*_EVERYWHERE, *keys, *bodies, *operation.statuses}):
            body = error_form(path).body.__name__
            name = f"{body}{status}"
            responses[name] = _error(status, body)
            out["responses"][str(status)] = {"$ref": f"#/components/responses/{name}"}
        if self._closed and not free:
            out["security"] = [{name: []} for name in _SECURITY]
        return out


@dataclass(frozen=True, slots=True)
class _Schemas:
    """JSON schemas: of answers by their kind, and all that these and bodies refer to by name."""

    answers: Mapping[type[ResponseModel], Mapping[str, Any]]
    components: dict[str, Any]


def _schemas(operations: Iterable[Operation]) -> _Schemas:
    """The schemas of all that operations take and give."""
    operations = list(operations)
    asked = {operation.asks: None for operation in operations if operation.asks is not None}
    given = {kind: None for operation in operations for kind in operation.gives}
    forms = [error_form(path).body for path in ("/", "/v1/messages", "/api/")]
    wanted: list[tuple[Any, Any, TypeAdapter[Any]]] = [
        (kind, "validation", TypeAdapter(kind)) for kind in (*asked, *forms)
    ]
    for kind in given:
        # All fields of our own answers are written, those of a shape that have no default.
        mode = "serialization" if kind.shape is None else "validation"
        wanted.append((kind, mode, TypeAdapter(kind if kind.shape is None else kind.shape)))
    found, top = TypeAdapter.json_schemas(wanted, ref_template=_REF)
    answers = {kind: schema for (kind, _), schema in found.items() if kind in given}
    return _Schemas(answers, top["$defs"])


def _success(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    """The entry of the status 200."""
    content: dict[str, Any] = {}
    found = [schemas.answers[kind] for kind in operation.gives]
    if found:
        content["application/json"] = {"schema": found[0] if len(found) == 1 else {"anyOf": found}}
    if operation.streams:
        # No type: to some readers it is one text, to others each event is an object.
        content[operation.streams] = {"schema": {"description": "The same, piece by piece."}}
    if operation.media:
        content[operation.media] = {"schema": {"type": "string"}}
    return {"description": "What was asked for.", "content": content}


def _error(status: int, body: str) -> dict[str, Any]:
    """A part of the document: the answer of one status in one API's form."""
    content = {"application/json": {"schema": _ref(body)}}
    out = {"description": f"{HTTPStatus(status).phrase}. {_MEANINGS[status]}", "content": content}
    if status in _HEADERS:
        name, kind = _HEADERS[status]
        out["headers"] = {name: {"schema": {"type": kind}}}
    return out


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(model=name)}
