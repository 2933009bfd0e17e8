"""Grids for groups of weights, searched by the C kernels; ``kernels/reference.py`` has the meaning.

Shape letters: N rows, K columns, G groups of a row, C choices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..formats.group_grid import GroupGrid, Search
from .fit_ops import FitGroups, Groups, TryGroups
from .library import Library
from .pack import run_op


class CompiledFits:
    """Fits of grids by the C kernels, see :class:`..formats.group_grid.GroupFits`.

    Args:
        library: the loaded kernels.
    """

    def __init__(self, library: Library) -> None:
        self._library = library

    def fit(
        self, grid: GroupGrid, search: Search, weight_NK: Tensor, importance_K: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Scales and offsets [N, G], float32."""
        groups = _groups(grid, weight_NK, importance_K)
        shape = groups.n, groups.k // groups.group
        scales = torch.empty(shape)
        offsets = torch.empty(shape) if grid.offset else None
        op = FitGroups(
            groups=groups,
            scales=scales,
            offsets=offsets,
            tries=search.tries,
            refits=search.refits,
            free=grid.offset == "free",
            first=search.first,
            last=search.last,
        )
        run_op(self._library, op)
        return scales, offsets

    def choose(
        self,
        grid: GroupGrid,
        weight_NK: Tensor,
        importance_K: Tensor,
        scales_CNG: Tensor,
        offsets_CNG: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The best of C grids of each group, int32 [N, G], and its sums, float32 [5, N, G]."""
        groups = _groups(grid, weight_NK, importance_K)
        shape = groups.n, groups.k // groups.group
        best, sums = torch.empty(shape, dtype=torch.int32), torch.zeros(5, *shape)
        op = TryGroups(
            groups=groups,
            scales=scales_CNG.contiguous(),
            offsets=None if offsets_CNG is None else offsets_CNG.contiguous(),
            best=best,
            sums=sums,
            choices=scales_CNG.shape[0],
        )
        run_op(self._library, op)
        return best, sums


def _groups(grid: GroupGrid, weight_NK: Tensor, importance_K: Tensor) -> Groups:
    n, k = weight_NK.shape
    return Groups(
        weight=weight_NK.float().contiguous(),
        importance=importance_K.float().contiguous(),
        table=torch.tensor(grid.table) if grid.table else None,
        n=n,
        k=k,
        group=grid.group,
        top=grid.top,
        zero=grid.zero,
    )
