"""Uniform grids of groups of weights: scales and zero points, chosen by what inputs they meet.

Shape letters: N rows, K columns, G groups along K, S columns of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Shares of the range that a grid may cover.
CLIPS = tuple(1.075 - i / 40 for i in range(24))
# Weights at once: a few temporaries of that size stay in a core's cache.
_CHUNK = 1 << 18


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
) -> Grid:
    """The grid of each group with the least error, among clipped ranges.

    The error is the sum of ``importance * (w - rounded)^2``; with the mean square of each input as
    its importance that is the expected output error, if inputs were independent.

    Args:
        weight_NK: float [N, K].
        bits: of a code.
        group: columns that share a grid.
        symmetric: the zero point is the middle code, and the range reaches as far on both sides.
        importance_K: float [K]; None = all the same.
        clips: shares of the range to try; (1.0,) does not clip.
    """
    parts = weight_NK.split(max(1, _CHUNK // weight_NK.shape[1]))
    found = [_fit(part, bits, group, symmetric, importance_K, clips) for part in parts]
    scales, zeros = (torch.cat(tensors) for tensors in zip(*found, strict=True))
    return Grid(scales, zeros, (1 << bits) - 1, group)


def _fit(
    weight_NK: Tensor,
    bits: int,
    group: int,
    symmetric: bool,
    importance_K: Tensor | None,
    clips: tuple[float, ...],
) -> tuple[Tensor, Tensor]:
    """:func:`fit_grid` of some rows: scales and zero points [N, G]."""
    n, k = weight_NK.shape
    groups, top = -(-k // group), (1 << bits) - 1
    pad = groups * group - k
    w = torch.nn.functional.pad(weight_NK.float(), (0, pad)).view(n, groups, group)
    importance = torch.ones(k) if importance_K is None else importance_K.float()
    importance = torch.nn.functional.pad(importance, (0, pad)).view(groups, group)
    low, high = w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    best = torch.full((n, groups), torch.inf)
    ratio, code = torch.empty_like(w), torch.empty_like(w)
    scales, zeros = torch.ones(n, groups), torch.zeros(n, groups)
    middle = float(1 << (bits - 1))
    for clip in clips:
        # The highest code of a symmetric grid ends half a step before the range, the lowest beyond.
        scale = ((high - low) * clip / top).half().float().clamp(min=2.0**-14)
        zero = torch.full_like(scale, middle)
        if not symmetric:
            zero = (-low * clip / scale).round().clamp(0, top)
        # In units of the scale, where the error of a code needs no product.
        torch.mul(w, scale.reciprocal().unsqueeze(-1), out=ratio)
        torch.add(ratio, zero.unsqueeze(-1), out=code).round_().clamp_(0, top)
        code.sub_(zero.unsqueeze(-1)).sub_(ratio).square_()
        error = torch.einsum("ngs,gs->ng", code, importance) * scale.square()
        better = error < best
        best = torch.where(better, error, best)
        scales, zeros = torch.where(better, scale, scales), torch.where(better, zero, zeros)
    return scales, zeros


def _nearest(w: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    return (w / scale + zero).round_().clamp_(0, top)


def _spread(x_NG: Tensor, group: int, k: int) -> Tensor:
    return x_NG.repeat_interleave(group, dim=1)[:, :k]
