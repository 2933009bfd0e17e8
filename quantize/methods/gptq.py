"""GPTQ: round column after column, and let the columns that follow make up for each error.

Source: Frantar et al., 2022 (arXiv 2210.17323). Columns are taken by falling second moment of their
inputs ("act-order"), but groups and their grids are those of the file's order and fixed before
("static groups"), so no permutation has to be stored.

Shape letters: N rows, K columns, B columns of a block.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...kernels.calibrator import Calibrator, PlainCalibrator
from ...kernels.formats.canonical import QuantizedLinear
from ..arithmetic import make_calibrator
from ..grid import CLIPS, Grid
from ..hessian import Hessian
from .base import UniformCodes

# Columns whose corrections are kept apart and applied to the rest at once.
_BLOCK = 128


def solve(
    weight_NK: Tensor,
    hessian: Hessian,
    grid: Grid,
    damping: float = 0.01,
    calibrator: Calibrator | None = None,
) -> Tensor:
    """Codes, uint8 [N, K], for which the squared error of the outputs is small.

    Args:
        weight_NK: float [N, K].
        hessian: of the inputs.
        grid: of each group of columns.
        damping: share of the diagonal's mean that is added to the diagonal.
        calibrator: rounds the columns of a block; None = plain torch.

    Raises:
        QuantizeError: as :meth:`..hessian.Hessian.factor`.
    """
    calibrator = calibrator or PlainCalibrator()
    order, factor = hessian.factor(damping)
    w = weight_NK.float().T[order]  # columns lie together: [K, N]
    scales, zeros = grid.scales.T.contiguous(), grid.zeros.T.contiguous()
    groups = (order // grid.group).int()
    codes = torch.empty(w.shape, dtype=torch.uint8)
    for begin in range(0, len(w), _BLOCK):
        end = min(begin + _BLOCK, len(w))
        own = factor[begin:end, begin:end]
        found, errors = calibrator.round_columns(
            w[begin:end], own, scales, zeros, groups[begin:end], grid.top
        )
        codes[order[begin:end]] = found
        w[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1)
    return codes.T.contiguous()


@dataclass(frozen=True, slots=True)
class GPTQQuantizer:
    """GPTQ on grids that are clipped by the expected error of outputs.

    Attributes:
        codes: what they are to be.
        damping: share of the mean of the Hessian's diagonal that is added to it.
        calibrated: it wants inputs.
        calibrator: does the arithmetic.
    """

    codes: UniformCodes
    damping: float = 0.01
    calibrated: bool = True
    calibrator: Calibrator = field(default_factory=make_calibrator)

    def quantize(self, name: str, weight_NK: Tensor, hessian: Hessian | None) -> QuantizedLinear:
        """See :class:`.base.Quantizer`; [N, K]."""
        assert hessian is not None
        grid = self.codes.fit(weight_NK, hessian.importance(), CLIPS, self.calibrator)
        codes = solve(weight_NK, hessian, grid, self.damping, self.calibrator)
        return self.codes.weight(name, grid, codes)
