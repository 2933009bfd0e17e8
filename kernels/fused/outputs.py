"""Optional outputs that the row-wise ops share: values, group sums, int8 codes with scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..device.checks import check_tensor, require

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(slots=True)
class RowOutputs:
    """What one call wrote; every tensor may be a given buffer. Some may be None.

    Attributes:
        values: [T, D] in the activation dtype, or None when only codes were wanted.
        sums: float32 [T, ceil(D / G)] of groups of the rounded values.
        codes: int8 [T, D].
        scales: float32 [T], ``values ~ codes * scale``.
    """

    values: Tensor | None
    sums: Tensor | None
    codes: Tensor | None
    scales: Tensor | None


def allocate(
    rows: int,
    width: int,
    like: Tensor,
    out: RowOutputs | None,
    group: int,
    quantize: bool,
    values: bool,
) -> RowOutputs:
    """Check the given buffers, or make new ones on the device of ``like``.

    Args:
        rows: T of the outputs.
        width: D of the outputs.
        like: any shape; gives ``values`` their dtype.
        out: buffers to use where not None.
        group: G, values in a group: a power of two from 8; 0 = no ``sums`` [T, ceil(D / G)].
        quantize: with int8 ``codes`` [T, D] and float32 ``scales`` [T].
        values: with ``values`` [T, D].

    Raises:
        KernelInputError: a buffer or ``group`` does not fit, or nothing is to be written.
    """
    require(
        group == 0 or (group >= 8 and group & (group - 1) == 0),
        lambda: f"group is {group}; expected 0 or a power of two from 8",
    )
    require(values or quantize, "nothing to write: values and quantize are both off")
    device = like.device
    groups = -(-width // group) if group else 0

    def buffer(
        name: str, given: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        if given is None:
            return torch.empty(shape, dtype=dtype, device=device)
        check_tensor(name, given, shape, (dtype,), device)
        return given

    given = out if out is not None else RowOutputs(None, None, None, None)
    return RowOutputs(
        buffer("values", given.values, (rows, width), like.dtype) if values else None,
        buffer("sums", given.sums, (rows, groups), torch.float32) if group else None,
        buffer("codes", given.codes, (rows, width), torch.int8) if quantize else None,
        buffer("scales", given.scales, (rows,), torch.float32) if quantize else None,
    )
