"""Sampling: from logits to one token a row, the same for a row in any batch.

Filters are logit thresholds (top-k, top-p, min-p, in this order), the draw is Gumbel-max with
noise from a counter keyed by (seed, position, token id). See ``kernels/reference.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernels import reference as ref
from .backends.base import Ops
from .request import SamplingParams


@dataclass(frozen=True, slots=True)
class RowSampling:
    """What sampling needs of one row.

    Attributes:
        params: how to choose.
        seed: key of the random numbers.
        position: index in the text of the token to be drawn.
        tokens: int64 [position], the text so far (read only when penalties are on).
        prompt_length: how many of those are prompt.
    """

    params: SamplingParams
    seed: int
    position: int
    tokens: Tensor
    prompt_length: int


class Sampler:
    """Draws tokens.

    Args:
        valid: ids from 0 to ``valid - 1`` exist in the tokenizer; padding rows of the
            embedding beyond them are never drawn.
        ops: backend of the greedy choice.
    """

    def __init__(self, valid: int, ops: Ops[Any]) -> None:
        self.valid = valid
        self.ops = ops

    def __call__(self, logits_SV: Tensor, rows: list[RowSampling]) -> list[int]:
        """One token for each row of logits [S, V]."""
        logits = logits_SV[:, : self.valid].to(torch.float32)
        if all(r.params.greedy and not _penalized(r.params) for r in rows):
            return self.ops.argmax(logits).tolist()
        return [self._one(logits[i], row) for i, row in enumerate(rows)]

    def _one(self, logits_V: Tensor, row: RowSampling) -> int:
        p = row.params
        if _penalized(p):
            size = logits_V.shape[0]
            output = row.tokens[row.prompt_length :]
            counts = torch.bincount(output, minlength=size)[:size].to(logits_V.dtype)
            seen = torch.zeros(size, dtype=torch.bool)
            seen[row.tokens[row.tokens < size]] = True
            logits_V = ref.penalize(
                logits_V,
                seen,
                counts,
                p.repetition_penalty,
                p.presence_penalty,
                p.frequency_penalty,
            )
        return ref.sample(
            logits_V, p.temperature, p.top_k, p.top_p, p.min_p, row.seed, row.position
        )


def _penalized(p: SamplingParams) -> bool:
    return p.repetition_penalty != 1.0 or p.presence_penalty != 0.0 or p.frequency_penalty != 0.0
