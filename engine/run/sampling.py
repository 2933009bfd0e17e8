"""What sampling needs of a row, and the draw on the host; see ``kernels/reference.py``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import reference as ref
from ..request import SamplingParams


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

    @property
    def penalized(self) -> bool:
        """Whether the text so far changes the logits."""
        p = self.params
        return (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) != (1.0, 0.0, 0.0)


def sample_row(logits_V: Tensor, row: RowSampling) -> int:
    """One token by float32 logits [V], in plain torch; -1 when they are not finite numbers."""
    p = row.params
    if row.penalized:
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
    return ref.sample(logits_V, p.heat, p.top_k, p.top_p, p.min_p, row.seed, row.position)
