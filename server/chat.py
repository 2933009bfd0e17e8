"""From the messages of a request to what a chat template takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.errors import RequestError

from .schema import ChatMessage

# Template switches a client may set, with the type each must have. Everything else is refused:
# free keyword arguments would let a client reach into the rendering itself.
_TEMPLATE_SWITCHES: Mapping[str, type] = {"enable_thinking": bool}


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Plain dictionaries for the chat template, their content a text or a list of text parts.

    The ``developer`` role becomes ``system``, its older name, which templates know.

    Raises:
        RequestError: a part that is not text, tool traffic, or a message without content.
    """
    out = []
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        if message.tool_calls or message.role in ("tool", "function"):
            raise RequestError(
                f"{where} is part of a tool call, which this server does not support",
                param=where,
                code="unsupported_value",
            )
        role = "system" if message.role == "developer" else message.role
        entry: dict[str, Any] = {"role": role, "content": _content(message, where)}
        if message.name is not None:
            entry["name"] = message.name
        out.append(entry)
    return out


def _content(message: ChatMessage, where: str) -> str | list[dict[str, str]]:
    """The content as it was sent: which form the template takes is known where it is rendered."""
    if message.content is None:
        raise RequestError(f"{where}.content is missing", param=f"{where}.content")
    if isinstance(message.content, str):
        return message.content
    parts = []
    for number, part in enumerate(message.content):
        if part.type != "text":
            raise RequestError(
                f"{where}.content.{number} has type {part.type[:40]!r}; only text is supported",
                param=f"{where}.content.{number}.type",
                code="unsupported_value",
            )
        if part.text is None:
            raise RequestError(
                f"{where}.content.{number} has no text", param=f"{where}.content.{number}.text"
            )
        parts.append({"type": "text", "text": part.text})
    return parts


def template_switches(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The allowed template arguments among ``chat_template_kwargs``.

    Raises:
        RequestError: an argument that is not on the list, or of the wrong type.
    """
    for name, value in (given or {}).items():
        param = f"chat_template_kwargs.{name[:40]}"
        if name not in _TEMPLATE_SWITCHES:
            allowed = ", ".join(sorted(_TEMPLATE_SWITCHES))
            raise RequestError(
                f"{param} is not allowed", param=param, hint=f"allowed here: {allowed}"
            )
        if type(value) is not _TEMPLATE_SWITCHES[name]:
            raise RequestError(f"{param} must be true or false", param=param)
    return dict(given or {})
