"""Which special tokens of a prompt stem from what users write, and how to keep them text.

A special token such as ``<|im_end|>`` gives a prompt its structure. When a user types the same
characters they must be plain text, and everything else must be tokenized as if nothing had been
done. So nothing is done to the prompt: it is tokenized as it stands, unless a special token is
found in it that has a character of a user. :class:`UserText` knows those characters, and
:func:`own_spans` finds the special tokens that have none.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from halfbyte.errors import TokenizerError

# Gemma has 6 400 special tokens; making patterns of 16 000 takes most of a second.
_MAX_TEXTS = 1 << 14
MAX_SQUARES = 1 << 25
# Each round takes out all special tokens found that have a user's character. What is found next
# overlapped one of them and starts behind it, so rounds are few in any real vocabulary.
MAX_ROUNDS = 64
# Signs of the Tai Xuan Jing: neither letter, digit nor space, and hardly ever in a text.
WEDGES = [chr(code) for code in range(0x1D306, 0x1D357)]
# Regular expressions hold the interpreter lock: other threads get their turn between windows.
_WINDOW = 1 << 16


@dataclass(frozen=True, slots=True)
class Span:
    """A special token in a text.

    Attributes:
        token_id: its id.
        start: first character of its content; whitespace that it swallows does not count.
        stop: one behind its last character.
    """

    token_id: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class UserText:
    """The characters of a text that stem from a user.

    Attributes:
        positions: their indexes, ascending, as far as they matter.
        everything: all characters do, whatever ``positions`` says.
    """

    positions: Sequence[int] = field(default=())
    everything: bool = False

    def __bool__(self) -> bool:
        return self.everything or bool(self.positions)

    def within(self, start: int, stop: int) -> Sequence[int]:
        """The user's characters from ``start`` to ``stop - 1``."""
        if self.everything:
            return range(start, stop)
        first = bisect_left(self.positions, start)
        return self.positions[first : bisect_left(self.positions, stop, first)]

    def shifted(self, start: int) -> UserText:
        """The same of the text from ``start`` on."""
        after = self.positions[bisect_left(self.positions, start) :]
        return UserText([at - start for at in after], self.everything)


EVERYTHING = UserText(everything=True)


def own_spans(
    text: str, users: UserText, blank: str, find: Callable[[str], list[Span]]
) -> tuple[list[Span], bool]:
    """The special tokens of ``text`` that have no character of a user, in order.

    Args:
        text: a prompt.
        users: which of its characters are users'.
        blank: a character that is part of no special token.
        find: the special tokens of a text, as the tokenizer finds them.

    Returns:
        The tokens, and whether there are others, which must become plain text.

    Raises:
        TokenizerError: the vocabulary is crafted so that the search does not end.
    """
    spans = find(text)
    if not users:
        return spans, False
    letters: list[str] = []
    for _ in range(MAX_ROUNDS):
        foreign = [at for span in spans for at in users.within(span.start, span.stop)]
        if not foreign:
            return spans, bool(letters)
        # Without these a token that overlapped a user's one is found.
        letters = letters or list(text)
        for at in foreign:
            letters[at] = blank
        spans = find("".join(letters))
    raise TokenizerError("the special tokens of the vocabulary overlap in too many ways")


def with_wedges(text: str, spans: Iterable[Span], wedge: str) -> str:
    """``text`` with ``wedge`` behind the first character of each span."""
    parts: list[str] = []
    done = 0
    for span in spans:
        parts += (text[done : span.start + 1], wedge)
        done = span.start + 1
    return "".join((*parts, text[done:]))


def windows(pattern: re.Pattern[str], text: str, reach: int) -> Iterator[re.Match[str]]:
    """``pattern.finditer(text)`` for matches of up to ``reach`` characters, letting others work.

    A long text without a match is one call, in which no other Python thread runs.
    """
    start = 0
    while start < len(text):
        border = start + _WINDOW
        for match in pattern.finditer(text, start, border + reach):
            if match.start() >= border:
                break
            yield match
            start = match.end()
        start = max(start, border)


def longest_first_pattern(texts: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that finds the leftmost occurrence of any text, the longest one at a place.

    Returns None when there is no text to find. Raises TokenizerError when they are too many or
    too long.
    """
    ordered = sorted(bounded(texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def bounded(texts: Iterable[str]) -> set[str]:
    """The texts without empty ones, if a pattern of them is made in reasonable time and memory.

    All beginnings of every text are kept, which is the square of its length.

    Raises:
        TokenizerError: they are too many or too long.
    """
    found = {text for text in texts if text}
    squares = sum(len(text) ** 2 for text in found)
    if len(found) > _MAX_TEXTS or squares > MAX_SQUARES:
        raise TokenizerError(
            f"the tokenizer has {len(found)} special or added tokens, the longest of "
            f"{max(map(len, found))} characters; expected at most {_MAX_TEXTS} with squares of "
            f"lengths of up to {MAX_SQUARES} in all",
            hint="no real vocabulary has so many or so long ones: the file is crafted",
        )
    return found
