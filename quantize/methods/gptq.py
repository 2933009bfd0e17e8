"""GPTQ: round column after column, and let the columns that follow make up for each error.

Source: Frantar et al., 2022 (arXiv 2210.17323). Columns are taken by falling second moment of their
inputs ("act-order"), but groups and their grids are those of the file's order and fixed before
("static groups"), so no permutation has to be stored.

Shape letters: N rows, K columns, B columns of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.formats.canonical import QuantizedLinear
from ..grid import CLIPS, Grid
from ..hessian import Hessian
from .base import UniformCodes

# Columns whose corrections are kept apart and applied to the rest at once.
_BLOCK = 128


def solve(weight_NK: Tensor, hessian: Hessian, grid: Grid, damping: float = 0.01) -> Tensor:
    """Codes, uint8 [N, K], for which the squared error of the outputs is small.

    Args:
        weight_NK: float [N, K].
        hessian: of the inputs.
        grid: of each group of columns.
        damping: share of the diagonal's mean that is added to the diagonal.

    Raises:
        QuantizeError: as :meth:`..hessian.Hessian.factor`.
    """
    order, factor = hessian.factor(damping)
    w = weight_NK.float()[:, order].T.contiguous()  # columns lie together: [K, N]
    codes = torch.empty(w.shape, dtype=torch.uint8)
    grids = [grid.column(k) for k in order.tolist()]
    for begin in range(0, len(w), _BLOCK):
        end = min(begin + _BLOCK, len(w))
        errors = torch.empty_like(w[begin:end])
        for k in range(begin, end):
            scale, zero = grids[k]
            q = (w[k] / scale + zero).round_().clamp_(0, grid.top)
            codes[k] = q
            errors[k - begin] = (w[k] - (q - zero) * scale) / factor[k, k]
            w[k + 1 : end].addr_(factor[k, k + 1 : end], errors[k - begin], alpha=-1)
        w[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1)
    out = torch.empty(w.shape[::-1], dtype=torch.uint8)
    out[:, order] = codes.T
    return out


@dataclass(frozen=True, slots=True)
class GPTQQuantizer:
    """GPTQ on grids that are clipped by the expected error of outputs.

    Attributes:
        codes: what they are to be.
        damping: share of the mean of the Hessian's diagonal that is added to it.
        calibrated: it wants inputs.
    """

    codes: UniformCodes
    damping: float = 0.01
    calibrated: bool = True

    def quantize(self, name: str, weight_NK: Tensor, hessian: Hessian | None) -> QuantizedLinear:
        """See :class:`.base.Quantizer`; [N, K]."""
        assert hessian is not None
        grid = self.codes.fit(weight_NK, hessian.importance(), CLIPS)
        codes = solve(weight_NK, hessian, grid, self.damping)
        return self.codes.weight(name, grid, codes)
