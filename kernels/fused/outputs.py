"""Optional outputs that the row-wise ops share: values, group sums, codes for 8-bit products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..device.checks import check_tensor, require
from ..device.input_rounding import InputRounding, RoundedRows

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(slots=True)
class RowOutputs:
    """What one call wrote; tensors may be given buffers. Some may be None.

    Attributes:
        values: [T, D] in the activation dtype, or None when only codes were wanted.
        sums: float32 [T, ceil(D / G)] of groups of the rounded values.
        rounded: the values as inputs of 8-bit products.
    """

    values: Tensor | None = None
    sums: Tensor | None = None
    rounded: RoundedRows | None = None


def allocate(
    rows: int,
    width: int,
    like: Tensor,
    out: RowOutputs | None,
    group: int = 0,
    rounding: InputRounding | None = None,
    values: bool = True,
) -> RowOutputs:
    """Check the given buffers, or make new ones on the device of ``like``.

    Args:
        rows: T of the outputs.
        width: D of the outputs.
        like: any shape; gives ``values`` their dtype.
        out: buffers of ``values`` and ``sums`` to use where not None.
        group: G, values in a group: a power of two from 8; 0 = no ``sums`` [T, ceil(D / G)].
        rounding: with values [T, D] ``rounded`` so.
        values: with ``values`` [T, D].

    Raises:
        KernelInputError: a buffer or ``group`` does not fit, or nothing is to be written.
    """
    require(
        group == 0 or (group >= 8 and group & (group - 1) == 0),
        lambda: f"group is {group}; expected 0 or a power of two from 8",
    )
    require(values or rounding is not None, "nothing to write: no values and no rounding")
    device = like.device
    groups = -(-width // group) if group else 0

    def buffer(
        name: str, given: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        if given is None:
            return torch.empty(shape, dtype=dtype, device=device)
        check_tensor(name, given, shape, (dtype,), device)
        return given

    given = out if out is not None else RowOutputs()
    return RowOutputs(
        buffer("values", given.values, (rows, width), like.dtype) if values else None,
        buffer("sums", given.sums, (rows, groups), torch.float32) if group else None,
        None if rounding is None else rounding.empty(rows, width, device),
    )


def code_pointers(rounded: RoundedRows | None, stand_in: Tensor) -> tuple[Tensor, ...]:
    """Codes, scales and zero points as a kernel takes them, ``stand_in`` of any shape for none."""
    if rounded is None:
        return stand_in, stand_in, stand_in
    return rounded.codes, rounded.scale, rounded.scale if rounded.zero is None else rounded.zero


def code_constants(rounding: InputRounding | None) -> dict[str, Any]:
    """What a kernel is compiled for that may round its rows."""
    if rounding is None:
        return {"QUANT": False, "STATIC": False, "HAS_Z": False, "TOP": 0.0}
    return {"QUANT": True, **rounding.constants}
