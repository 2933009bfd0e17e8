"""Rounding to nearest, without any text."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...kernels.formats.canonical import QuantizedLinear
from ..hessian import Hessian
from .base import UniformCodes


@dataclass(frozen=True, slots=True)
class NearestQuantizer:
    """Each weight to the nearest code of its group's full range.

    Attributes:
        codes: what they are to be.
        calibrated: it wants no inputs.
    """

    codes: UniformCodes
    calibrated: bool = False

    def quantize(self, name: str, weight_NK: Tensor, hessian: Hessian | None) -> QuantizedLinear:
        """See :class:`.base.Quantizer`; [N, K]."""
        grid = self.codes.fit(weight_NK, None, (1.0,))
        return self.codes.weight(name, grid, grid.codes(weight_NK))
