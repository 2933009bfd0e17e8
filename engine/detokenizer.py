"""Token ids to text, a few at a time, exactly as if all had been decoded at once.

Three things keep text back for a while: a character whose bytes are not all there, text that may
be the beginning of a stop string, and a stop string that is complete while an earlier-starting
one is still possible. Work per token is proportional to its text, whatever came before.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Protocol


class TokenBytes(Protocol):
    """The part of a tokenizer that is needed here.

    Attributes:
        special_ids: ids that have no text.
    """

    special_ids: frozenset[int]

    def token_bytes(self, token_id: int) -> bytes:
        """Exact bytes of one token."""
        ...


class Detokenizer:
    """Text of one completion.

    The text is a continuation of a prompt, so a sentencepiece space in front is part of it, as
    in ``tokenizer.decode(ids, continuation=True)``. Special tokens have no text.

    Args:
        tokenizer: gives the bytes of each token.
        stop: strings that end the text. The one that starts first wins, whatever the order of
            ``stop`` and wherever token boundaries fall; it is not part of the text.

    Attributes:
        stopped: the stop string that ended the text, or None.
    """

    def __init__(self, tokenizer: TokenBytes, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._special = tokenizer.special_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._matcher = _StopMatcher(tuple(stop)) if stop else None
        self._parts: list[str] = []
        self.stopped: str | None = None

    def feed(self, token_ids: Iterable[int], *, check_stops: bool = True) -> str:
        """Take new ids and return the text that is now certain; "" once stopped.

        ``check_stops=False`` is for tokens before ``min_tokens``: no stop string may use their
        text, so nothing of it is held back.
        """
        if self.stopped is not None:
            return ""
        bytes_of, special = self._tokenizer.token_bytes, self._special
        data = b"".join([bytes_of(i) for i in token_ids if i not in special])
        return self._take(self._decoder.decode(data), check_stops)

    def finish(self) -> str:
        """Return what was held back; an incomplete character becomes U+FFFD."""
        if self.stopped is not None:
            return ""
        out = self._take(self._decoder.decode(b"", True), True)
        if self._matcher is not None and self.stopped is None:
            rest, self.stopped = self._matcher.flush()
            self._parts.append(rest)
            out += rest
        return out

    @property
    def text(self) -> str:
        """All text returned so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def _take(self, text: str, check_stops: bool) -> str:
        if self._matcher is not None:
            if check_stops:
                text, self.stopped = self._matcher.feed(text)
            else:
                text = self._matcher.skip(text)
        if text:
            self._parts.append(text)
        return text


class _StopMatcher:
    """Finds the first of several strings in a stream of characters.

    Knuth, Morris and Pratt's automaton for each string: ``_states[i]`` is the length of the
    longest beginning of string i that the text so far ends with, so no match of it can start
    more than that far back. Positions count characters from the start of the text.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(dict.fromkeys(stops))
        self._fallbacks = [_fallbacks(s) for s in self._stops]
        self._states = [0] * len(self._stops)
        self._firsts = frozenset(s[0] for s in self._stops)
        self._held = ""
        self._end = 0
        self._found: tuple[int, str] | None = None  # start and string of the best match so far

    def feed(self, text: str) -> tuple[str, str | None]:
        """Take characters; return those that are safe, and the string that ended the text."""
        if not self._held and self._firsts.isdisjoint(text):
            self._end += len(text)
            return text, None
        base = self._end - len(self._held)
        self._held += text
        for char in text:
            self._end += 1
            self._advance(char)
            if self._found is not None and self._found[0] <= self._earliest():
                return self._held[: self._found[0] - base], self._found[1]
        safe = self._earliest()
        if self._found is not None:
            safe = min(safe, self._found[0])
        out, self._held = self._held[: safe - base], self._held[safe - base :]
        return out, None

    def skip(self, text: str) -> str:
        """Take characters that no match may use; return them with what was held."""
        out, self._held = self._held + text, ""
        self._end += len(text)
        self._states = [0] * len(self._stops)
        self._found = None
        return out

    def flush(self) -> tuple[str, str | None]:
        """The text has ended: return what was held, and the string that ended it if any."""
        out, self._held = self._held, ""
        if self._found is None:
            return out, None
        start, stop = self._found
        return out[: start - (self._end - len(out))], stop

    def _advance(self, char: str) -> None:
        """Move every automaton by one character and note a complete string that starts earlier."""
        for i, stop in enumerate(self._stops):
            state, fallback = self._states[i], self._fallbacks[i]
            while state and stop[state] != char:
                state = fallback[state]
            if stop[state] == char:
                state += 1
            if state == len(stop):
                start = self._end - state
                if self._found is None or start < self._found[0]:
                    self._found = (start, stop)
                state = fallback[state]
            self._states[i] = state

    def _earliest(self) -> int:
        """Where the earliest match that is still open could start."""
        return self._end - max(self._states)


def _fallbacks(text: str) -> list[int]:
    """For each length n, the longest proper beginning of ``text[:n]`` that also ends it."""
    table = [0] * (len(text) + 1)
    state = 0
    for n in range(1, len(text)):
        while state and text[n] != text[state]:
            state = table[state]
        if text[n] == text[state]:
            state += 1
        table[n + 1] = state
    return table
