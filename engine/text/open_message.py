"""A prompt that ends within its last message, so that the model goes on with it.

A template writes a message with what comes after it. So the last message gets a mark at its end,
and the rendered text is cut off there, as transformers does with ``continue_final_message``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from halfbyte.errors import RequestError, TemplateError

# Private use, and not among the marks of `user_marks`.
_END = "\U00100000"


def open_messages(
    messages: Sequence[Mapping[str, Any]],
    render: Callable[[Sequence[Mapping[str, Any]]], str],
) -> list[Mapping[str, Any]]:
    """The messages with a mark at the end of the last one, for `cut_open`.

    Where the template takes white space off the end of a message, the mark's does not have any.

    Args:
        messages: of which the last is the assistant's, with a text or text parts.
        render: the rendered text of messages.

    Raises:
        RequestError: the last message cannot be gone on with.
        TemplateError: the template leaves out its end.
    """
    marked = [*messages[:-1], _ended(messages, lambda text: f"{text}{_END} ")]
    text = render(marked)
    _, found, after = text.rpartition(_END)
    if not found:
        raise TemplateError(
            "the chat template does not write the end of the last message, so it cannot be "
            "gone on with"
        )
    if after.startswith(" "):
        return marked
    return [*messages[:-1], _ended(messages, lambda text: text.rstrip() + _END)]


def cut_open(text: str) -> str:
    """What a rendered text has before the mark."""
    return text.rpartition(_END)[0]


def _ended(
    messages: Sequence[Mapping[str, Any]], change: Callable[[str], str]
) -> Mapping[str, Any]:
    """The last message with another end. Raises RequestError."""
    last = messages[-1] if messages else {}
    content = last.get("content") if isinstance(last, Mapping) else None
    is_text = isinstance(content, str)
    if isinstance(content, list) and content and isinstance(content[-1], Mapping):
        is_text = isinstance(content[-1].get("text"), str)
    if not is_text or last.get("role") != "assistant" or last.get("tool_calls"):
        raise RequestError(
            "continue_final_message is true, but the last message is not a text of the assistant",
            param="messages",
        )
    if isinstance(content, str):
        return {**last, "content": change(content)}
    assert isinstance(content, list)
    part = content[-1]
    return {**last, "content": [*content[:-1], {**part, "text": change(part["text"])}]}
