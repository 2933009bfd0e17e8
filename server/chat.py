"""From the messages of a request to what a chat template takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.errors import RequestError

from .content import text_parts
from .schema import ChatMessage
from .tool_fields import Tool

# Template switches a client may set, with the type each must have. Everything else is refused:
# free keyword arguments would let a client reach into the rendering itself.
_TEMPLATE_SWITCHES: Mapping[str, type] = {"enable_thinking": bool}


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Plain dictionaries for the chat template, their content a text or a list of text parts.

    The ``developer`` role becomes ``system``, its older name, which templates know.

    Raises:
        RequestError: a part that is not text, a message without content, calls in a message that
            is not the assistant's, or the ``function`` role, which ``tool`` replaced.
    """
    out = []
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        if message.role == "function":
            raise RequestError(
                f"{where}.role is 'function', which this server does not support",
                param=f"{where}.role",
                code="unsupported_value",
                hint="use the role 'tool'",
            )
        role = "system" if message.role == "developer" else message.role
        entry: dict[str, Any] = {"role": role}
        if message.content is not None or not message.tool_calls:
            entry["content"] = _content(message, where)
        if message.name is not None:
            entry["name"] = message.name
        _add_calls(entry, message, where)
        reasoning = message.reasoning_content or message.reasoning
        if reasoning and role == "assistant":
            entry["reasoning_content"] = reasoning
        out.append(entry)
    return out


def has_tool_traffic(messages: Sequence[ChatMessage]) -> bool:
    """Whether messages hold calls or their results."""
    return any(message.tool_calls or message.role == "tool" for message in messages)


def _add_calls(entry: dict[str, Any], message: ChatMessage, where: str) -> None:
    """Add what a message holds of calls, as transformers hands it to templates."""
    for name, role in (("tool_calls", "assistant"), ("tool_call_id", "tool")):
        if getattr(message, name) and message.role != role:
            raise RequestError(
                f"{where}.{name} is given for the role {message.role!r}; expected {role!r}",
                param=f"{where}.{name}",
            )
    if message.tool_call_id is not None:
        entry["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        entry["tool_calls"] = [
            {
                **({} if call.id is None else {"id": call.id}),
                "type": "function",
                "function": {
                    "name": call.function.name,
                    # A call without arguments has an empty object of them.
                    "arguments": call.function.arguments or "{}",
                },
            }
            for call in message.tool_calls
        ]


def template_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as templates read them; a function without parameters has a schema without any."""
    out = []
    for tool in tools:
        function = tool.function
        entry: dict[str, Any] = {"name": function.name}
        if function.description is not None:
            entry["description"] = function.description
        entry["parameters"] = function.parameters or {"type": "object", "properties": {}}
        out.append({"type": "function", "function": entry})
    return out


def _content(message: ChatMessage, where: str) -> str | list[dict[str, str]]:
    """The content as it was sent: which form the template takes is known where it is rendered."""
    if message.content is None:
        raise RequestError(f"{where}.content is missing", param=f"{where}.content")
    if isinstance(message.content, str):
        return message.content
    return text_parts(message.content, f"{where}.content")


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
