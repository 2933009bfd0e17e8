"""Word wrap for text that arrives in pieces, and the writer of answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO

from .console import clean, is_terminal

_FENCE = "```"
_FENCE_WITHIN = 16


class WordWrap:
    """Breaks lines at blanks so that no word is cut by the edge of the terminal.

    A word is written when its end is known, so nothing on the screen ever moves. Lines inside a
    code fence and words longer than a line are left to the terminal; wide characters, which
    stand for words, may be parted anywhere.

    Args:
        write: takes text that is ready.
        width: gives the columns of the terminal, asked at the beginning of each line.
    """

    __slots__ = (
        "_blanks",
        "_code",
        "_column",
        "_limit",
        "_long",
        "_start",
        "_width",
        "_word",
        "_write",
    )

    def __init__(self, write: Callable[[str], None], width: Callable[[], int]) -> None:
        self._write, self._width = write, width
        self._code = False
        self._begin_line()

    def _begin_line(self) -> None:
        self._word = self._blanks = self._start = ""
        self._long = False  # a word longer than a line is being written
        self._column, self._limit = 0, max(self._width(), 1)

    def feed(self, text: str) -> None:
        """Take the next piece of text and write what can be written."""
        out: list[str] = []
        for char in text:
            if char == "\n":
                self._end_word(out)
                out.append(self._blanks + "\n")
                self._code ^= self._start.lstrip().startswith(_FENCE)
                self._begin_line()
                continue
            if len(self._start) < _FENCE_WITHIN:
                self._start += char
            if char in " \t":
                self._end_word(out)
                self._blanks += char
            elif _cells(char) > 1:
                self._end_word(out)
                self._word = char
                self._end_word(out)
            else:
                self._word += char
                if self._long or _cells(self._word) > self._limit:
                    self._put_word(out)
                    self._long = True
        if out:
            self._write("".join(out))

    def end(self) -> None:
        """Write what is left; the next text begins a line."""
        out: list[str] = []
        self._end_word(out)
        out.append(self._blanks)
        self._code = False
        self._begin_line()
        self._write("".join(out))

    def _end_word(self, out: list[str]) -> None:
        if self._word:
            self._put_word(out)
        self._long = False

    def _put_word(self, out: list[str]) -> None:
        """Write the word, on a new line when the rest of this one is too short for it."""
        size = _cells(self._blanks) + _cells(self._word)
        if self._column and self._column + size > self._limit and not (self._code or self._long):
            out.append("\n")
            self._blanks = ""
            self._column, self._limit = 0, max(self._width(), 1)
            size = _cells(self._word)
        out.append(self._blanks + self._word)
        self._column += size
        if self._column > self._limit:
            self._column = self._column % self._limit or self._limit
        self._blanks = self._word = ""


def _cells(text: str) -> int:
    """Columns that a text takes on a terminal."""
    if text.isascii():
        return len(text) + 7 * text.count("\t")
    from rich.cells import cell_len

    return cell_len(text)


class AnswerWriter:
    """Writes answers to a stream as they come.

    A terminal gets wrapped words and no control characters; anything else the text as it is.
    """

    __slots__ = ("_last", "_stream", "_wrap")

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._last = "\n"
        self._wrap = WordWrap(self._put, self._columns) if is_terminal(stream) else None

    def write(self, text: str) -> None:
        """Take a piece of an answer."""
        if not text:
            return
        self._last = text[-1]
        if self._wrap is None:
            self._put(text)
        else:
            self._wrap.feed(clean(text))

    def end(self) -> None:
        """End the answer, and its line."""
        if self._wrap is not None:
            self._wrap.end()
        if self._last != "\n":
            self._put("\n")
        self._last = "\n"

    def _put(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80
