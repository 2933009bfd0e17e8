"""Scales of inputs that make matrices, or inputs, easier to round; :mod:`.folding` puts them away.

Shape letters: N rows, K columns, S tokens of a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .grid import fit_grid
from .hessian import Hessian

# Strengths to try; 0 leaves everything as it is.
_STRENGTHS = tuple(i / 8 for i in range(9))
# Rows of a matrix, evenly spread, by which strengths are compared. More rows and finer strengths
# gave no lower error of the whole, and cost six times as much.
_ROWS = 64
# The largest scale is at most so many times the smallest: float16 must hold what they divide.
_SPREAD = 2.0**10

Tie = Callable[[Tensor], Tensor]


class Smoother(Protocol):
    """Chooses a scale for the inputs of matrices."""

    def scale(self, weight_NK: Tensor, hessian: Hessian, tie: Tie) -> Tensor | None:
        """Float32 [K] by which inputs are to be divided; None = leave them.

        Args:
            weight_NK: all matrices that read the inputs, float [N, K].
            hessian: of the inputs.
            tie: brings a scale to one that the op before can take.
        """
        ...


@dataclass(frozen=True, slots=True)
class AWQScales:
    """Activation-aware scales: columns that meet large inputs get finer steps.

    Source: Lin et al., 2023 (arXiv 2306.00978): ``s = rms(x)^a / mean|w|^(1 - a)``, |w| over its
    group's largest. The strength ``a`` that gives the least output error after rounding to nearest
    is taken. That error is ``tr(D H D^T)`` from second moments alone, without a forward pass.

    Attributes:
        bits: of the codes to come.
        group: columns that share a step.
        symmetric: without zero points.
    """

    bits: int
    group: int
    symmetric: bool

    def scale(self, weight_NK: Tensor, hessian: Hessian, tie: Tie) -> Tensor | None:
        """See :class:`Smoother`; [K]."""
        h_KK = hessian.mean()
        rms = h_KK.diagonal().clamp(min=0).sqrt()
        if not bool((rms > 0).any()):
            return None
        rms = rms.clamp(min=float(rms.max()) * 1e-6)
        n, k = weight_NK.shape
        rows = weight_NK[:: max(1, n // _ROWS)].float()
        group = k if self.group == -1 else self.group
        pad = -k % group
        cells = torch.nn.functional.pad(weight_NK.float().abs(), (0, pad)).view(n, -1, group)
        share = cells / cells.amax(-1, keepdim=True).clamp(min=1e-30)
        spread = share.view(n, -1)[:, :k].mean(0).clamp(min=1e-4)
        best, chosen = torch.inf, None
        for plain in (False, True):
            for a in _STRENGTHS:
                scale = rms**a if plain else rms**a / spread ** (1 - a)
                scale = tie(bounded(scale))
                grid = fit_grid(rows * scale, self.bits, group, self.symmetric, None, (1.0,))
                d_NK = grid.values(grid.codes(rows * scale)) / scale - rows
                error = float((d_NK @ h_KK).mul_(d_NK).sum())
                if error < best:
                    best, chosen = error, scale
        return chosen


@dataclass(frozen=True, slots=True)
class SmoothQuantScales:
    """Scales that move the range of inputs into the weights, where both become 8-bit codes.

    Source: Xiao et al., 2022 (arXiv 2211.10438): ``s = max|x|^a / max|w|^(1 - a)``. The strength
    ``a`` is the one with the least error of outputs on a sample of inputs, rounded by token, and
    weights, rounded by row.

    Attributes:
        bits: of the codes of weights.
    """

    bits: int = 8

    def scale(self, weight_NK: Tensor, hessian: Hessian, tie: Tie) -> Tensor | None:
        """See :class:`Smoother`; [K]."""
        x_SK = hessian.sample_SK
        top_x = x_SK.abs().amax(0)
        if not bool((top_x > 0).any()):
            return None
        top_x = top_x.clamp(min=float(top_x.max()) * 1e-5)
        top_w = weight_NK.float().abs().amax(0)
        top_w = top_w.clamp(min=max(float(top_w.max()) * 1e-5, 1e-30))
        h_K, rows = hessian.importance(), weight_NK[:: max(1, len(weight_NK) // _ROWS)].float()
        best, chosen = torch.inf, None
        for a in _STRENGTHS:
            scale = tie(bounded(top_x**a / top_w ** (1 - a)) if a else torch.ones_like(top_x))
            w_NK = rows * scale
            # Roundings are as good as uniform and independent: a twelfth of a step squared each.
            steps_N = w_NK.abs().amax(1) / ((1 << self.bits) / 2 - 1)
            of_weights = float(steps_N.square().sum() * (h_K / scale.square()).sum()) / 12
            steps_S = (x_SK / scale).abs().amax(1) / 127
            of_inputs = float(steps_S.square().mean() * w_NK.square().sum()) / 12
            if of_weights + of_inputs < best:
                best, chosen = of_weights + of_inputs, scale
        return chosen


def bounded(scale_K: Tensor) -> Tensor:
    """A scale [K] around 1 (geometric mean of its ends), with a bounded spread."""
    scale_K = scale_K / (scale_K.max() * scale_K.min()).sqrt()
    return scale_K.clamp(_SPREAD**-0.5, _SPREAD**0.5)
