"""Keeps text that users write from turning into special tokens.

A special token such as ``<|im_end|>`` gives a prompt its structure. When a user types the same
characters they must be plain text. :class:`SpecialGuard` breaks every occurrence in untrusted
text with a private-use mark; the marked text then goes through the chat template, special tokens
are matched where they are still whole (so only where the template wrote them), and the marks are
dropped from what is left.

The marks are an escape code, so text that already holds the mark character survives unchanged:
after :meth:`SpecialGuard.protect` every mark is followed by a digit that says what it means.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from halfbyte.errors import TokenizerError

# The last private-use code point: never assigned, no letter, digit or space in any regex.
MARK = "\U0010fffd"
# Gemma has 6 400 special tokens; making patterns of 16 000 takes most of a second.
MAX_TEXTS = 1 << 14
MAX_SQUARES = 1 << 25
BREAK = MARK + "1"
_LITERAL = MARK + "0"


class SpecialGuard:
    """Protects untrusted text against the special tokens of one vocabulary.

    Args:
        specials: texts of the special tokens; empty ones are ignored.

    Raises:
        TokenizerError: they are too many or too long.
    """

    def __init__(self, specials: Iterable[str]) -> None:
        texts = sorted(_bounded(specials), key=len, reverse=True)
        long = [s for s in texts if len(s) > 1]
        # One character cannot be broken in two, so it is replaced by a code of its own.
        singles = [s for s in texts if len(s) == 1]
        self._codes = {c: MARK + chr(ord("2") + i) for i, c in enumerate(singles)}
        self.meanings: dict[str, str] = {BREAK: "", _LITERAL: MARK}
        self.meanings |= {code: c for c, code in self._codes.items()}
        self._start = _start_pattern(long)
        self._heads = {s[i:] for s in long for i in range(1, len(s))}
        self._tails = {s[:i] for s in long for i in range(1, len(s))}
        self._reach = max((len(s) for s in long), default=1) - 1
        self._mark = re.compile(MARK + ".", re.DOTALL)

    def protect(self, text: str) -> str:
        """Mark ``text`` so that no special token can match in it or across its ends.

        The ends matter because a template may put two texts side by side, each of them holding
        half of a special token.
        """
        if MARK in text:
            text = text.replace(MARK, _LITERAL)
        for char, code in self._codes.items():
            text = text.replace(char, code)
        if self._start is None or not text:
            return text
        reach = range(1, min(self._reach, len(text)) + 1)
        head = BREAK if any(text[:i] in self._heads for i in reach) else ""
        tail = BREAK if any(text[-i:] in self._tails for i in reach) else ""
        return head + self._start.sub(_break_after, text) + tail

    def reveal(self, text: str) -> str:
        """Undo :meth:`protect`: drop the breaks and restore what the codes stand for."""
        if MARK not in text:
            return text
        return self._mark.sub(lambda m: self.meanings.get(m[0], m[0]), text)


def longest_first_pattern(texts: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that finds the leftmost occurrence of any text, the longest one at a place.

    Returns None when there is no text to find. Raises TokenizerError when they are too many or
    too long.
    """
    ordered = sorted(_bounded(texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def _bounded(texts: Iterable[str]) -> set[str]:
    """The texts without empty ones, if a pattern of them is made in reasonable time and memory.

    All beginnings of every text are kept, which is the square of its length.
    """
    found = {text for text in texts if text}
    squares = sum(len(text) ** 2 for text in found)
    if len(found) > MAX_TEXTS or squares > MAX_SQUARES:
        raise TokenizerError(
            f"the tokenizer has {len(found)} special or added tokens, the longest of "
            f"{max(map(len, found))} characters; expected at most {MAX_TEXTS} with squares of "
            f"lengths of up to {MAX_SQUARES} in all",
            hint="no real vocabulary has so many or so long ones: the file is crafted",
        )
    return found


def _start_pattern(texts: list[str]) -> re.Pattern[str] | None:
    """A pattern whose matches are the first characters of all occurrences, overlapping or not."""
    rests: dict[str, list[str]] = {}
    for text in texts:
        rests.setdefault(text[0], []).append(re.escape(text[1:]))
    parts = [f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items()]
    return re.compile("|".join(parts)) if parts else None


def _break_after(match: re.Match[str]) -> str:
    return match[0] + BREAK
