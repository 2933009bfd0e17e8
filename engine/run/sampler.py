"""Sampling: from logits to one token a row, the same for a row in any batch.

Filters are logit thresholds (top-k, top-p, min-p, in this order), the draw is Gumbel-max with
noise from a counter keyed by (seed, position, token id). See ``kernels/reference.py``.

A row that cannot be drawn from is its own affair: its place in the result says why, and the other
rows get the tokens that they would have got without it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from ..backends.base import Drawer
from .sampling import RowSampling, sample_row

log = logging.getLogger(__name__)

BROKEN = "the model's logits are not finite numbers: nothing can be drawn from them"
"""Why a row has no token: NaN, or nothing above -inf, or an infinite largest logit."""


class Sampler:
    """Draws tokens.

    Args:
        valid: ids from 0 to ``valid - 1`` exist in the tokenizer; padding rows of the
            embedding beyond them are never drawn.
        drawer: the backend's choice.
        suppressed: ids that are never drawn although they exist.
        end_tokens: ids that end a text; rows below their ``min_tokens`` do not draw them.
    """

    def __init__(
        self,
        valid: int,
        drawer: Drawer,
        suppressed: Iterable[int] = (),
        end_tokens: Iterable[int] = (),
    ) -> None:
        self.valid = valid
        self.drawer = drawer
        ids = sorted(i for i in suppressed if i < valid)
        self._suppressed = torch.tensor(ids, device=drawer.device) if ids else None
        self._end_tokens = frozenset(end_tokens)

    def __call__(self, logits_SV: Tensor, rows: list[RowSampling]) -> list[int | str]:
        """One token for each row of logits [S, V], or why it has none.

        The logits are changed. Raises what the backend raises when it fails for every row.
        """
        logits = logits_SV[:, : self.valid]
        if self._suppressed is not None:
            logits.index_fill_(1, self._suppressed, -torch.inf)  # a view: no copy of the rest
        held = {i: ids for i, row in enumerate(rows) if (ids := self._held(row)) is not None}
        saved = {i: logits[i, ids] for i, ids in held.items()}
        for i, ids in held.items():
            logits[i, ids] = -torch.inf
        drawn = self._isolated(logits, rows)
        for i, token in enumerate(drawn):
            if token == -1 and i in held:
                # Nothing is left but what would end the text: so it ends.
                logits[i, held[i]] = saved[i]
                (drawn[i],) = self._isolated(logits[i : i + 1], rows[i : i + 1])
        return [BROKEN if token == -1 else token for token in drawn]

    def _held(self, row: RowSampling) -> Tensor | None:
        """Ids that would end a row's text before its ``min_tokens``, if it is below them."""
        params = row.params
        if row.position - row.prompt_length >= params.min_tokens:
            return None
        ids = {*params.stop_token_ids, *(() if params.ignore_eos else self._end_tokens)}
        known = sorted(i for i in ids if i < self.valid)
        return torch.tensor(known, device=self.drawer.device) if known else None

    def _isolated(self, logits: Tensor, rows: list[RowSampling]) -> list[int | str]:
        """:meth:`_draw`; when it raises, each row alone, so that one cannot fail the others."""
        try:
            return [*self._draw(logits, rows)]
        except Exception as error:
            log.warning("a draw failed, rows are drawn one by one: %r", error)
        drawn: list[int | str] = []
        for i, row in enumerate(rows):
            try:
                drawn += self._draw(logits[i : i + 1], [row])
            except Exception as error:
                drawn.append(f"{type(error).__name__}: {error}")
        if all(isinstance(token, str) for token in drawn):
            # A row's fault, or the device's? The plainest op of all tells.
            self.drawer.argmax(logits[:1])
        return drawn

    def _draw(self, logits: Tensor, rows: list[RowSampling]) -> list[int]:
        """One token for each row, -1 where the logits are not finite numbers."""
        if all(r.params.greedy and not r.penalized for r in rows):
            return self.drawer.argmax(logits).tolist()
        drawn = self.drawer.sample(logits, rows)
        if drawn is not None:
            return drawn.tolist()
        wide = logits.to(torch.float32)
        return [sample_row(wide[i], row) for i, row in enumerate(rows)]
