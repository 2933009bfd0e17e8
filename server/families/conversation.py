"""Conversations and tools of other APIs, put together as chat completions have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbyte.errors import RequestError

TurnContent = str | list[dict[str, str]]


class ChatTurns:
    """Puts the messages of a chat completion together.

    Other APIs have thoughts, texts and calls as items that follow each other, where a chat
    completion has one message of the assistant's.

    Args:
        messages: what stands before; not changed.

    Attributes:
        messages: so far, as fields of `ChatMessage`, the thoughts in parts.
    """

    def __init__(self, messages: list[dict[str, Any]] | None = None) -> None:
        self.messages: list[dict[str, Any]] = list(messages or ())
        self._given = len(self.messages)  # so many are somebody else's

    def add(self, role: str, content: TurnContent | None, **more: Any) -> None:
        """A message for itself, with whatever other fields it has."""
        self.messages.append({"role": role, "content": content, **more})

    def join(self, role: str, content: TurnContent) -> None:
        """More of the last message, if it has this role; else a message for itself."""
        last = self._last(role)
        if last is None:
            self.add(role, content)
        elif last["content"] is None:
            last["content"] = content
        else:
            # In place: a new list each time would take the square of the time.
            last["content"] = _parts(last["content"])
            last["content"] += _parts(content)

    def think(self, text: str) -> None:
        """What the assistant thought before it said or called anything."""
        last = self._last("assistant")
        if last is None or last["content"] is not None or "tool_calls" in last:
            self.add("assistant", None, reasoning_content=[text])
        else:
            last.setdefault("reasoning_content", []).append(text)

    def call(self, id: str | None, name: Any, arguments: Any) -> None:
        """A call, by the assistant's message that comes last or a new one."""
        last = self._last("assistant")
        if last is None:
            self.add("assistant", None)
            last = self.messages[-1]
        function = {"name": name, "arguments": arguments}
        calls = last.setdefault("tool_calls", [])
        calls.append({"id": id, "type": "function", "function": function})

    def whole(self) -> list[dict[str, Any]]:
        """The messages as fields of `ChatMessage`; what only thought has an empty text."""
        out = []
        for turn in self.messages:
            fields = dict(turn)
            if fields["content"] is None and "tool_calls" not in fields:
                fields["content"] = ""
            if "reasoning_content" in fields:
                fields["reasoning_content"] = "".join(fields["reasoning_content"])
            out.append(fields)
        return out

    def _last(self, role: str) -> dict[str, Any] | None:
        """The last message, if it has this role, to be changed."""
        if not self.messages or self.messages[-1]["role"] != role:
            return None
        if len(self.messages) == self._given:
            self._given -= 1
            self.messages[-1] = {
                name: list(value) if isinstance(value, list) else value
                for name, value in self.messages[-1].items()
            }
        return self.messages[-1]


def function_tool(
    name: Any, description: str | None, parameters: Mapping[str, Any] | None, strict: bool | None
) -> dict[str, Any]:
    """A tool as chat completions have it, of what other APIs write side by side."""
    function = {
        "name": name,
        "description": description,
        "parameters": parameters,
        "strict": strict,
    }
    return {"type": "function", "function": function}


def chosen_function(name: str) -> dict[str, Any]:
    """The choice of one function, as chat completions have it."""
    return {"type": "function", "function": {"name": name}}


def needed(value: Any, where: str, name: str) -> Any:
    """A field that an item of this type must have. Raises RequestError where it is None."""
    if value is None:
        raise RequestError(
            f"{where}.{name} is missing",
            param=f"{where}.{name}",
            code="missing_required_parameter",
        )
    return value


def _parts(content: TurnContent) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
