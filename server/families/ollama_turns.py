"""From the messages of Ollama's API to those of a chat completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from halfbyte.errors import RequestError

from .ollama_fields import OllamaMessage

# Templates that ask for ids of calls ask for nine letters and digits.
_ID_DIGITS = 9


def ollama_messages(messages: Sequence[OllamaMessage]) -> list[dict[str, Any]]:
    """The messages of a chat completion that are the same.

    Ollama's calls need no ids: what a call gave belongs to the first one of the latest message
    with calls that is still open, of the function that it names, if it names one.

    Raises:
        RequestError: a result without a call, or calls in a message of somebody else's; names
            the field.
    """
    out = []
    open_calls: list[tuple[str, str]] = []  # ids and functions
    made = 0
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        entry: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.thinking and message.role == "assistant":
            entry["reasoning_content"] = message.thinking
        if message.tool_calls:
            calls, open_calls = [], []
            for call in message.tool_calls:
                id = call.id or f"{made:0{_ID_DIGITS}d}"
                made += 1
                open_calls.append((id, call.function.name))
                function = {"name": call.function.name, "arguments": call.function.arguments}
                calls.append({"id": id, "type": "function", "function": function})
            entry["tool_calls"] = calls
        if message.role == "tool":
            entry["tool_call_id"] = message.tool_call_id or _answered(message, open_calls, where)
            if message.tool_name is not None:
                entry["name"] = message.tool_name
        out.append(entry)
    return out


def _answered(message: OllamaMessage, open_calls: list[tuple[str, str]], where: str) -> str:
    """The id of the call whose result a message is; it is not open any more."""
    name = message.tool_name
    for place, (id, function) in enumerate(open_calls):
        if name in (None, function):
            del open_calls[place]
            return id
    called = "a call" if name is None else f"a call of {name!r:.140}"
    raise RequestError(
        f"{where} is the result of {called}, but no such call before it is without a result",
        param=where,
    )
