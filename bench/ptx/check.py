"""Comparing what a kernel wrote with what it means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """One output of a kernel beside the truth.

    Attributes:
        name: of the output.
        share: the largest error in terms of what is allowed; infinite where it must be equal and
            is not.
    """

    name: str
    share: float

    @property
    def holds(self) -> bool:
        """Whether every element is as it must be."""
        return self.share <= 1.0


def within(name: str, got: Tensor, want: Tensor, allowed: Tensor | float) -> OutputCheck:
    """Every element of ``got`` [...] as near to ``want`` [...] as ``allowed`` (> 0) says."""
    error = (got.double() - want.double()).abs()
    share = (error / allowed).nan_to_num(nan=float("inf"))
    return OutputCheck(name, float(share.max()) if share.numel() else 0.0)


def same_bits(name: str, got: Tensor, want: Tensor) -> OutputCheck:
    """All bits of two tensors of the same shape and type."""
    alike = got.shape == want.shape and got.dtype == want.dtype
    if alike:
        alike = bool((_bits(got) == _bits(want)).all())
    return OutputCheck(name, 0.0 if alike else float("inf"))


def half_ulp(dtype: torch.dtype) -> float:
    """Error of one rounding to the nearest, relative to the value, and a little for float32."""
    return torch.finfo(dtype).eps * 0.5 + 1e-6


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)
