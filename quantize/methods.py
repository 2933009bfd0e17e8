"""Methods of quantizing: each makes the canonical weight of one matrix from it and its statistics.

To add one, write a class that satisfies :class:`Quantizer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..kernels.formats.canonical import QuantizedLinear, WeightFormat, pack_codes
from .gptq import solve
from .grid import CLIPS, Grid, fit_grid
from .hessian import Hessian


@dataclass(frozen=True, slots=True)
class UniformCodes:
    """What codes are to be.

    Attributes:
        bits: 2 to 8.
        group: columns that share a scale; -1 = all.
        symmetric: without zero points.
    """

    bits: int = 4
    group: int = 128
    symmetric: bool = True

    def weight(self, name: str, grid: Grid, codes_NK: Tensor) -> QuantizedLinear:
        """Codes [N, K] on a grid as a canonical weight, its scales in float16."""
        zeros = None if self.symmetric else grid.zeros
        form = WeightFormat(self.bits, self.group, "none" if self.symmetric else "int")
        packed, k = pack_codes(codes_NK, self.bits), codes_NK.shape[1]
        return QuantizedLinear(name, form, packed, grid.scales.half(), zeros, k)

    def fit(
        self,
        weight_NK: Tensor,
        importance_K: Tensor | None,
        clips: tuple[float, ...],
    ) -> Grid:
        """A grid for a weight [N, K]; see :func:`.grid.fit_grid`."""
        group = weight_NK.shape[1] if self.group == -1 else self.group
        return fit_grid(weight_NK, self.bits, group, self.symmetric, importance_K, clips)


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
        """See :class:`Quantizer`; [N, K]."""
        grid = self.codes.fit(weight_NK, None, (1.0,))
        return self.codes.weight(name, grid, grid.codes(weight_NK))


@dataclass(frozen=True, slots=True)
class GPTQQuantizer:
    """GPTQ on grids that are clipped by the expected error of outputs; see :mod:`.gptq`.

    Attributes:
        codes: what they are to be.
        damping: share of the mean of the Hessian's diagonal that is added to it.
        calibrated: it wants inputs.
    """

    codes: UniformCodes
    damping: float = 0.01
    calibrated: bool = True

    def quantize(self, name: str, weight_NK: Tensor, hessian: Hessian | None) -> QuantizedLinear:
        """See :class:`Quantizer`; [N, K]."""
        assert hessian is not None
        mean_KK = hessian.mean()
        grid = self.codes.fit(weight_NK, mean_KK.diagonal(), CLIPS)
        codes = solve(name, weight_NK, mean_KK, grid, self.damping)
        return self.codes.weight(name, grid, codes)
