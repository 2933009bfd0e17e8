"""Finds the string that ends a text, in a stream of characters and hidden special tokens.

A special token has no place in the text, yet a stop string may name it: ``"<|im_end|>"``, or
``"\\n<|im_end|>"``, which begins in the text. So a stream of symbols is searched: a character is a
``str``, a special token is one symbol, the ``bytes`` it is written as. A stop string that holds the
text of special tokens is searched for in two forms: spelt out in characters, wherever the text
shows them side by side, and with the tokens. A character within a hidden token never matches.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Protocol

from .special_text import longest_first_pattern

Symbol = str | bytes
"""One character, or the text of a whole special token."""


class SpecialBytes(Protocol):
    """The part of a tokenizer that is needed here.

    Attributes:
        special_ids: ids that have no text.
    """

    special_ids: frozenset[int]

    def token_bytes(self, token_id: int) -> bytes:
        """Exact bytes of one token."""
        ...


class StopForms:
    """How stop strings can be written with one tokenizer's special tokens."""

    def __init__(self, tokenizer: SpecialBytes) -> None:
        self._tokenizer = tokenizer

    def matcher(self, stops: Iterable[str]) -> StopMatcher:
        """A matcher for these stop strings."""
        return StopMatcher([form for stop in dict.fromkeys(stops) for form in self._forms(stop)])

    def _forms(self, stop: str) -> list[tuple[str, Sequence[Symbol]]]:
        plain: list[tuple[str, Sequence[Symbol]]] = [(stop, stop)]
        if self._specials is None:
            return plain
        symbols: list[Symbol] = []
        end = 0
        for found in self._specials.finditer(stop):
            symbols += stop[end : found.start()]
            symbols.append(found[0].encode())
            end = found.end()
        if not end:
            return plain
        return [*plain, (stop, [*symbols, *stop[end:]])]

    @cached_property
    def _specials(self) -> re.Pattern[str] | None:
        """Finds special tokens in a stop string; made for the first one that comes."""
        texts = [self._tokenizer.token_bytes(i) for i in self._tokenizer.special_ids]
        return longest_first_pattern(text.decode("utf-8", "replace") for text in texts)


class StopMatcher:
    """Finds the first of several strings in a stream of symbols.

    Knuth, Morris and Pratt's automaton for each form: ``_states[i]`` is the length of the
    longest beginning of form i that the stream so far ends with, so no match of it can start
    more than that far back. Positions count symbols from the start of the stream.

    Args:
        forms: (stop string, its symbols), at least one; symbols are not empty.
    """

    def __init__(self, forms: Sequence[tuple[str, Sequence[Symbol]]]) -> None:
        self._stops = [stop for stop, _ in forms]
        self._forms = [form for _, form in forms]
        # Characters alone: hidden tokens between them are not seen.
        self._plain = [isinstance(form, str) for form in self._forms]
        self._fallbacks = [_fallbacks(form) for form in self._forms]
        self._states = [0] * len(forms)
        self._firsts = frozenset(form[0] for form in self._forms)
        self._held: list[Symbol] = []
        self._places: list[int] = []  # of the characters among them
        self._end = 0
        self._found: tuple[int, str] | None = None  # start and string of the best match so far

    def feed(self, symbols: Sequence[Symbol]) -> tuple[str, str | None]:
        """Take symbols; return the text that is safe, and the string that ended it."""
        if not self._held and self._firsts.isdisjoint(symbols):
            self._end += len(symbols)
            return _visible(symbols), None
        base = self._end - len(self._held)
        self._held += symbols
        for symbol in symbols:
            if isinstance(symbol, str):
                self._places.append(self._end)
            self._end += 1
            self._advance(symbol)
            if self._found is not None and self._found[0] <= self._earliest():
                return _visible(self._held[: self._found[0] - base]), self._found[1]
        safe = self._earliest()
        if self._found is not None:
            safe = min(safe, self._found[0])
        out, self._held = _visible(self._held[: safe - base]), self._held[safe - base :]
        del self._places[: len(out)]
        return out, None

    def skip(self, symbols: Sequence[Symbol]) -> str:
        """Take symbols that no match may use; return their text with what was held."""
        out, self._held = [*self._held, *symbols], []
        self._places.clear()
        self._end += len(symbols)
        self._states = [0] * len(self._forms)
        self._found = None
        return _visible(out)

    def flush(self) -> tuple[str, str | None]:
        """The text has ended: return what was held, and the string that ended it if any."""
        out, self._held = self._held, []
        if self._found is None:
            return _visible(out), None
        start, stop = self._found
        return _visible(out[: start - (self._end - len(out))]), stop

    def _advance(self, symbol: Symbol) -> None:
        """Move every automaton by one symbol and note a complete string that starts earlier."""
        for i, form in enumerate(self._forms):
            if self._plain[i] and not isinstance(symbol, str):
                continue
            state, fallback = self._states[i], self._fallbacks[i]
            while state and form[state] != symbol:
                state = fallback[state]
            if form[state] == symbol:
                state += 1
            if state == len(form):
                start = self._start(i, state)
                if self._found is None or start < self._found[0]:
                    self._found = (start, self._stops[i])
                state = fallback[state]
            self._states[i] = state

    def _earliest(self) -> int:
        """Where the earliest match that is still open could start."""
        return min(self._start(i, state) for i, state in enumerate(self._states))

    def _start(self, i: int, state: int) -> int:
        """Where the last ``state`` symbols that form i sees begin."""
        return self._places[-state] if state and self._plain[i] else self._end - state


def _visible(symbols: Sequence[Symbol]) -> str:
    """The characters among the symbols."""
    return symbols if isinstance(symbols, str) else "".join(s for s in symbols if type(s) is str)


def _fallbacks(form: Sequence[Symbol]) -> list[int]:
    """For each length n, the longest proper beginning of ``form[:n]`` that also ends it."""
    table = [0] * (len(form) + 1)
    state = 0
    for n in range(1, len(form)):
        while state and form[n] != form[state]:
            state = table[state]
        if form[n] == form[state]:
            state += 1
        table[n + 1] = state
    return table
