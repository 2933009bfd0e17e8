"""Errors in the form of the API that was asked: which one it is, the path tells."""

from __future__ import annotations

from typing import Any

import orjson

from .errors import ApiError

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


def anthropic_error(error: ApiError) -> dict[str, Any]:
    """As Anthropic's API says it; what its form has no place for stays in the message."""
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def ollama_error(error: ApiError) -> dict[str, Any]:
    """As ollama says it."""
    return {"error": error.message}


def error_json(error: ApiError, path: str) -> bytes:
    """The body of a response, UTF-8, to a request for ``path``."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return orjson.dumps(anthropic_error(error))
    if path.startswith("/api/"):
        return orjson.dumps(ollama_error(error))
    return error.json()
