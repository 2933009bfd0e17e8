"""What drops tokens of a row after the temperature: each a small function, in order.

All take float32 scores [V] (logits over the temperature, at most 0, -inf where a token is dropped
already) and give scores with more of them dropped. Each works on the distribution that the one
before it left; the likeliest tokens that tie with the last one kept are kept too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...kernels import reference as ref

if TYPE_CHECKING:
    from .sampling import RowSampling

# No token has this id: the random number of a position that belongs to none.
NO_TOKEN = -1


def top_n_sigma(scores_V: Tensor, row: RowSampling) -> Tensor:
    """Scores [V]: keep those within n standard deviations of the best (Tang et al., 2024)."""
    n = row.params.top_n_sigma
    if n <= 0:
        return scores_V
    deviation = scores_V[scores_V > -torch.inf].double().std(correction=0)
    return _keep(scores_V, scores_V >= scores_V.max() - n * deviation)


def top_k(scores_V: Tensor, row: RowSampling) -> Tensor:
    """Scores [V]: keep the k best scores."""
    return _keep(scores_V, ref.keep_mask(scores_V, row.params.top_k, 1.0, 0.0))


def typical(scores_V: Tensor, row: RowSampling) -> Tensor:
    """Scores [V]: keep tokens whose surprise is nearest to the entropy (Meister et al., 2022)."""
    mass = row.params.typical_p
    if mass >= 1.0:
        return scores_V
    logprobs_V = scores_V.double().log_softmax(-1)
    probabilities_V = logprobs_V.exp()
    # -inf times nothing is nothing.
    entropy = -(probabilities_V * logprobs_V).nan_to_num(nan=0.0).sum()
    distance_V = (-logprobs_V - entropy).abs()
    ranked = distance_V.sort(stable=True)
    reached = probabilities_V[ranked.indices].cumsum(-1) < mass
    last = int(reached.sum().clamp(max=reached.numel() - 1))
    return _keep(scores_V, distance_V <= ranked.values[last])


def top_p(scores_V: Tensor, row: RowSampling) -> Tensor:
    """Scores [V]: keep the best scores up to a probability mass. Source: Holtzman et al. (2019)."""
    return _keep(scores_V, ref.keep_mask(scores_V, 0, row.params.top_p, 0.0))


def min_p(scores_V: Tensor, row: RowSampling) -> Tensor:
    """Scores [V]: drop tokens below a share of the best one's probability."""
    return _keep(scores_V, ref.keep_mask(scores_V, 0, 1.0, row.params.min_p))


def xtc(scores_V: Tensor, row: RowSampling) -> Tensor:
    """Scores [V]: by chance, drop the tokens above a probability but the least likely of them.

    Source: "Exclude Top Choices" (p-e-w, 2024, text-generation-webui pull request 6335).
    """
    p = row.params
    if p.xtc_probability <= 0.0:
        return scores_V
    seed, position, none = (torch.tensor(x) for x in (row.seed, row.position, NO_TOKEN))
    if float(ref.counter_uniform(seed, position, none)) >= p.xtc_probability:
        return scores_V
    above_V = (scores_V.double().softmax(-1) >= p.xtc_threshold) & (scores_V > -torch.inf)
    if int(above_V.sum()) < 2:
        return scores_V
    least = scores_V[above_V].min()
    return _keep(scores_V, ~above_V | (scores_V == least))


FILTERS: tuple[Callable[[Tensor, RowSampling], Tensor], ...] = (
    top_n_sigma,
    top_k,
    typical,
    top_p,
    min_p,
    xtc,
)
"""In the order in which they apply."""


def filtered(scores_V: Tensor, row: RowSampling) -> Tensor:
    """Scores [V] after all filters, or after mirostat, which replaces them."""
    if row.params.mirostat:
        return mirostat(scores_V, row)
    for keep in FILTERS:
        scores_V = keep(scores_V, row)
    return scores_V


def mirostat(scores_V: Tensor, row: RowSampling) -> Tensor:
    """Scores [V]: keep tokens whose surprise is at most ``mu``, or the likeliest one.

    Source: mirostat 2.0 (Basu et al., 2020, algorithm 2).
    """
    bits_V = -scores_V.double().log_softmax(-1) / math.log(2.0)
    return _keep(scores_V, (bits_V <= row.draw.mu) | (scores_V == scores_V.max()))


def surprise(scores_V: Tensor, token: int) -> float:
    """Surprise in bits of a token among those whose scores [V] were kept."""
    return float(-scores_V.double().log_softmax(-1)[token] / math.log(2.0))


def _keep(scores_V: Tensor, keep_V: Tensor) -> Tensor:
    return scores_V.masked_fill(~keep_V, -torch.inf)
