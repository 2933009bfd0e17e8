"""What drawing the tokens of one text carries from one to the next, and what it needs to know.

A request has one, made when it is submitted. It follows the text by itself: whatever the
scheduler did in between, it takes in the tokens that it has not seen.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from halfbyte.errors import RequestError

from ..params import SamplingParams
from ..text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ..grammar.base import Grammar, GrammarState

# Sets of ``dry_sequence_breakers`` whose tokens are remembered.
_BREAKER_SETS = 8


@dataclass(slots=True)
class DrawState:
    """One text while its tokens are drawn.

    Attributes:
        forbidden: bool [V] of tokens that are never drawn, or None.
        bad_words: token ids of each word that must not be completed.
        breakers: tokens that no repetition goes over (``dry_sequence_breakers``).
        grammar: where the text stands in its grammar, or None.
        rated: the log-probability of each token is wanted, whoever asks.
        mu: surprise in bits above which mirostat draws nothing.
        surprise: in bits, of the token that mirostat drew last; it counts with the next draw.
        followed: tokens of the answer that were taken in.
    """

    forbidden: Tensor | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    breakers: frozenset[int] = frozenset()
    grammar: GrammarState | None = None
    rated: bool = False
    mu: float = 0.0
    surprise: float | None = None
    followed: int = 0

    def again(self, grammar: Grammar | None) -> DrawState:
        """The state of another text with the same parameters, where neither has begun."""
        return replace(self, grammar=None if grammar is None else grammar.start())

    def follow(self, tokens: Sequence[int], params: SamplingParams) -> None:
        """Take in the next tokens of the answer. Raises GrammarError."""
        for token in tokens:
            if self.grammar is not None and not self.grammar.ended:
                self.grammar.accept(token)
            if self.surprise is not None:
                self.mu -= params.mirostat_eta * (self.surprise - params.mirostat_tau)
                self.surprise = None
        self.followed += len(tokens)


class DrawStates:
    """Makes the :class:`DrawState` of each request of an engine.

    Args:
        tokenizer: spells bad words and breakers.
        valid: ids from 0 to ``valid - 1`` exist.
    """

    def __init__(self, tokenizer: Tokenizer, valid: int) -> None:
        self._tokenizer = tokenizer
        self._valid = valid
        self._breakers: dict[tuple[str, ...], frozenset[int]] = {}

    def make(self, params: SamplingParams, grammar: Grammar | None = None) -> DrawState:
        """The state of a text that has not begun.

        Raises:
            RequestError: a token id that the vocabulary lacks, or a word without tokens.
        """
        self._check("logit_bias", params.logit_bias)
        self._check("stop_token_ids", params.stop_token_ids)
        return DrawState(
            forbidden=self._forbidden(params.allowed_token_ids),
            bad_words=tuple(ids for word in params.bad_words for ids in self._spellings(word)),
            breakers=self._breaking(params) if params.dry_multiplier else frozenset(),
            grammar=None if grammar is None else grammar.start(),
            rated=params.logprobs is not None or params.choices > params.n,
            mu=2.0 * params.mirostat_tau,
        )

    def _check(self, name: str, ids: Collection[int]) -> None:
        for token in ids:
            if token >= self._valid:
                raise RequestError(
                    f"{name} has the token id {token}; the vocabulary ends at {self._valid - 1}",
                    param=name,
                )

    def _forbidden(self, allowed: Sequence[int] | None) -> Tensor | None:
        if allowed is None:
            return None
        self._check("allowed_token_ids", allowed)
        forbidden = torch.ones(self._valid, dtype=torch.bool)
        forbidden[list(allowed)] = False
        return forbidden

    def _spellings(self, word: str) -> set[tuple[int, ...]]:
        """The tokens of a word at the beginning of a text, after a space and inside a text."""

        def spell(text: str) -> tuple[int, ...]:
            return tuple(self._tokenizer.encode(text, add_bos=False, parse_special=False))

        spelt = {spell(word), spell(" " + word.lstrip())} - {()}
        # Sentencepiece puts a space in front of a text: without one a word stands only inside it.
        before, inside = spell("\n"), spell("\n" + word)
        if inside[: len(before)] == before and len(inside) > len(before):
            spelt.add(inside[len(before) :])
        if not spelt:
            raise RequestError(
                f"bad_words holds {word!r:.60}, which has no token", param="bad_words"
            )
        return spelt

    def _breaking(self, params: SamplingParams) -> frozenset[int]:
        """Special tokens, and those whose text holds a breaker."""
        breakers = tuple(params.dry_sequence_breakers)
        if not breakers:
            return frozenset(self._tokenizer.special_ids)
        if breakers not in self._breakers:
            text, starts = self._vocabulary
            pattern = re.compile(
                b"|".join(re.escape(word.encode("utf-8", "surrogatepass")) for word in breakers)
            )
            found = [match.start() for match in pattern.finditer(text)]
            tokens = np.searchsorted(starts, found, side="right") - 1
            self._breakers[breakers] = frozenset(tokens.tolist()) | self._tokenizer.special_ids
            while len(self._breakers) > _BREAKER_SETS:
                del self._breakers[next(iter(self._breakers))]
        return self._breakers[breakers]

    @cached_property
    def _vocabulary(self) -> tuple[bytes, np.ndarray]:
        """All tokens' bytes in one text, and where each begins: one search finds them all.

        Between them is a byte that no UTF-8 has, so that nothing is found across two tokens.
        """
        pieces = [self._tokenizer.token_bytes(token) for token in range(self._valid)]
        lengths = np.array([len(piece) + 1 for piece in pieces])
        return b"\xff".join(pieces), np.cumsum(lengths) - lengths
