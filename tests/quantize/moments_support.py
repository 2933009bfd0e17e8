"""How far second moments of rounded inputs may be from the exact ones."""

from __future__ import annotations

import torch
from torch import Tensor


def moments_bound(x_TK: Tensor) -> Tensor:
    """By how much a second moment [K, K] of inputs rounded to int8 may be off.

    Each is off by half a step at most, which all tokens share here: there are no more of them than
    share one. Sums of floats in another order come on top.
    """
    x_TK = x_TK.double().abs()
    half_K, sum_K, root_K = x_TK.amax(0) / 254, x_TK.sum(0), x_TK.square().sum(0).sqrt()
    bound = torch.outer(sum_K, half_K) + torch.outer(half_K, half_K) * len(x_TK) / 2
    return bound + bound.T + 1e-5 * torch.outer(root_K, root_K)
