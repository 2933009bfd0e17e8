"""Another method, or other settings, for each matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from halfbyte.errors import QuantizeError

from ...kernels.formats.canonical import QuantizedLinear
from ..hessian import Hessian
from .base import Quantizer


@dataclass(frozen=True, slots=True)
class MixedQuantizer:
    """Hands each matrix to the quantizer that was chosen for it.

    Attributes:
        by_module: module, such as ``model.layers.0.mlp.down_proj`` -> its quantizer.
    """

    by_module: Mapping[str, Quantizer]

    @property
    def calibrated(self) -> bool:
        """Whether one of them wants inputs."""
        return any(quantizer.calibrated for quantizer in self.by_module.values())

    def quantize(self, name: str, weight_NK: Tensor, hessian: Hessian | None) -> QuantizedLinear:
        """See :class:`.base.Quantizer`; [N, K]. Raises QuantizeError for an unknown matrix."""
        quantizer = self.by_module.get(name.removesuffix(".weight"))
        if quantizer is None:
            raise QuantizeError(
                f"no format was chosen for {name}", hint="measure all matrices of the model"
            )
        return quantizer.quantize(name, weight_NK, hessian)
