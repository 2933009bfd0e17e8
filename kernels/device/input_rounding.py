"""How the inputs of 8-bit products are rounded, and such inputs; see ``formats.activations``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..formats.weight_format import ActivationFormat
from .checks import check_tensor, require
from .column_order import SLICE, ColumnOrder

K_ALIGN = 16
"""Rows of 8-bit codes are padded to a multiple of this many bytes: every load is a full one."""


@dataclass(frozen=True, slots=True, eq=False)
class InputRounding:
    """How the input of a product is rounded; see ``ActivationFormat``.

    Attributes:
        dtype: int8 or float8_e4m3fn.
        asymmetric: with a zero point.
        top: what the largest magnitude of a token becomes: 127 (codes from -127), 127.5 (codes from
            -128, as compressed-tensors rounds), 448 for float8.
        scale: float32 [1] on the device when static, else None.
        zero: int32 [1] on the device when static with a zero point, else None.
        order: of the columns of codes. Where it is not plain, codes of a top of 127 begin at -127
            (``int8-token``), and rows are padded to whole slices of 128.
    """

    dtype: torch.dtype = torch.int8
    asymmetric: bool = False
    top: float = 127.0
    scale: Tensor | None = None
    zero: Tensor | None = None
    order: ColumnOrder = "plain"

    def __post_init__(self) -> None:
        """Raise KernelInputError where no kernel rounds so."""
        tops = {torch.int8: (127.0, 127.5), torch.float8_e4m3fn: (448.0,)}
        require(self.top in tops.get(self.dtype, ()), lambda: f"top is {self.top} for {self.dtype}")
        require(self.dtype == torch.int8 or not self.asymmetric, "float8 has no zero points")
        static = self.asymmetric and self.scale is not None
        require((self.zero is not None) == static, "a static scale and its zero come together")
        if self.scale is not None:
            check_tensor("scale", self.scale, (1,), (torch.float32,))
        if self.zero is not None:
            check_tensor("zero", self.zero, (1,), (torch.int32,))

    @property
    def constants(self) -> dict[str, Any]:
        """What kernels that round by it are compiled for."""
        static = self.scale is not None
        return {"STATIC": static, "HAS_Z": self.asymmetric, "TOP": self.top}

    def agrees(self, other: InputRounding) -> bool:
        """Whether codes by this are those by the other; static scales are not looked at."""
        if self.scale is not None or other.scale is not None:
            return self is other
        mine, theirs = ((r.constants, r.dtype, r.order) for r in (self, other))
        return mine == theirs

    def empty(self, rows: int, width: int, device: torch.device) -> RoundedRows:
        """Unset codes and dynamic numbers of inputs [rows, width]."""
        scale, zero = self.scale, self.zero
        if scale is None:
            scale = torch.empty(rows, dtype=torch.float32, device=device)
            if self.asymmetric:
                zero = torch.empty(rows, dtype=torch.int32, device=device)
        align = K_ALIGN if self.order == "plain" else SLICE
        size = rows, -(-width // align) * align
        return RoundedRows(torch.empty(size, dtype=self.dtype, device=device), scale, zero)


@dataclass(frozen=True, slots=True)
class RoundedRows:
    """Inputs of products, rounded: ``x = scale * (codes - zero)``.

    Attributes:
        codes: int8 or float8_e4m3fn [T, K padded to 16 or 128]; what pads stands for nothing.
        scale: float32 [T], or [1] when static.
        zero: int32 [T] or [1], or None when symmetric.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None


def rule_of(rounding: InputRounding) -> ActivationFormat:
    """The rule by which a kernel rounds, for references."""
    return ActivationFormat(
        kind="int8" if rounding.dtype == torch.int8 else "e4m3",
        symmetric=not rounding.asymmetric,
        top=rounding.top,
        scale=None if rounding.scale is None else float(rounding.scale),
        zero=0 if rounding.zero is None else int(rounding.zero),
    )
