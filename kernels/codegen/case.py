"""What a case of a kernel is: a call that launches one shipped variant, and what must come out.

A family has its cases in ``cases.py`` beside its ``variants.py``: a function ``cases``, which
gives a :data:`PtxCase` by the kernel's dotted name. :mod:`halfbyte.bench.ptx` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..device.workspace import Workspace
from .launcher import Emulation
from .variant import Variant


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


PreparedCase = Callable[[], Sequence[OutputCheck]]
"""The call itself, inside of the emulation, and the comparison; may be called again."""

PtxCase = Callable[[Variant, Emulation, torch.Generator], PreparedCase]
"""Draws inputs for one variant, outside of the emulation."""

ELEMENT_TYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "i8": torch.int8,
    "fp8e4nv": torch.float8_e4m3fn,
}


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


def type_of(variant: Variant, pointer: str) -> torch.dtype:
    """The element type that an argument of a variant points at."""
    return ELEMENT_TYPES[variant.signature[pointer].removeprefix("*")]


def undefined_workspace(emulation: Emulation, partial_bytes: int = 1 << 20) -> Workspace:
    """A small workspace whose partial sums are undefined before every launch."""
    space = Workspace(
        torch.device("cpu"), partial_bytes=partial_bytes, counters=64, scratch_bytes=1 << 20
    )
    emulation.scratch.append(space.partials)
    return space


def product_error(
    x_MK: Tensor, w_NK: Tensor, size_NK: Tensor, dtype: torch.dtype, *, rounded: bool
) -> Tensor:
    """The largest errors of float32 sums [M, N] that roundings explain.

    Every addition rounds by 2**-24 of what has been summed up; errors of some thousand of them add
    up like a random walk, so 2**-20 of the terms' sum is far out. ``size`` bounds the terms: what
    the tensor core multiplies, a bias of the codes included. ``rounded``: weights are rounded to
    ``dtype`` first; each then has a deviation of at most half a unit / sqrt(3), so 4 halves are 7
    deviations.
    """
    x, w = x_MK.double(), w_NK.double()
    error = 2.0**-20 * (x.abs() @ size_NK.double().T)
    if rounded:
        half = torch.finfo(dtype).eps / 2
        error = error + 4 * half * (x.square() @ w.square().T).sqrt()
    return error


def rounded_once(want: Tensor, error: Tensor, dtype: torch.dtype) -> Tensor:
    """``error`` [M, N] and that of the result's rounding to the nearest; float16 ends at 6e-8."""
    return error + torch.finfo(dtype).eps / 2 * (want.abs() + error) + 1e-7


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)
