"""A request's body as JSON of a known schema, and an answer's."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from fastapi import Request, Response

from .errors import ApiError
from .request_model import RequestModel
from .responses import ResponseModel
from .schema import parse

ModelAsked = TypeVar("ModelAsked", bound=RequestModel)

# Bytes from which a body is read in a thread: our own checks of it are Python.
_LARGE_BODY = 1 << 16


def json_answer(model: ResponseModel) -> Response:
    """A response body as an answer."""
    return Response(model.to_json(), media_type="application/json")


async def _json_body(request: Request) -> bytes:
    """The body of a request that says it is JSON; a page elsewhere cannot say so unasked.

    Ollama and llama.cpp do not ask for it, and some of their clients do not say it: on their paths
    it is enough that no browser sends the request.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    told = kind == "application/json" or kind.endswith("+json")
    if not told and (request.url.path.startswith("/v1/") or _from_a_page(request)):
        raise ApiError(415, "The request must have the header Content-Type: application/json.")
    return await request.body()


def _from_a_page(request: Request) -> bool:
    """Whether a browser says whose page a request comes from, as each does for a POST."""
    return "origin" in request.headers or "sec-fetch-site" in request.headers


async def asked_model(kind: type[ModelAsked], request: Request) -> ModelAsked:
    """The request's body as a schema object.

    Raises:
        ApiError: 415, it does not say that it is JSON.
        RequestError: it is no such object; names the field.
    """
    body = await _json_body(request)
    if len(body) < _LARGE_BODY:
        return parse(kind, body)
    return await asyncio.to_thread(parse, kind, body)
