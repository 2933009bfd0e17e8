"""Where a JSON value ends, in text that comes bit by bit, and what kind of value a text is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_STRING = re.compile(r'[^"\\]*')
_BETWEEN = re.compile(r'[^"\[\]{}]*')
_SCALAR = re.compile(r"[\w.+-]*")
PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
"""What models write for words of JSON."""
JSON_KINDS: Mapping[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    dict: "object",
    list: "array",
    type(None): "null",
}
"""The names of JSON types."""


class ValueScanner:
    """Finds the end of one value. Of a value that is malformed inside it finds an end, too.

    Args:
        first: the value's first character, which is not fed.

    Attributes:
        done: the end was found.
        scalar: a number or a word, whose end shows in what follows it.
    """

    def __init__(self, first: str) -> None:
        self._string = first == '"'
        self._escaped = False
        self._depth = int(first in "{[")
        self.scalar = not (self._string or self._depth)
        self.done = False

    def feed(self, text: str, at: int) -> int:
        """Take text from ``at`` on; returns where what is not part of the value begins."""
        if self.scalar:
            end = _end(_SCALAR, text, at)
            self.done = end < len(text)
            return end
        while at < len(text) and not self.done:
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            at = _end(_STRING if self._string else _BETWEEN, text, at)
            if at < len(text):
                self._sign(text[at])
                at += 1
        return at

    def _sign(self, char: str) -> None:
        if self._string:
            self._escaped = char == "\\"
            self._string = self._escaped
            self.done = not self._string and not self._depth
        elif char == '"':
            self._string = True
        else:
            self._depth += 1 if char in "{[" else -1
            self.done = not self._depth


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where a match at ``at`` ends; the patterns match the empty text."""
    match = pattern.match(text, at)
    return at if match is None else match.end()


def json_kind(text: str) -> str | None:
    """The type of a JSON text; None: it is none."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return JSON_KINDS[type(value)]


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
