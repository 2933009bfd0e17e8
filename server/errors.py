"""Errors as OpenAI clients expect them: a status and one JSON body for every failure.

``{"error": {"message", "type", "param", "code"}}``, all four keys always there.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import orjson

from halfbyte.errors import (
    EngineDeadError,
    GrammarProcessError,
    RequestError,
    TemplateError,
    TemplateProcessError,
)

_MAX_MESSAGE = 600
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {
    400: "invalid_value",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "server_overloaded",
    503: "service_unavailable",
}


class ApiError(Exception):
    """A failure with an HTTP status, safe to show to the client.

    Args:
        status: HTTP status, 400 to 599.
        message: one or two sentences; cut at 600 characters.
        param: the request field at fault, or None.
        code: machine-readable code; None takes the status's usual one.
        retry_after: seconds for a ``Retry-After`` header, or None.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message if len(message) <= _MAX_MESSAGE else message[:_MAX_MESSAGE] + "…"
        self.param = param
        self.code = code or _CODES.get(status, "internal_error")
        self.retry_after = retry_after

    @property
    def type(self) -> str:
        """OpenAI's error type, which follows from the status."""
        if self.status >= 500:
            return "server_error"
        return _TYPES.get(self.status, "invalid_request_error")

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def json(self) -> bytes:
        """The body's text, UTF-8."""
        return orjson.dumps(self.body())

    def headers(self) -> dict[str, str]:
        """Extra response headers."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    def response(self, body: bytes | None = None, media: str = "application/json") -> bytes:
        """A whole HTTP/1.1 response that ends its connection, for where no application runs.

        ``body`` stands in place of the usual one, and is of the media type ``media``.
        """
        body = self.json() if body is None else body
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in self.headers().items()]
        lines += [f"Content-Type: {media}", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body


def engine_down() -> ApiError:
    """The answer while the engine is dead or shutting down."""
    return ApiError(
        503, "The engine is not serving requests now.", code="engine_unavailable", retry_after=5
    )


def no_such_model(name: str, known: Iterable[str]) -> ApiError:
    """The answer to a request for a model that is not among the known ones."""
    return ApiError(
        404,
        f"The model {name[:200]!r} does not exist here; this server has {', '.join(known)}.",
        param="model",
        code="model_not_found",
    )


def internal_error() -> ApiError:
    """The answer to a failure whose details belong in the log only."""
    return ApiError(500, "The server failed while running this request; its log has the details.")


def as_api_error(error: BaseException) -> ApiError:
    """What to tell the client about an exception; unexpected ones give a generic 500."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        return ApiError(400, str(error), param=error.param, code=error.code)
    if isinstance(error, TemplateError):
        return ApiError(400, str(error), param="messages", code="invalid_chat_template_input")
    if isinstance(error, TemplateProcessError):
        return ApiError(503, str(error), code="template_process_ended", retry_after=1)
    if isinstance(error, GrammarProcessError):
        return ApiError(503, str(error), code="grammar_process_ended", retry_after=1)
    if isinstance(error, EngineDeadError):
        return engine_down()
    return internal_error()
