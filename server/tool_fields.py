"""The fields of a chat request that are about tools: what may be called, and what was."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from .request_model import RequestModel

MAX_TOOLS = 128
MAX_CALLS = 128
_NAME = r"^[A-Za-z0-9_.:/-]{1,128}$"
_MODES = ("none", "auto", "required")

FunctionName = Annotated[str, Field(pattern=_NAME)]


class FunctionTool(RequestModel):
    """A function that may be called.

    ``parameters`` is the JSON schema of its arguments; left out, it has none.
    """

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(RequestModel):
    """One tool of a request; functions are the only kind."""

    type: Literal["function"] = "function"
    function: FunctionTool


class CalledFunction(RequestModel):
    """What a call of an earlier turn called; the arguments are JSON text, or an object."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    arguments: str | dict[str, Any] | None = None


class EarlierCall(RequestModel):
    """A call in a message of the assistant."""

    id: Annotated[str, Field(max_length=256)] | None = None
    type: Literal["function"] | None = None
    function: CalledFunction


def _checked_choice(value: Any) -> Any:
    """One of the modes, or the object that names a function."""
    if value is None or (isinstance(value, str) and value in _MODES):
        return value
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "function" and isinstance(name, str) and re.fullmatch(_NAME, name):
        return {"type": "function", "function": {"name": name}}
    raise PydanticCustomError(
        "tool_choice",
        'expected "none", "auto", "required" or '
        '{{"type": "function", "function": {{"name": ...}}}}',
    )


_CHOICE_SCHEMA = {
    "anyOf": [
        {"type": "string", "enum": list(_MODES)},
        {
            "type": "object",
            "properties": {
                "type": {"const": "function"},
                "function": {
                    "type": "object",
                    "properties": {"name": {"type": "string", "pattern": _NAME}},
                    "required": ["name"],
                },
            },
            "required": ["type", "function"],
        },
        {"type": "null"},
    ]
}

Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]
ToolChoice = Annotated[Any, BeforeValidator(_checked_choice), WithJsonSchema(_CHOICE_SCHEMA)]
EarlierCalls = Annotated[list[EarlierCall], Field(max_length=MAX_CALLS)]
