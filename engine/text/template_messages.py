"""Messages and variables of a request, checked and copied into what a chat template is given."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from halfbyte.errors import RequestError

from .template_forms import Content, ContentForms

MAX_DEPTH = 24

_ROLES = (
    "system developer user assistant tool function ipython observation model documents context "
    "control tool_calls tool_results"
)
ROLES = frozenset(_ROLES.split())
# Variables that templates of the supported families read. Anything else that a client sends
# could only be a mistake or an attack.
_VARIABLES = (
    "tools documents date_string enable_thinking thinking thinking_budget preserve_thinking "
    "reasoning_effort tools_in_user_message builtin_tools custom_tools xml_tools python_tools "
    "model_identity custom_instructions"
)
VARIABLES = frozenset(_VARIABLES.split())
# Fields that clients send a model's reasoning in; templates read the first, gpt-oss the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")

Protect = Callable[[str], str]


def checked_variables(given: Mapping[str, Any], protect: Protect) -> dict[str, Any]:
    """A copy of the variables that were set; ``tools`` and ``documents`` are never empty lists.

    Raises RequestError for a name outside :data:`VARIABLES` or a value that is not plain data.
    """
    for name in given:
        if name not in VARIABLES:
            raise RequestError(
                f"{name!r:.60} is not a chat template variable that may be set; "
                f"expected one of {', '.join(sorted(VARIABLES))}",
                param="chat_template_kwargs",
                code="unknown_template_variable",
            )
    out = {name: _copy(value, name, protect) for name, value in given.items() if value is not None}
    for name in ("tools", "documents"):
        value = out.get(name)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(v, dict) for v in value)
        ):
            raise RequestError(f"{name} is {value!r:.60}; expected a list of objects", param=name)
        if value == []:  # templates ask "is not none" as often as "if tools"
            out[name] = None
    return out


def checked_messages(
    messages: Sequence[Mapping[str, Any]],
    protect: Protect,
    forms: ContentForms,
    *,
    arguments_as_text: bool = False,
) -> list[dict[str, Any]]:
    """A copy of the messages as transformers hands them to templates.

    Fields that are None are left out, reasoning has every name that templates know, and content
    has a form that the template takes.

    Args:
        messages: see ``Tokenizer.encode_chat``.
        protect: applied to every text that the caller wrote.
        forms: of the template.
        arguments_as_text: give the arguments of tool calls as JSON text, not as objects.

    Raises:
        RequestError: they are not messages of plain data.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise RequestError(
            f"messages is {messages!r:.60}; expected a list of at least one message",
            param="messages",
        )
    return [
        _message(m, f"messages[{i}]", protect, forms, arguments_as_text)
        for i, m in enumerate(messages)
    ]


def _message(
    message: Mapping[str, Any],
    where: str,
    protect: Protect,
    forms: ContentForms,
    arguments_as_text: bool,
) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{where} is {message!r:.60}; expected an object", param=where)
    role = message.get("role")
    # Templates write "<|" + role + "|>": an invented role could spell a special token.
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(
            f"{where}.role is {role!r:.60}; expected one of {', '.join(sorted(ROLES))}",
            param=f"{where}.role",
        )
    out: dict[str, Any] = {}
    for key, value in message.items():
        if key == "role":
            out["role"] = role
        elif key == "content" and value is not None:
            out["content"] = forms.fit(role, _content(value, f"{where}.content", protect))
        elif value is not None:
            if key == "tool_calls":
                value = _tool_calls(value, where, arguments_as_text)
            out |= _copy({key: value}, where, protect)
    reasoning = next((out[key] for key in _REASONING if key in out), None)
    if reasoning is not None:
        out = {"thinking": reasoning, **out, "reasoning_content": reasoning}
    return out


def _content(content: Any, where: str, protect: Protect) -> Content:
    """A text, or parts of type text with whatever else they hold."""
    if isinstance(content, str):
        return _copy(content, where, protect)
    if not isinstance(content, Sequence):
        raise RequestError(
            f"{where} is {content!r:.60}; expected a text or a list of text parts", param=where
        )
    parts = []
    for index, part in enumerate(content):
        place = f"{where}[{index}]"
        fields = dict(part) if isinstance(part, Mapping) else {"text": part}
        text = fields.pop("text", None)
        if fields.pop("type", "text") != "text" or not isinstance(text, str):
            raise RequestError(
                f"{place} is {part!r:.60}; this engine reads parts of type 'text' only",
                param=place,
            )
        # The template compares the type, so nothing may be marked in it.
        text = _copy(text, f"{place}.text", protect)
        parts.append({"type": "text", "text": text, **_copy(fields, place, protect)})
    return parts


def _tool_calls(calls: Any, where: str, as_text: bool) -> list[Any]:
    """Tool calls with their arguments in one form; clients send JSON text, or an object."""
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise RequestError(
            f"{where}.tool_calls is {calls!r:.60}; expected a list", param=f"{where}.tool_calls"
        )
    out: list[Any] = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and "arguments" in function:
            arguments = _arguments(function["arguments"], as_text)
            call = {**call, "function": {**function, "arguments": arguments}}
        out.append(call)
    return out


def _arguments(value: Any, as_text: bool) -> Any:
    """A tool call's arguments as JSON text or as an object; left alone when they are neither."""
    try:
        if as_text and isinstance(value, Mapping):
            return json.dumps(value, ensure_ascii=False)
        if not as_text and isinstance(value, str):
            parsed = json.loads(value)
            return parsed if isinstance(parsed, dict) else value
    except (TypeError, ValueError, RecursionError):
        return value  # not JSON after all; what it may not contain is checked when it is copied
    return value


def _copy(value: Any, where: str, protect: Protect, depth: int = 0) -> Any:
    """A copy of plain data with ``protect`` applied to every text, keys included."""
    if depth > MAX_DEPTH:
        raise RequestError(f"{where} is nested deeper than {MAX_DEPTH} levels", param=where)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"{where} is not valid Unicode: a lone surrogate", param=where
            ) from error
        return protect(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, Mapping):
        return {
            _copy(_key(k, where), where, protect): _copy(
                v, f"{where}.{k!s:.60}", protect, depth + 1
            )
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_copy(v, f"{where}[{i}]", protect, depth + 1) for i, v in enumerate(value)]
    raise RequestError(
        f"{where} is {value!r:.60}; expected text, finite numbers, lists and objects", param=where
    )


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise RequestError(f"{where} has the key {key!r:.60}; expected text", param=where)
    return key
