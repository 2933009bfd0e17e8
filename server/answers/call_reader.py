"""One tool call, read as its text comes: its name, and its arguments bit by bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Protocol

from .json_value import ValueScanner

_BLANKS = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")
_KEYS = ("name", "type", "id", *_ARGUMENTS)
MAX_FUNCTION_NAME = 128
"""Characters of the longest function name."""


class CallReader(Protocol):
    """Reads one call."""

    @property
    def name(self) -> str | None:
        """The function, once it is certain that this is a call."""
        ...

    @property
    def failed(self) -> bool:
        """It is no call, or no longer one."""
        ...

    @property
    def done(self) -> bool:
        """It has ended."""
        ...

    @property
    def unread(self) -> str:
        """Text that was taken and is no part of the call."""
        ...

    def feed(self, text: str, at: int) -> int:
        """Take text from ``at`` on; returns where what was not taken begins."""
        ...

    def taken(self) -> str:
        """The text of the arguments that came since this was last called."""
        ...


class ObjectReader:
    """A call as a JSON object with ``name`` and ``arguments``, or ``parameters``, in any order.

    Args:
        names: functions that there are, where an object with another name, or with other keys,
            is no call; None accepts any.

    Attributes:
        name: the function, once it is certain that this is a call.
        failed: it is no call, or no longer one.
        done: it has ended.
        unread: nothing.
    """

    unread = ""

    def __init__(self, names: Collection[str] | None) -> None:
        self._names = names
        self._step: Callable[[str, int], int] = self._open
        self._scanner: ValueScanner | None = None
        self._key = ""
        self._raw: list[str] = []
        self._name: str | None = None
        self._arguments: str | None = None
        self._direct = False
        self._out: list[str] = []
        self.name: str | None = None
        self.failed = False
        self.done = False

    def feed(self, text: str, at: int) -> int:
        """Take text from ``at`` on; returns where what was not taken begins."""
        while at < len(text) and not (self.failed or self.done):
            at = self._step(text, at)
        return at

    def taken(self) -> str:
        """The text of the arguments that came since this was last called."""
        out, self._out = "".join(self._out), []
        return out

    def _open(self, text: str, at: int) -> int:
        self.failed = text[at] != "{"
        self._step = self._before_key
        return at + 1

    def _before_key(self, text: str, at: int) -> int:
        if text[at] == '"':
            return self._begin(text, at, self._in_key)
        if text[at] == "}":
            self._close()
        elif text[at] not in _BLANKS:
            self.failed = True
        return at + 1

    def _begin(self, text: str, at: int, step: Callable[[str, int], int]) -> int:
        """A string or another value begins at ``at``."""
        self._scanner = ValueScanner(text[at])
        self._raw = [text[at]]
        self._step = step
        return at + 1

    def _in_key(self, text: str, at: int) -> int:
        assert self._scanner is not None
        end = self._scanner.feed(text, at)
        self._raw.append(text[at:end])
        if self._scanner.done:
            self._key = _text("".join(self._raw)) or ""
            # An answer in JSON is shown as soon as it is clear that it is no call.
            self.failed = self._names is not None and self._key not in _KEYS
            self._step = self._before_colon
        return end

    def _before_colon(self, text: str, at: int) -> int:
        if text[at] == ":":
            self._step = self._before_value
        elif text[at] not in _BLANKS:
            self.failed = True
        return at + 1

    def _before_value(self, text: str, at: int) -> int:
        char = text[at]
        if char in _BLANKS:
            return at + 1
        if not (char in '"{[+-' or char.isalnum()):
            self.failed = True
            return at
        self._direct = (
            char in "{["
            and self._key in _ARGUMENTS
            and self._name is not None
            and self._arguments is None
            and self._certain()
        )
        if self._direct:
            self._arguments = ""
            self._out.append(char)
        return self._begin(text, at, self._in_value)

    def _in_value(self, text: str, at: int) -> int:
        assert self._scanner is not None
        end = self._scanner.feed(text, at)
        (self._out if self._direct else self._raw).append(text[at:end])
        if self._scanner.done:
            if not self._direct:
                self._keep("".join(self._raw))
            self._step = self._after_value
        return end

    def _keep(self, raw: str) -> None:
        """A value has ended that was not passed on."""
        if self._key == "name" and self._name is None:
            name = _text(raw)
            known = self._names is None or name in self._names
            self.failed = (
                not name or len(name) > MAX_FUNCTION_NAME or not name.isprintable() or not known
            )
            self._name = name
            if self._arguments is not None and self._certain():
                self._out.append(self._arguments)
        elif self._key in _ARGUMENTS and self._arguments is None:
            inner = _text(raw)  # some models write the arguments as a text that holds JSON
            self._arguments = raw if inner is None else inner
            if raw == "null":
                self._arguments = "{}"
            if self._name is not None and self._certain():
                self._out.append(self._arguments)

    def _after_value(self, text: str, at: int) -> int:
        if text[at] == ",":
            self._step = self._before_key
        elif text[at] == "}":
            self._close()
        elif text[at] not in _BLANKS:
            self.failed = True
            return at
        return at + 1

    def _close(self) -> None:
        if self._name is None:
            self.failed = True
        elif self._arguments is None and self._certain():
            self._out.append("{}")
        self.done = not self.failed

    def _certain(self) -> bool:
        """From here on it is a call, unless it failed before."""
        if not self.failed:
            self.name = self._name
        return not self.failed


class HeadedReader:
    """A call as a name, a marker, and a JSON value: ``name[ARGS]{...}``, Mistral's newer form.

    Args:
        before: the marker before the arguments.
        other: what may stand between name and marker, with a text that is not kept:
            ``name[CALL_ID]abc[ARGS]{...}``.

    Attributes:
        name: the function, once it is certain that this is a call.
        failed: it is no call, or no longer one.
        done: it has ended.
        unread: nothing.
    """

    unread = ""

    def __init__(self, before: str, other: str) -> None:
        self._before, self._other = before, other
        self._head = ""
        self._scanner: ValueScanner | None = None
        self._out: list[str] = []
        self.name: str | None = None
        self.failed = False
        self.done = False

    def feed(self, text: str, at: int) -> int:
        """Take text from ``at`` on; returns where what was not taken begins."""
        while at < len(text) and self.name is None and not self.failed:
            self._take(text[at])
            at += 1
        if self.name is None or self._scanner is None or at == len(text):
            return at
        end = self._scanner.feed(text, at)
        self._out.append(text[at:end])
        self.done = self._scanner.done
        return end

    def taken(self) -> str:
        """The text of the arguments that came since this was last called."""
        out, self._out = "".join(self._out), []
        return out

    def _take(self, char: str) -> None:
        """A character of the head; the arguments are an object, so ``{`` ends it."""
        if char != "{":
            self._head += char
            self.failed = len(self._head) > 2 * MAX_FUNCTION_NAME
            return
        head = self._head.strip()
        marked = head.endswith(self._before)
        name = head.removesuffix(self._before).partition(self._other)[0].strip()
        self.failed = not (marked and 0 < len(name) <= MAX_FUNCTION_NAME and name.isprintable())
        if not self.failed:
            self.name = name
            self._scanner = ValueScanner(char)
            self._out.append(char)


def _text(raw: str) -> str | None:
    """What a JSON string says, lone surrogates replaced; None when it is no string."""
    if not raw.startswith('"'):
        return None
    try:
        value = json.loads(raw, strict=False)
    except ValueError:
        return None
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
