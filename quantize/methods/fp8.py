"""Float8 weights, a scale for each row."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from halfbyte.errors import QuantizeError

from ...kernels.formats.canonical import ActivationFormat, QuantizedLinear, WeightFormat
from ..hessian import Hessian

_TOP = 448.0  # the largest float8_e4m3fn


@dataclass(frozen=True, slots=True)
class FP8Quantizer:
    """Each weight to the nearest float8_e4m3fn, the row's largest magnitude to its largest.

    Attributes:
        act: how inputs are rounded.
        calibrated: it wants no inputs.
    """

    act: ActivationFormat = field(default_factory=lambda: ActivationFormat("e4m3", top=_TOP))
    calibrated: bool = False

    def quantize(self, name: str, weight_NK: Tensor, hessian: Hessian | None) -> QuantizedLinear:
        """See :class:`.base.Quantizer`; [N, K]. Raises QuantizeError for what is not finite."""
        w = weight_NK.float()
        if not bool(w.isfinite().all()):
            raise QuantizeError(f"{name} has weights that are not finite; expected finite weights")
        scales = (w.abs().amax(1, keepdim=True) / _TOP).clamp(min=2.0**-14)
        codes = (w / scales).clamp_(-_TOP, _TOP).to(torch.float8_e4m3fn).view(torch.uint8)
        form = WeightFormat(8, -1, "e4m3", act=self.act)
        return QuantizedLinear(name, form, codes, scales, None, weight_NK.shape[1])
