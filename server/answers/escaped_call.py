"""A tool call in Gemma's form, read as its text comes.

``call:NAME{key:value,...}``: names are bare, texts stand between two equal marks and are not
escaped, and other values are as in JSON. What is passed on is JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from .buffered_call import BufferedReader
from .call_reader import MAX_FUNCTION_NAME
from .json_value import PYTHON_WORDS, json_kind
from .text_parts import split_at

CALL_HEAD = "call:"
"""What a call begins with."""
_BLANKS = " \t\r\n"
_SCALAR = re.compile(r"[^,}\]]*")


class EscapedReader(BufferedReader):
    """Reads one call.

    Args:
        quote: the mark before and after a text.

    Attributes:
        name: the function, once it is certain that this is a call.
        failed: it is no call, or no longer one.
        done: it has ended.
        unread: text that was taken and is no part of the call.
    """

    def __init__(self, quote: str) -> None:
        super().__init__()
        self._quote = quote
        self._step: Callable[[str], bool] = self._head
        self._open = ""  # brackets that are not closed
        self._after_text: Callable[[str], bool] = self._next

    def _take(self) -> bool:
        return self._step(self._buffer)

    def _close(self) -> None:
        """What came of a call that breaks off is passed on as it is."""

    # Steps. Each takes what is whole off the buffer, and tells whether there was something.

    def _head(self, text: str) -> bool:
        head, found, rest = text.partition("{")
        name = head.removeprefix(CALL_HEAD).strip()
        fits = head.startswith(CALL_HEAD) or (not found and CALL_HEAD.startswith(head))
        self.failed = not fits or len(name) > MAX_FUNCTION_NAME or "\n" in name
        self.failed |= bool(found) and not (name and name.isprintable())
        if not found or self.failed:
            return False
        self.name = name
        return self._begin("{", rest)

    def _begin(self, bracket: str, rest: str) -> bool:
        self._open += bracket
        return self._go(self._first, rest, bracket)

    def _first(self, text: str) -> bool:
        """Behind an opening bracket."""
        text = text.lstrip(_BLANKS)
        if text[:1] in ("}", "]"):
            return self._go(self._next, text)
        return text != "" and self._go(self._key if self._open[-1] == "{" else self._value, text)

    def _key(self, text: str) -> bool:
        text = text.lstrip(_BLANKS)
        if text.startswith(self._quote):
            self._after_text = self._colon
            return self._go(self._text, text[len(self._quote) :], '"')
        key, found, rest = text.partition(":")
        if self._quote.startswith(text):
            return False
        self.failed = any(sign in key for sign in "{}[],") or len(key) > 2 * MAX_FUNCTION_NAME
        if not found or self.failed:
            return False
        return self._go(self._value, rest, json.dumps(key.strip(), ensure_ascii=False) + ": ")

    def _colon(self, text: str) -> bool:
        text = text.lstrip(_BLANKS)
        self.failed = text != "" and text[0] != ":"
        return text[:1] == ":" and self._go(self._value, text[1:], ": ")

    def _value(self, text: str) -> bool:
        text = text.lstrip(_BLANKS)
        if text[:1] in ("{", "["):
            return self._begin(text[0], text[1:])
        if text.startswith(self._quote):
            self._after_text = self._next
            return self._go(self._text, text[len(self._quote) :], '"')
        match = _SCALAR.match(text)
        assert match is not None  # the pattern matches the empty text
        if match.end() == len(text) or self._quote.startswith(text):
            return False
        return self._go(self._next, text[match.end() :], _scalar(match[0].strip()))

    def _text(self, text: str) -> bool:
        """In a text, which is passed on as it comes."""
        before, found, rest = split_at(text, [self._quote], last=False)
        self._out.append(json.dumps(before, ensure_ascii=False)[1:-1])
        self._buffer = rest
        return found != "" and self._go(self._after_text, rest, '"')

    def _next(self, text: str) -> bool:
        """Behind a value."""
        text = text.lstrip(_BLANKS)
        if text == "":
            return False
        if text[0] == ",":
            follow = self._key if self._open[-1] == "{" else self._value
            return self._go(follow, text[1:], ", ")
        self.failed = text[0] != ("}" if self._open[-1] == "{" else "]")
        if self.failed:
            return False
        self._open = self._open[:-1]
        self.done = not self._open
        return self._go(self._next, text[1:], text[0])

    def _go(self, step: Callable[[str], bool], rest: str, out: str = "") -> bool:
        self._step, self._buffer = step, rest
        self._out.append(out)
        return True


def _scalar(raw: str) -> str:
    """A bare value as JSON; what is none is a text."""
    text = PYTHON_WORDS.get(raw, raw)
    return text if json_kind(text) is not None else json.dumps(raw, ensure_ascii=False)
