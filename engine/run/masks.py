"""What may not be drawn from a row: by lists of ids, bad words, ``min_tokens`` and grammars."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .sampling import RowSampling


@dataclass(slots=True)
class Mask:
    """What may not be drawn from one row.

    Attributes:
        forbidden: bool [V] of ids that are not drawn whatever happens, or None.
        ids: single ids, as well.
        held: ids that are drawn only where nothing else could be: they would end the text before
            its ``min_tokens``.
    """

    forbidden: Tensor | None
    ids: list[int]
    held: list[int]
    _saved: Tensor | None = None

    def apply(self, logits_V: Tensor) -> None:
        """Set the logits [V] of what may not be drawn to -inf, in place."""
        if self.forbidden is not None:
            logits_V.masked_fill_(self.forbidden.to(logits_V.device), -torch.inf)
        if self.ids:
            logits_V[self.ids] = -torch.inf
        if self.held:
            self._saved = logits_V[self.held]
            logits_V[self.held] = -torch.inf

    def release(self, logits_V: Tensor) -> bool:
        """Put back the logits of what was held; False when none was."""
        if self._saved is None:
            return False
        logits_V[self.held] = self._saved
        self._saved = None
        return True


def make_mask(row: RowSampling, valid: int, end_tokens: Iterable[int]) -> Mask | None:
    """What may not be drawn from a row, of ids below ``valid``, or None.

    Raises:
        GrammarError: the grammar failed.
    """
    params, draw = row.params, row.draw
    answered = row.position - row.prompt_length
    forbidden = draw.forbidden
    if draw.grammar is not None:
        begin = row.prompt_length + draw.followed
        draw.follow(row.tokens[begin : row.position].tolist(), params)
        allowed = _bits(draw.grammar.mask(), valid)
        forbidden = ~allowed if forbidden is None else ~allowed | forbidden
    ids = [token for word in draw.bad_words if (token := _completes(word, row)) < valid]
    held: list[int] = []
    if answered < params.min_tokens:
        ends = {*params.stop_token_ids, *(() if params.ignore_eos else end_tokens)}
        held = sorted(i for i in ends if i < valid)
    if forbidden is None and not ids and not held:
        return None
    return Mask(forbidden, ids, held)


def _bits(words: np.ndarray, valid: int) -> Tensor:
    """A bit mask, int32 [ceil(V / 32)], as bool [V]."""
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return torch.from_numpy(bits[:valid].astype(bool))


def _completes(word: tuple[int, ...], row: RowSampling) -> int:
    """The token that would complete a word here; one beyond all where none would."""
    before = word[:-1]
    if before and row.tokens[max(0, row.position - len(before)) : row.position].tolist() != [
        *before
    ]:
        return 1 << 62
    return word[-1]
