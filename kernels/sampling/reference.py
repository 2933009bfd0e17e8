"""What sampling means: :mod:`halfbyte.kernels.reference`, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference as ref
from .config import SEEN
from .rows import TokenChoice


def sample(logits_V: Tensor, choice: TokenChoice, counts_V: Tensor | None = None) -> int:
    """One token of float32 logits [V]; ``counts``: int32 [V], the row's line of penalty counts."""
    if counts_V is not None:
        logits_V = ref.penalize(
            logits_V,
            counts_V != 0,
            counts_V & (SEEN - 1),
            choice.repetition,
            choice.presence,
            choice.frequency,
        )
    return ref.sample(
        logits_V,
        choice.temperature,
        choice.top_k,
        choice.top_p,
        choice.min_p,
        choice.seed,
        choice.position,
    )


def logprob(logits_V: Tensor, token: int) -> float:
    """Log probability of a token under the model itself: raw logits [V], temperature 1."""
    return float(torch.log_softmax(logits_V.double(), -1)[token])
