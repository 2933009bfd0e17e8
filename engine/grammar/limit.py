"""Reasoning that is cut off: after so many tokens the marker of its end is all that may follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .base import Grammar, GrammarState


@dataclass(frozen=True, slots=True)
class ReasoningLimit:
    """How long a model may think before it answers.

    An answer that does not begin with the marker of reasoning is not touched. Where a grammar
    holds besides, a character of several tokens is ended before the marker comes.

    Attributes:
        most: tokens between the markers, at least 0.
        begin: the marker before reasoning, UTF-8; blanks may stand before it.
        end: the marker after it.
        closing: tokens that write the marker after it, at least one.
        begun: the prompt ends within the reasoning.
    """

    most: int
    begin: bytes
    end: bytes
    closing: tuple[int, ...]
    begun: bool = False


class LimitedGrammar:
    """A grammar whose reasoning has a limit. Safe to share between requests and threads.

    Args:
        limit: the limit.
        bytes_of: the text of each token.
        vocab_size: V, rows of the embedding.
        inner: what the answer must match besides, reasoning included; None: nothing.
    """

    def __init__(
        self,
        limit: ReasoningLimit,
        bytes_of: Callable[[int], bytes],
        vocab_size: int,
        inner: Grammar | None,
    ) -> None:
        self.limit = limit
        self.bytes_of = bytes_of
        self.words = -(-vocab_size // 32)
        self._inner = inner

    def start(self) -> LimitedState:
        """The state of an empty text."""
        return LimitedState(self, None if self._inner is None else self._inner.start())


class LimitedState:
    """Where one text stands. Not thread-safe.

    Args:
        grammar: what it must be in.
        inner: where it stands in the grammar within; None: there is none.
    """

    def __init__(self, grammar: LimitedGrammar, inner: GrammarState | None) -> None:
        self._grammar = grammar
        self._inner = inner
        self._tail = b""  # what a marker may begin in
        self._thinks = grammar.limit.begun
        self._leads = not self._thinks  # the marker before reasoning may still come
        self._count = 0
        self._closing: tuple[int, ...] = ()
        self._cut()

    @property
    def ended(self) -> bool:
        """Whether nothing may follow but an end token."""
        return self._inner is not None and self._inner.ended

    def mask(self) -> NDArray[np.int32]:
        """The tokens that may follow; see ``GrammarState``. Raises GrammarError."""
        if self._closing:
            mask = np.zeros(self._grammar.words, np.uint32)
            token = self._closing[0]
            mask[token // 32] = np.uint32(1 << token % 32)
            return mask.view(np.int32)
        if self._inner is None:
            return np.full(self._grammar.words, -1, np.int32)
        return self._inner.mask()

    def accept(self, token: int) -> bool:
        """Append a token; False when it may not follow. Raises GrammarError."""
        if self._closing and token != self._closing[0]:
            return False
        if self._inner is not None and not self._inner.accept(token):
            return False
        if self._closing:
            self._closing = self._closing[1:]
            self._thinks = bool(self._closing)
        elif self._leads or self._thinks:
            self._look(self._grammar.bytes_of(token))
        return True

    def forced(self) -> list[int]:
        """Tokens whose text must follow; see ``GrammarState``. Raises GrammarError."""
        if self._closing:
            return list(self._closing)
        return [] if self._inner is None else self._inner.forced()

    def fork(self) -> LimitedState:
        """A state of another text that begins in the same way."""
        other = LimitedState(self._grammar, None if self._inner is None else self._inner.fork())
        other._tail, other._thinks, other._leads = self._tail, self._thinks, self._leads
        other._count, other._closing = self._count, self._closing
        return other

    def _look(self, piece: bytes) -> None:
        """See whether reasoning begins or ends with this piece of text, or is too long."""
        limit = self._grammar.limit
        self._tail += piece
        if self._leads:
            lead = self._tail.lstrip()
            if len(lead) < len(limit.begin) and limit.begin.startswith(lead):
                return
            self._leads, self._thinks = False, lead.startswith(limit.begin)
            self._tail = lead[len(limit.begin) :]
        else:
            self._count += 1
        if limit.end in self._tail:
            self._thinks = False
        self._tail = self._tail[1 - len(limit.end) :] if len(limit.end) > 1 else b""
        self._cut()

    def _cut(self) -> None:
        """Let nothing but the marker follow, if it is time."""
        limit = self._grammar.limit
        if self._thinks and self._count >= limit.most and self._open_to(limit.closing[0]):
            self._closing = limit.closing

    def _open_to(self, token: int) -> bool:
        """Whether the grammar within lets a token follow; it does not within a character."""
        if self._inner is None:
            return True
        word = int(self._inner.mask()[token // 32])
        return bool(word >> token % 32 & 1)
