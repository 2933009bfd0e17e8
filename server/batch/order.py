"""In which order the lines of a batch are submitted: those with a common beginning together.

The prefix cache keeps what was computed last, so requests that begin alike should follow each
other. As in a depth-first walk of their prefix tree (RadixAttention, Zheng et al. 2024), the
longest common beginnings come closest together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic_core import from_json

from .lines import InputLine

LOOK_AHEAD_LINES = 1024
LOOK_AHEAD_BYTES = 16 << 20
"""Most lines, and about most bytes of them, that are in memory to be put in order."""


def submission_order(
    lines: Iterable[InputLine],
    block: int,
    *,
    most_lines: int = LOOK_AHEAD_LINES,
    most_bytes: int = LOOK_AHEAD_BYTES,
) -> Iterator[InputLine]:
    """The lines in the order in which they are to be submitted.

    Args:
        lines: in the input's order.
        block: characters, or token ids, that are compared at a time: beginnings that have
            fewer in common stay in the input's order. The tokens of a block of the KV cache are
            a good number: a token has at least one character.
        most_lines: lines in memory.
        most_bytes: bytes in memory, apart from one line.
    """
    window: list[InputLine] = []
    size = 0
    for line in lines:
        window.append(line)
        size += len(line.data or b"")
        if len(window) >= most_lines or size >= most_bytes:
            yield from _grouped(window, block)
            window, size = [], 0
    yield from _grouped(window, block)


def _grouped(window: list[InputLine], block: int) -> Iterator[InputLine]:
    """Walk the prefix tree of a window; children in the order in which the input has them."""
    todo = [(0, [(beginning(line.data), line) for line in window])]
    while todo:
        depth, members = todo.pop()
        if len(members) == 1:
            yield members[0][1]
            continue
        children: dict[str, list[tuple[str, InputLine]]] = {}
        for text, line in members:
            children.setdefault(text[depth : depth + block], []).append((text, line))
        for piece, child in reversed(children.items()):
            if len(piece) == block:
                todo.append((depth + block, child))
            else:  # these texts are equal to their ends
                todo.extend((depth, [member]) for member in reversed(child))


def beginning(data: bytes | None) -> str:
    """The prompt of a line, to be compared with others; "" for what has none.

    The messages of a chat, a text, or token ids as characters; of several prompts the first.
    Prompts of different cache salts have nothing in common.
    """
    try:
        value = from_json(data or b"")
    except ValueError:
        return ""
    body = value.get("body") if isinstance(value, dict) else None
    if not isinstance(body, dict):
        return ""
    messages = body.get("messages")
    text = _messages(messages) if isinstance(messages, list) else _prompt(body.get("prompt"))
    salt = body.get("cache_salt")
    return f"{salt}\0{text}" if isinstance(salt, str) else text


def _messages(messages: list[Any]) -> str:
    parts = []
    for message in messages:
        if isinstance(message, dict):
            parts.append(f"{message.get('role')}\n{message.get('content')}\0")
    return "".join(parts)


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, list):
        return "".join(chr(i) for i in prompt if type(i) is int and 0 <= i < 0x110000)
    return prompt if isinstance(prompt, str) else ""
