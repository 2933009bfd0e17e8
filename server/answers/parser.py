"""The text of one answer, piece by piece, as typed pieces.

What may still become a marker is held back, and so are blanks that may stand beside one. However
the text is cut, the pieces joined are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from .call_reader import CallReader, HeadedReader, ObjectReader
from .escaped_call import EscapedReader
from .formats import ARGS, CALL_ID, CallFormat, ReasoningFormat
from .piece_parser import PieceParser
from .pieces import CallArguments
from .text_parts import split_at
from .xml_call import XmlReader

_BLANKS = " \t\r\n"
# What models write between calls, and around lists of them.
_BETWEEN_CALLS = _BLANKS + ",;[]"
MAX_UNCERTAIN = 1 << 13
"""So many characters are held back until it is clear whether they are a call."""


@dataclass(frozen=True, slots=True)
class AnswerSyntax:
    """What is looked for in an answer.

    Attributes:
        calls: the format of tool calls; None: none are looked for.
        names: the functions that may be called.
        reasoning: how reasoning is marked; None: none is looked for.
        begun: the prompt ends within the reasoning.
        schemas: function -> schema of its arguments, where it has one.
        opened: the answer is messages, of which the prompt has so much of the first; None: it
            is one text. See :mod:`harmony`.
    """

    calls: CallFormat | None = None
    names: Collection[str] = ()
    reasoning: ReasoningFormat | None = None
    begun: bool = False
    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    opened: str | None = None


class AnswerParser(PieceParser):
    """Reads one answer.

    Args:
        syntax: what is looked for.
        new_id: makes the id of a call.

    Attributes:
        called: calls that have begun.
    """

    def __init__(self, syntax: AnswerSyntax, new_id: Callable[[], str]) -> None:
        super().__init__(new_id)
        self._syntax = syntax
        if syntax.reasoning is not None and syntax.begun:
            self._state = self._thought
            self._reasoned = True
        self._reader: CallReader | None = None
        self._began = False  # the reader's call
        self._held = ""  # text since the last place where it was certain what it is
        self._plain = 0  # so much of it is text if the rest is no call

    def _end(self) -> None:
        while self._state():
            pass
        self._say(self._buffer)
        self._buffer = ""

    # States.

    def _start(self) -> bool:
        """Nothing but blanks so far: reasoning may begin."""
        form = self._syntax.reasoning
        if form is None:
            return self._go(self._leading)
        text = self._buffer.lstrip(_BLANKS)
        if text.startswith(form.opening):
            self._buffer = text[len(form.opening) :]
            self._reasoned = True
            return self._go(self._thought)
        if form.opening.startswith(text) and not self._last:
            return False
        return self._go(self._leading)

    def _thought(self) -> bool:
        """Within the reasoning."""
        form = self._syntax.reasoning
        assert form is not None
        before, found, self._buffer = split_at(self._buffer, [form.end], last=self._last)
        self._think(before)
        return found != "" and self._go(self._leading)

    def _leading(self) -> bool:
        """At the beginning of the content, where some models write calls without a marker."""
        form = self._syntax.calls
        if form is None or not form.leading:
            return self._go(self._content)
        text = self._buffer.lstrip(_BLANKS)
        for sign in (form.begin, "{"):
            if text.startswith(sign):
                blanks = len(self._buffer) - len(text)
                self._plain = blanks + len(sign)
                taken = self._plain if sign == form.begin else blanks
                self._held, self._buffer = self._buffer[:taken], self._buffer[taken:]
                return self._go(self._calls)
        if form.begin.startswith(text) and not self._last:
            return False
        return self._go(self._content)

    def _content(self) -> bool:
        """In the answer's own text."""
        form = self._syntax.calls
        if form is None or form.leading:
            self._say(self._buffer)
            self._buffer = ""
            return False
        before, found, self._buffer = split_at(self._buffer, [form.begin], last=self._last)
        self._say(before)
        if found:
            self._held, self._plain = form.begin, len(form.begin)
        return found != "" and self._go(self._calls)

    def _calls(self) -> bool:
        """Behind a marker: calls, and what stands between them."""
        form = self._syntax.calls
        assert form is not None
        if self._reader is not None:
            return self._read(self._reader)
        text = self._buffer.lstrip(_BLANKS if form.headed else _BETWEEN_CALLS)
        ends = (
            self._buffer.find("]", 0, len(self._buffer) - len(text)) if form.closing == "]" else -1
        )
        if ends >= 0 and self._certain():
            self._buffer = self._buffer[ends + 1 :]
            return self._go(self._content)
        if not self._certain():
            taken = min(len(self._buffer) - len(text), MAX_UNCERTAIN - len(self._held))
            self._held += self._buffer[:taken]
            text = self._buffer[taken:]
        self._buffer = text
        if len(self._held) >= MAX_UNCERTAIN:
            return self._give_up()
        if form.end and text.startswith(form.end) and self._certain():
            self._buffer = text[len(form.end) :]
            return self._go(self._content)
        if self._last:
            if self._certain() and form.end.startswith(text):
                self._buffer = ""  # the beginning of an end marker is no text
            return self._give_up()
        if not text or form.end.startswith(text):
            return False
        if form.tags is not None:
            begin = form.tags.begin
            if not text.startswith(begin):
                return False if begin.startswith(text) else self._give_up()
            self._reader = XmlReader(form.tags, self._syntax.schemas, self._syntax.names)
            self._plain = self._plain or 1
        elif form.quote:
            self._reader = EscapedReader(form.quote)
            self._plain = self._plain or 1
        elif form.headed and not self._certain():
            self._reader = HeadedReader(ARGS, CALL_ID)
        elif text[0] == "{" and not form.headed:
            self._reader = ObjectReader(self._syntax.names if form.leading else None)
            self._plain = self._plain or 1
        else:
            return self._give_up()
        self._began = False
        return True

    def _read(self, reader: CallReader) -> bool:
        """Give a call's text to its reader."""
        room = len(self._buffer) if self._began else max(MAX_UNCERTAIN - len(self._held), 0)
        text = self._buffer[:room]
        used = reader.feed(text, 0)
        if reader.name is not None and not self._began:
            self._began = True
            self._held, self._plain = "", 0
            self._call(reader.name)
        if arguments := reader.taken():
            self._out.append(CallArguments(self.called - 1, arguments))
        if not self._began:
            self._held += self._buffer[:used]
        self._buffer = reader.unread + self._buffer[used:]
        if reader.done:
            self._reader = None
            form = self._syntax.calls
            ends = form is not None and form.tags is not None and not form.end
            return self._go(self._content) if ends else True
        too_long = not self._began and len(self._held) >= MAX_UNCERTAIN
        if reader.failed or too_long or (self._last and not self._began):
            return self._give_up()
        return bool(self._buffer)

    def _certain(self) -> bool:
        """Whether calls came since the marker, and nothing unknown since the last of them."""
        return self._plain == 0

    def _give_up(self) -> bool:
        """What was held back is no call: it is text, but for a marker that may be in it."""
        # What was long uncertain is not looked at again: that takes the square of the time.
        plain = len(self._held) if len(self._held) >= MAX_UNCERTAIN else self._plain
        text, self._buffer = self._held[:plain], self._held[plain:] + self._buffer
        self._reader, self._held, self._plain = None, "", 0
        self._state = self._content
        self._say(text)
        if self._last:
            self._say(self._buffer)
            self._buffer = ""
            return False
        return True
