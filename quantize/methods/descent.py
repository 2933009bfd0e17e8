"""Improve codes one at a time: each weight takes the code that is best while all others stay.

The error of the outputs is a quadratic form of the errors D of a row's weights, ``D H D^T``. Moved
alone, weight k is best at ``-(D H)_k / H_kk`` from where it is, so the nearest code to that never
makes the error larger. Sweeps over all columns of any codes end in a local optimum. Source: cyclic
coordinate descent; for weights of language models, Behdin et al., "QuantEase", arXiv 2309.01885.

Shape letters: N rows, K columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..grid import Grid

# Columns whose products with the errors are kept up to date one by one.
_BLOCK = 128


def descend(
    weight_NK: Tensor, codes_NK: Tensor, hessian_KK: Tensor, grid: Grid, sweeps: int
) -> Tensor:
    """Codes, uint8 [N, K], whose error in the outputs is no larger than that of the given ones.

    Args:
        weight_NK: float [N, K].
        codes_NK: where to begin, uint8 [N, K].
        hessian_KK: mean of ``x x^T`` of the inputs, float32 [K, K].
        grid: of each group of columns.
        sweeps: over all columns, by falling second moment of their inputs.
    """
    k = weight_NK.shape[1]
    order = hessian_KK.diagonal().argsort(descending=True, stable=True)
    hessian = hessian_KK[order][:, order].contiguous()
    codes = codes_NK.float().T[order].contiguous()  # columns lie together: [K, N]
    errors = (grid.values(codes_NK) - weight_NK.float()).T[order].contiguous()
    scales = [grid.column(column)[0] for column in order.tolist()]
    # A dead input moves nothing: its weight stays.
    moments = hessian.diagonal().clamp(min=1e-30).tolist()
    for _ in range(sweeps):
        for begin in range(0, k, _BLOCK):
            end = min(begin + _BLOCK, k)
            slopes = hessian[begin:end] @ errors
            for i in range(begin, end):
                best = codes[i] - (slopes[i - begin] / (scales[i] * moments[i])).round_()
                best.clamp_(0, grid.top)
                moved = (best - codes[i]).mul_(scales[i])
                codes[i] = best
                errors[i] += moved
                slopes.addr_(hessian[begin:end, i], moved)
    out = torch.empty_like(codes_NK)
    out[:, order] = codes.T.to(torch.uint8)
    return out


def output_error(weight_NK: Tensor, codes_NK: Tensor, hessian_KK: Tensor, grid: Grid) -> Tensor:
    """Mean squared error of each row's output, ``D H D^T``, float32 [N]."""
    errors = grid.values(codes_NK) - weight_NK.float()
    return ((errors @ hessian_KK) * errors).sum(1)
