"""The arithmetic of quantizing: interface of all implementations, and its meaning in plain torch.

Shape letters: N rows, K columns, B columns of a block, G groups of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .formats.group_grid import GroupFits, PlainFits

# Weights at once: a few temporaries of that size stay in a core's cache.
_CHUNK = 1 << 18
# Scales that a file's float16 holds with all of its digits.
_LEAST, _MOST = 2.0**-14, 65504.0


@dataclass(frozen=True, slots=True)
class UniformGrid:
    """``w ~ scale * (code - zero)`` with a float16 scale and a whole zero point for each group.

    Attributes:
        group: columns of a group; the last one may be short.
        top: the largest code.
        symmetric: the zero point is the middle code.
        refits: rounds in which the best grid's scale is fitted anew by least squares to its codes,
            as it is after every clip then, and neighbours of its zero point are tried; 0 = scales
            are those of clipped ranges.
        both_signs: scales may be below 0, so that the lowest code, which reaches a step beyond
            the highest, is for the largest magnitude, whatever its sign.
    """

    group: int
    top: int
    symmetric: bool
    refits: int = 2
    both_signs: bool = False


class Calibrator(GroupFits, Protocol):
    """What quantizing computes beside products of matrices."""

    def add_moments(self, sum_KK: Tensor, x_TK: Tensor) -> None:
        """``sum += x^T x``, symmetric, of inputs that may be rounded.

        The squares of rounding errors sum to at most 0.4 % of the squares of their column, and far
        less where those are not all in a few tokens. What is added is, but for float32 sums, a
        matrix times its transpose. It is not finite on the diagonal of columns in which inputs
        are not.

        Args:
            sum_KK: float32 [K, K], symmetric and contiguous.
            x_TK: float32 [T, K]; rows may lie apart.
        """
        ...

    def fit_uniform(
        self, grid: UniformGrid, weight_NK: Tensor, importance_K: Tensor, clips: tuple[float, ...]
    ) -> tuple[Tensor, Tensor]:
        """Scales and zero points, float32 [N, G], with the least weighted squared error.

        The error of a group is the sum of ``importance * (w - rounded)^2``. It is never above that
        of the best of the clipped ranges.

        Args:
            grid: its kind.
            weight_NK: float [N, K], finite.
            importance_K: float [K], none below 0.
            clips: shares of the range to try.
        """
        ...

    def round_columns(
        self,
        weight_BN: Tensor,
        factor_BB: Tensor,
        scales_GN: Tensor,
        zeros_GN: Tensor,
        groups_B: Tensor,
        top: int,
    ) -> tuple[Tensor, Tensor]:
        """Round columns one after another; each takes its error from those behind it.

        With q the code nearest to ``w / scale + zero``, the error of column b is
        ``(w - scale (q - zero)) / factor[b, b]``, and column c > b loses ``factor[b, c]`` times it
        before it is rounded. Implementations give the same bits.

        Args:
            weight_BN: float32 [B, N], a column of the weight in each row.
            factor_BB: float32 [B, B], upper triangular; rows may lie apart.
            scales_GN: float32 [G, N], none of them 0.
            zeros_GN: float32 [G, N], zero points.
            groups_B: int32 [B], the group of each column.
            top: the largest code, at most 255.

        Returns:
            Codes uint8 [B, N] and errors float32 [B, N].
        """
        ...


class PlainCalibrator(PlainFits):
    """:class:`Calibrator` in plain torch: what the kernels compute, and slow."""

    def add_moments(self, sum_KK: Tensor, x_TK: Tensor) -> None:
        """See :class:`Calibrator`; [K, K]."""
        add_exact_moments(sum_KK, x_TK)

    def fit_uniform(
        self, grid: UniformGrid, weight_NK: Tensor, importance_K: Tensor, clips: tuple[float, ...]
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Calibrator`; [N, G]."""
        parts = weight_NK.float().split(max(1, _CHUNK // weight_NK.shape[1]))
        found = [_fit_uniform(grid, part, importance_K.float(), clips) for part in parts]
        scales, zeros = (torch.cat(tensors) for tensors in zip(*found, strict=True))
        return scales, zeros

    def round_columns(
        self,
        weight_BN: Tensor,
        factor_BB: Tensor,
        scales_GN: Tensor,
        zeros_GN: Tensor,
        groups_B: Tensor,
        top: int,
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Calibrator`; uint8 and float32 [B, N]."""
        w = weight_BN.clone()
        errors, codes = torch.empty_like(w), torch.empty(w.shape, dtype=torch.uint8)
        for b, g in enumerate(groups_B.tolist()):
            scale, zero = scales_GN[g], zeros_GN[g]
            q = (w[b] / scale + zero).round_().clamp_(0, top)
            codes[b] = q
            errors[b] = (w[b] - (q - zero) * scale) / factor_BB[b, b]
            # Rounded twice: whether addr_ is fused depends on how torch was built.
            w[b + 1 :].sub_(torch.outer(factor_BB[b, b + 1 :], errors[b]))
        return codes, errors


def add_exact_moments(sum_KK: Tensor, x_TK: Tensor) -> None:
    """``sum += x^T x`` [K, K] from float32 products of x [T, K]."""
    # numpy's product of an array with itself computes one triangle (BLAS syrk), torch's both.
    x = x_TK.numpy()
    sum_KK += torch.from_numpy(np.matmul(x.T, x))


def _fit_uniform(
    grid: UniformGrid, weight_NK: Tensor, importance_K: Tensor, clips: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Scales and zero points [N, G] of some rows."""
    n, k = weight_NK.shape
    pad, top = -k % grid.group, grid.top
    w = torch.nn.functional.pad(weight_NK, (0, pad)).view(n, -1, grid.group)
    h = torch.nn.functional.pad(importance_K, (0, pad)).view(-1, grid.group)
    low, high = w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)
    middle = torch.full_like(low, (top + 1) / 2)
    if grid.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    best, scales, zeros = torch.full_like(low, torch.inf), torch.ones_like(low), middle

    def keep(error: Tensor, scale: Tensor, zero: Tensor) -> None:
        nonlocal best, scales, zeros
        better = error < best
        best = torch.where(better, error, best)
        scales, zeros = torch.where(better, scale, scales), torch.where(better, zero, zeros)

    def attempt(scale: Tensor, zero: Tensor, refit: bool) -> None:
        """Keep a grid, or with ``refit`` the best scale for its codes, if it is better."""
        lowest = -zero.unsqueeze(-1)
        q = w * scale.reciprocal().unsqueeze(-1)
        q = torch.minimum(torch.maximum(q, lowest), lowest + top).round_()
        miss = w - q * scale.unsqueeze(-1)
        error = (h * miss.square()).sum(-1)
        keep(error, scale, zero)
        if refit:
            # The error of these codes is a parabola in the scale.
            hq = h * q
            slope, square = (hq * miss).sum(-1), (hq * q).sum(-1)
            by = torch.where(square > 0, slope / torch.where(square > 0, square, 1), 0)
            fitted = _stored(scale + by)
            by = fitted - scale
            keep(error + by * (by * square - 2 * slope), fitted, zero)

    refit = grid.refits > 0
    for clip in clips:
        scale = _stored((high - low) * clip / top)
        zero = middle if grid.symmetric else (-low * clip / scale).round().clamp(0, top)
        attempt(scale, zero, refit)
        if grid.both_signs:
            attempt(-scale, zero, refit)
    for _ in range(grid.refits):
        scale, zero = scales, zeros
        attempt(scale, zero, True)
        if not grid.symmetric:
            attempt(scale, (zero - 1).clamp(min=0), True)
            attempt(scale, (zero + 1).clamp(max=top), True)
    return scales, zeros


def _stored(scale: Tensor) -> Tensor:
    """Scales of any shape as float16 has them, and none of the smallest."""
    return scale.abs().clamp(_LEAST, _MOST).copysign(scale).half().float()
