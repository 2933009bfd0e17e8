"""Log-probabilities of tokens: of drawn ones, and of those of a prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from ..request import Sampled
from .sampling import RowSampling


def logprobs(logits_V: Tensor) -> Tensor:
    """Natural log-probabilities [V], float32 on the host."""
    return logits_V.to("cpu", torch.float32).log_softmax(-1)


def likeliest(logprobs_V: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    """The ``count`` likeliest ids of [V] and their log-probabilities, best first; ties by id.

    Fewer where fewer may be drawn: JSON has no number for the logarithm of nothing.
    """
    if not count:
        return ()
    count = min(count, logprobs_V.shape[0])
    least = logprobs_V.topk(count).values[-1]
    ids = ((logprobs_V >= least) & (logprobs_V > -torch.inf)).nonzero().squeeze(-1)
    order = logprobs_V[ids].argsort(descending=True, stable=True)[:count]
    return tuple((int(i), float(logprobs_V[i])) for i in ids[order])


def rated(token: int, logprobs_V: Tensor | None, row: RowSampling) -> Sampled:
    """A drawn token with its log-probability of [V], and the likeliest ones, where wanted."""
    if logprobs_V is None or not row.draw.rated:
        return Sampled(token)
    return Sampled(token, float(logprobs_V[token]), likeliest(logprobs_V, row.params.logprobs or 0))
