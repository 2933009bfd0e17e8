"""Grids of small groups of weights, and what finds the best: interface of all implementations.

Shape letters: N rows, K columns, G groups of a row, C choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Offset = Literal["", "negative", "free"]


@dataclass(frozen=True, slots=True)
class GroupGrid:
    """What the codes of a group can stand for, apart from its scale and offset.

    Attributes:
        group: columns of a group, 16 or 32.
        top: the largest code.
        zero: the code that stands for 0 where there is no offset; with a table its largest
            magnitude.
        offset: a group has an offset beside its scale: any number, or none above 0; "" = none.
        table: values of 4-bit codes by rising code, else empty.
    """

    group: int
    top: int
    zero: int = 0
    offset: Offset = ""
    table: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Search:
    """How the scale of a group is looked for.

    Attributes:
        tries: first guesses, spread evenly.
        first: the fewest steps that a guess cuts the range (with an offset), or the largest
            magnitude, into.
        last: the most.
        refits: how often codes are rounded anew by the least-squares fit to codes so far.
    """

    tries: int
    first: float
    last: float
    refits: int = 2


class GroupFits(Protocol):
    """Searches for grids with the least ``sum importance * (w - rounded)^2`` in each group."""

    def fit(
        self, grid: GroupGrid, search: Search, weight_NK: Tensor, importance_K: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The best scales and offsets [N, G], float32; a group of zeros has scale 0.

        Args:
            grid: its kind.
            search: the first guesses.
            weight_NK: float32 [N, K], finite, K in whole groups.
            importance_K: float32 [K], none below 0.
        """
        ...

    def choose(
        self,
        grid: GroupGrid,
        weight_NK: Tensor,
        importance_K: Tensor,
        scales_CNG: Tensor,
        offsets_CNG: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The first choice with the least error [N, G], int32, and its sums [5, N, G].

        The sums are, with q what a code stands for before scaling and h the importance: the error,
        and those of h q q, of h w q, with offsets of h q, and of h w.
        """
        ...


class PlainFits:
    """:class:`GroupFits` in plain torch, on any device: what the kernels compute, and slow."""

    def fit(
        self, grid: GroupGrid, search: Search, weight_NK: Tensor, importance_K: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """See :class:`GroupFits`; [N, G]."""
        x, h = _in_groups(grid, weight_NK, importance_K)
        highest = torch.inf if grid.offset == "free" else 0.0
        low, high, sum_h, sum_x = x.amin(-1), x.amax(-1), h.sum(-1), (h * x).sum(-1)
        scale, offset, gain = (torch.zeros_like(low) for _ in range(3))
        if grid.offset:
            offset = (sum_x / torch.where(sum_h > 0, sum_h, 1)).clamp(max=highest)
            gain = offset * (2 * sum_x - offset * sum_h)
            low = low.clamp(max=highest)
        reach = high - low if grid.offset else torch.maximum(low.abs(), high.abs())

        def attempt(inverse: Tensor, start: Tensor) -> None:
            """Keep the best scale and offset for the codes of these, if they are better."""
            nonlocal scale, offset, gain
            sums = _sums(grid, x, h, inverse, start)
            qq, xq, q = sums[1], sums[2], sums[3]
            s = torch.where(qq > 0, xq / torch.where(qq > 0, qq, 1), 0)
            o = torch.zeros_like(s)
            if grid.offset:
                s = s.clamp(min=0)
            won = s * xq
            if grid.offset:
                det = sum_h * qq - q * q
                good = det > sum_h * qq * 1e-6
                det = torch.where(good, det, 1)
                both_s, both_o = (sum_h * xq - sum_x * q) / det, (qq * sum_x - q * xq) / det
                both = both_s * xq + both_o * sum_x
                good &= (both_s > 0) & (both_o <= highest) & (both > won)
                s, o = torch.where(good, both_s, s), torch.where(good, both_o, o)
                won = torch.where(good, both, won)
            better = won > gain
            scale, offset = torch.where(better, s, scale), torch.where(better, o, offset)
            gain = torch.where(better, won, gain)

        none = torch.zeros_like(low)
        for j in range(search.tries):
            share = j / max(1, search.tries - 1)
            inverse = (search.first + (search.last - search.first) * share) / reach
            attempt(inverse, low if grid.offset else none)
            if not grid.offset:
                attempt(-inverse, none)
        for _ in range(search.refits):
            attempt(1 / scale, offset)
        return scale, offset if grid.offset else None

    def choose(
        self,
        grid: GroupGrid,
        weight_NK: Tensor,
        importance_K: Tensor,
        scales_CNG: Tensor,
        offsets_CNG: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """See :class:`GroupFits`; int32 [N, G] and float32 [5, N, G]."""
        x, h = _in_groups(grid, weight_NK, importance_K)
        offsets = torch.zeros_like(scales_CNG) if offsets_CNG is None else offsets_CNG
        best = torch.zeros(scales_CNG.shape[1:], dtype=torch.int32, device=x.device)
        kept: Tensor | None = None
        for c, (scale, offset) in enumerate(zip(scales_CNG, offsets, strict=True)):
            sums = _sums(grid, x, h, 1 / scale, offset, scale)
            if kept is None:
                kept = sums
            better = sums[0] < kept[0]
            kept = torch.where(better, sums, kept)
            best = torch.where(better, c, best)
        assert kept is not None
        return best.int(), kept


def _in_groups(grid: GroupGrid, weight_NK: Tensor, importance_K: Tensor) -> tuple[Tensor, Tensor]:
    """Both float32, with columns of a group in the last dimension."""
    shape = (-1, grid.group)
    return weight_NK.float().unflatten(-1, shape), importance_K.float().unflatten(-1, shape)


def _sums(
    grid: GroupGrid,
    x: Tensor,
    h: Tensor,
    inverse: Tensor,
    offset: Tensor,
    scale: Tensor | None = None,
) -> Tensor:
    """What ``choose`` tells of one grid [N, G]: [5, N, G]; without ``scale`` the error is 0."""
    moved = x - offset.unsqueeze(-1) if grid.offset else x
    steps = (moved * inverse.unsqueeze(-1)).nan_to_num_(0)
    if grid.table:
        table = torch.tensor(grid.table, device=x.device)
        q = table[torch.bucketize(steps, (table[1:] + table[:-1]) / 2)]
    else:
        lowest = 0 if grid.offset else -grid.zero
        q = steps.clamp_(lowest, lowest + grid.top).round_()
    hq = h * q
    error = torch.zeros_like(offset)
    if scale is not None:
        error = (h * (moved - q * scale.unsqueeze(-1)).square()).sum(-1)
    sums = error, (hq * q).sum(-1), (hq * x).sum(-1), hq.sum(-1), (h * x).sum(-1)
    return torch.stack(sums)
