"""Inputs of a matrix rounded by one scale that calibration chooses, not one for each token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...kernels.formats.canonical import ActivationFormat, QuantizedLinear
from ..hessian import Hessian
from ..ranges import InputRange, RangeRule
from .base import Quantizer


@dataclass(frozen=True, slots=True)
class StaticInputs:
    """A method whose weights meet statically rounded inputs.

    Attributes:
        method: makes the method for a way to round inputs.
        rule: how the range is chosen.
        symmetric: without a zero point.
        calibrated: it wants inputs.
    """

    method: Callable[[ActivationFormat], Quantizer]
    rule: RangeRule = "mse"
    symmetric: bool = False
    calibrated: bool = True

    def quantize(self, name: str, weight_NK: Tensor, hessian: Hessian | None) -> QuantizedLinear:
        """See :class:`.base.Quantizer`; [N, K]."""
        assert hessian is not None
        seen = InputRange(name)
        seen.add(hessian.sample_SK)
        act = seen.act_format(self.rule, self.symmetric)
        return self.method(act).quantize(name, weight_NK, hessian)
