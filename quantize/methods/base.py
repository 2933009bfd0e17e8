"""What a method of quantizing is: it makes the canonical weight of one matrix from it and its
statistics. To add one, write a class that satisfies :class:`Quantizer` in a module beside this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ...kernels.calibrator import Calibrator
from ...kernels.formats.canonical import (
    ActivationFormat,
    QuantizedLinear,
    WeightFormat,
    ZeroKind,
    pack_codes,
)
from ..grid import Grid, fit_grid
from ..hessian import Hessian

# With fewer bits a scale below 0 may lower the error, by 8 % with 4 bits; by 1 % with 8.
_SIGNED_BELOW = 8


@dataclass(frozen=True, slots=True)
class UniformCodes:
    """What codes are to be.

    Attributes:
        bits: 2 to 8.
        group: columns that share a scale; -1 = all.
        symmetric: without zero points.
        act: how inputs are rounded, or None.
    """

    bits: int = 4
    group: int = 128
    symmetric: bool = True
    act: ActivationFormat | None = None

    def format(self) -> WeightFormat:
        """What a matrix becomes."""
        kind: ZeroKind = "none" if self.symmetric else "int"
        return WeightFormat(self.bits, self.group, kind, act=self.act)

    def weight(self, name: str, grid: Grid, codes_NK: Tensor) -> QuantizedLinear:
        """Codes [N, K] on a grid as a canonical weight, its scales in float16."""
        zeros = None if self.symmetric else grid.zeros
        packed, k = pack_codes(codes_NK, self.bits), codes_NK.shape[1]
        return QuantizedLinear(name, self.format(), packed, grid.scales.half(), zeros, k)

    def fit(
        self,
        weight_NK: Tensor,
        importance_K: Tensor | None,
        clips: tuple[float, ...],
        calibrator: Calibrator | None = None,
    ) -> Grid:
        """A grid for a weight [N, K]; see :func:`..grid.fit_grid`."""
        group = weight_NK.shape[1] if self.group == -1 else self.group
        both_signs = self.bits < _SIGNED_BELOW and self.act is None and clips != (1.0,)
        return fit_grid(
            *(weight_NK, self.bits, group, self.symmetric, importance_K),
            *(clips, calibrator, both_signs),
        )


class Quantizer(Protocol):
    """A way to quantize."""

    def quantize(self, name: str, weight_NK: Tensor, hessian: Hessian | None) -> QuantizedLinear:
        """The matrix [N, K] in codes.

        Args:
            name: of the tensor.
            weight_NK: float [N, K].
            hessian: of its inputs; None where the method is not ``calibrated``.

        Raises:
            QuantizeError: the weights or the statistics do not allow it.
        """
        ...

    @property
    def calibrated(self) -> bool:
        """Whether inputs are wanted."""
        ...
