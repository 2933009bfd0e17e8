"""Rounding to nearest: on the full range of each group, or on clipped ranges that inputs choose."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ...kernels.calibrator import Calibrator
from ...kernels.formats.canonical import QuantizedLinear
from ..arithmetic import make_calibrator
from ..grid import CLIPS
from ..hessian import Hessian
from .base import UniformCodes


@dataclass(frozen=True, slots=True)
class NearestQuantizer:
    """Each weight to the nearest code.

    Attributes:
        codes: what they are to be.
        calibrated: ranges are clipped where that lowers the expected error of outputs; otherwise
            each group keeps its full range.
        calibrator: does the arithmetic.
    """

    codes: UniformCodes
    calibrated: bool = False
    calibrator: Calibrator = field(default_factory=make_calibrator)

    def quantize(self, name: str, weight_NK: Tensor, hessian: Hessian | None) -> QuantizedLinear:
        """See :class:`.base.Quantizer`; [N, K]."""
        if self.calibrated and hessian is not None:
            grid = self.codes.fit(weight_NK, hessian.importance(), CLIPS, self.calibrator)
        else:
            grid = self.codes.fit(weight_NK, None, (1.0,), self.calibrator)
        return self.codes.weight(name, grid, grid.codes(weight_NK))
