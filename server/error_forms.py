"""Errors in the form of the API that was asked: which one it is, the path tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic import BaseModel

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


class ErrorDetails(BaseModel):
    """What is told of a failure; ``param`` is the field at fault."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIErrorBody(BaseModel):
    """An error as OpenAI's, vLLM's and llama.cpp's clients know it."""

    error: ErrorDetails


class AnthropicErrorDetails(BaseModel):
    """What is told of a failure."""

    type: str
    message: str


class AnthropicErrorBody(BaseModel):
    """An error as Anthropic's clients know it."""

    type: Literal["error"]
    error: AnthropicErrorDetails


class OllamaErrorBody(BaseModel):
    """An error as ollama's clients know it."""

    error: str


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """How an API writes its errors.

    Attributes:
        body: schema of what is written.
        write: an error -> that body.
    """

    body: type[BaseModel]
    write: Callable[[ApiError], dict[str, Any]]


_OPENAI = ErrorForm(OpenAIErrorBody, ApiError.body)
_ANTHROPIC = ErrorForm(AnthropicErrorBody, anthropic_error)
_OLLAMA = ErrorForm(OllamaErrorBody, ollama_error)


def error_form(path: str) -> ErrorForm:
    """The form of the errors that requests for ``path`` get."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return _ANTHROPIC
    return _OLLAMA if path.startswith("/api/") else _OPENAI


def error_json(error: ApiError, path: str) -> bytes:
    """The body of a response, UTF-8, to a request for ``path``."""
    return orjson.dumps(error_form(path).write(error))
