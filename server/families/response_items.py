"""What the input and the output of a response are made of: items, and the tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic_core import PydanticCustomError

from halfbyte.errors import RequestError

from ..content import text_parts
from ..request_model import RequestModel
from ..schema import MAX_PARTS
from .conversation import ChatTurns, TurnContent, chosen_function, needed

_TEXTS = ("input_text", "output_text", "text")
_THOUGHTS = ("reasoning_text", "text")


class InputPart(RequestModel):
    """One part of an input message; only texts are honoured."""

    type: str
    text: str | None = None


InputParts = Annotated[list[InputPart], Field(max_length=MAX_PARTS)]


class InputItem(RequestModel):
    """One item of the input: a message, a call, what a call gave, or reasoning.

    Which of the fields it must have depends on its type; `add_item` looks at that.
    """

    type: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | InputParts | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | InputParts | None = None
    summary: InputParts | None = None
    encrypted_content: str | None = None


class FlatTool(RequestModel):
    """A function that may be called, its fields beside its type."""

    not_honoured: ClassVar[Any] = {
        "defer_loading": (None, False),
        "async": (None, False),
        "allowed_callers": (None, [], ["direct"]),
    }
    prefix = "tools."
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


def flat_choice(value: Any) -> Any:
    """A ``tool_choice`` as it was sent, which has its function's name beside its type.

    Raises:
        PydanticCustomError: it is none of the choices.
    """
    if value in (None, "none", "auto", "required"):
        return value
    if isinstance(value, dict) and value.get("type") == "function":
        name = value.get("name")
        if isinstance(name, str):
            return {"type": "function", "name": name}
    raise PydanticCustomError(
        "tool_choice",
        'expected "none", "auto", "required" or {{"type": "function", "name": ...}}',
    )


CHOICE_SCHEMA = {
    "anyOf": [
        {"type": "string", "enum": ["none", "auto", "required"]},
        {"type": "null"},
        {
            "type": "object",
            "properties": {"type": {"const": "function"}, "name": {"type": "string"}},
            "required": ["type", "name"],
        },
    ]
}
"""JSON schema of what `flat_choice` takes."""


def chat_choice(choice: Any) -> Any:
    """The ``tool_choice`` of a chat completion that is the same as a flat one."""
    return chosen_function(choice["name"]) if isinstance(choice, dict) else choice


def add_item(turns: ChatTurns, item: InputItem, where: str) -> None:
    """Add one item to a conversation.

    Args:
        turns: what stands before.
        item: what comes.
        where: its place in the body, for errors.

    Raises:
        RequestError: an item that is not honoured, or that lacks something.
    """
    match item.type:
        case "message" | None if item.role is not None:
            content = _content(needed(item.content, where, "content"), f"{where}.content")
            if item.role == "assistant":
                turns.join(item.role, content)
            else:
                turns.add(item.role, content)
        case "function_call":
            name, text = (
                needed(item.name, where, "name"),
                needed(item.arguments, where, "arguments"),
            )
            turns.call(needed(item.call_id, where, "call_id"), name, text)
        case "function_call_output":
            output = _content(needed(item.output, where, "output"), f"{where}.output")
            turns.add("tool", output, tool_call_id=needed(item.call_id, where, "call_id"))
        case "reasoning":
            if text := _thought(item, where):
                turns.think(text)
        case _:
            raise RequestError(
                f"{where} has type {item.type!r:.40}"
                + (" and no role" if item.type in (None, "message") else "")
                + "; only messages, function_call, function_call_output and reasoning are "
                "supported",
                param=where,
                code="unsupported_value",
            )


def add_output(turns: ChatTurns, output: Sequence[Mapping[str, Any]]) -> None:
    """Add what a response of ours put out."""
    for number, item in enumerate(output):
        add_item(turns, InputItem.model_validate(item), f"output.{number}")


def _content(given: str | list[InputPart], where: str) -> TurnContent:
    return given if isinstance(given, str) else text_parts(given, where, _TEXTS)


def _thought(item: InputItem, where: str) -> str:
    """The text of a reasoning item, or of its summary where that is all there is."""
    if isinstance(item.content, str):
        return item.content
    if item.content:
        parts = text_parts(item.content, f"{where}.content", _THOUGHTS)
    elif item.encrypted_content is not None:
        raise RequestError(
            f"{where}.encrypted_content cannot be read here, and there is no content beside it",
            param=f"{where}.encrypted_content",
            code="unsupported_value",
            hint="leave the item out",
        )
    else:
        parts = text_parts(item.summary or [], f"{where}.summary", ("summary_text",))
    return "".join(part["text"] for part in parts)
