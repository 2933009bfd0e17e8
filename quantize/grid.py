"""Uniform grids of groups of weights: scales and zero points, chosen by what inputs they meet.

Shape letters: N rows, K columns, G groups along K, S columns of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.calibrator import Calibrator, PlainCalibrator, UniformGrid

# Shares of the range that a grid may cover.
CLIPS = tuple(1.075 - i / 40 for i in range(24))
# Rounds of refinement; more lower the error by less than a thousandth.
_REFITS = 2


@dataclass(frozen=True, slots=True)
class Grid:
    """``w ~ scale * (code - zero)`` with codes from 0 to ``top``.

    Attributes:
        scales: float32 [N, G]; numbers that float16 holds.
        zeros: float32 [N, G] whole numbers.
        top: the largest code.
        group: columns of a group; the last one may be short.
    """

    scales: Tensor
    zeros: Tensor
    top: int
    group: int

    def column(self, k: int) -> tuple[Tensor, Tensor]:
        """Scales and zero points [N] of a column."""
        g = k // self.group
        return self.scales[:, g], self.zeros[:, g]

    def codes(self, weight_NK: Tensor) -> Tensor:
        """The nearest codes, uint8 [N, K]."""
        k = weight_NK.shape[1]
        scales, zeros = (_spread(x, self.group, k) for x in (self.scales, self.zeros))
        return _nearest(weight_NK, scales, zeros, self.top).to(torch.uint8)

    def values(self, codes_NK: Tensor) -> Tensor:
        """What codes [N, K] mean, float32."""
        k = codes_NK.shape[1]
        scales, zeros = (_spread(x, self.group, k) for x in (self.scales, self.zeros))
        return (codes_NK.float() - zeros) * scales


def fit_grid(
    weight_NK: Tensor,
    bits: int,
    group: int,
    symmetric: bool,
    importance_K: Tensor | None = None,
    clips: tuple[float, ...] = CLIPS,
    calibrator: Calibrator | None = None,
    both_signs: bool = False,
) -> Grid:
    """The grid of each group with the least error, from clipped ranges on.

    The error is the sum of ``importance * (w - rounded)^2``; with the mean square of each input as
    its importance that is the expected output error, if inputs were independent.

    Args:
        weight_NK: float [N, K].
        bits: of a code.
        group: columns that share a grid.
        symmetric: the zero point is the middle code, and the range reaches as far on both sides.
        importance_K: float [K]; None = all the same.
        clips: shares of the range to try; the best is refined then. (1.0,) does neither.
        calibrator: does the search; None = plain torch.
        both_signs: scales of a symmetric grid may be below 0.
    """
    k, refits = weight_NK.shape[1], 0 if clips == (1.0,) else _REFITS
    grid = UniformGrid(group, (1 << bits) - 1, symmetric, refits, both_signs and symmetric)
    importance = torch.ones(k) if importance_K is None else importance_K
    search = calibrator or PlainCalibrator()
    scales, zeros = search.fit_uniform(grid, weight_NK, importance, clips)
    return Grid(scales, zeros, grid.top, group)


def _nearest(w: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    return (w / scale + zero).round_().clamp_(0, top)


def _spread(x_NG: Tensor, group: int, k: int) -> Tensor:
    return x_NG.repeat_interleave(group, dim=1)[:, :k]
