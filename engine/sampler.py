"""Sampling: from logits to one token a row, the same for a row in any batch.

Filters are logit thresholds (top-k, top-p, min-p, in this order), the draw is Gumbel-max with
noise from a counter keyed by (seed, position, token id). See ``kernels/reference.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .backends.base import Ops
from .sampling import RowSampling, sample_row


class Sampler:
    """Draws tokens.

    Args:
        valid: ids from 0 to ``valid - 1`` exist in the tokenizer; padding rows of the
            embedding beyond them are never drawn.
        ops: backend of the choice.
        suppressed: ids that are never drawn although they exist.
    """

    def __init__(self, valid: int, ops: Ops[Any], suppressed: Iterable[int] = ()) -> None:
        self.valid = valid
        self.ops = ops
        ids = sorted(i for i in suppressed if i < valid)
        self._suppressed = torch.tensor(ids, device=ops.device) if ids else None

    def __call__(self, logits_SV: Tensor, rows: list[RowSampling]) -> list[int]:
        """One token for each row of logits [S, V]."""
        logits = logits_SV[:, : self.valid]
        if self._suppressed is not None:
            logits.index_fill_(1, self._suppressed, -torch.inf)  # a view: no copy of the rest
        if all(r.params.greedy and not r.penalized for r in rows):
            return self.ops.argmax(logits).tolist()
        drawn = self.ops.sample(logits, rows)
        if drawn is not None:
            return drawn.tolist()
        wide = logits.to(torch.float32)
        return [sample_row(wide[i], row) for i, row in enumerate(rows)]
