"""What parsers of answers share: a buffer, a state that takes text off it, and pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from .pieces import AnswerPiece, CallBegin, ContentPiece, ReasoningPiece
from .text_parts import TrimmedText


class PieceParser(ABC):
    """Reads one answer, piece by piece.

    A state takes what it can off the buffer, and tells whether another one goes on.

    Args:
        new_id: makes the id of a call.

    Attributes:
        called: calls that have begun.
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._buffer = ""
        self._state: Callable[[], bool] = self._start
        self._last = False  # no more text comes
        self._reasoned = False
        self._reasoning_text = TrimmedText()
        self._content_text = TrimmedText()
        self._out: list[AnswerPiece] = []
        self.called = 0

    def feed(self, text: str) -> list[AnswerPiece]:
        """Take more text; returns what is certain now."""
        self._buffer += text
        while self._buffer and self._state():
            pass
        return self._taken()

    def finish(self) -> list[AnswerPiece]:
        """The text has ended: returns what was held back."""
        self._last = True
        self._end()
        if not (self.called or self._reasoned):
            self._put(ContentPiece, self._content_text.rest())
        return self._taken()

    @abstractmethod
    def _start(self) -> bool:
        """The first state."""

    @abstractmethod
    def _end(self) -> None:
        """Take what is left in the buffer, after which nothing comes."""

    def _go(self, state: Callable[[], bool]) -> bool:
        self._state = state
        return True

    def _say(self, text: str) -> None:
        """Text of the answer itself; blanks before it are dropped beside reasoning and calls."""
        lead = not (self.called or self._reasoned)
        self._put(ContentPiece, self._content_text.take(text, keep_lead=lead))

    def _think(self, text: str) -> None:
        self._put(ReasoningPiece, self._reasoning_text.take(text, keep_lead=False))

    def _call(self, name: str) -> None:
        self._out.append(CallBegin(self.called, self._new_id(), name))
        self.called += 1

    def _put(self, kind: type[ContentPiece] | type[ReasoningPiece], text: str) -> None:
        if text:
            self._out.append(kind(text))

    def _taken(self) -> list[AnswerPiece]:
        out, self._out = self._out, []
        return out
