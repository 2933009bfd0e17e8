"""Launching the norms."""

# Launches: num_warps and num_stages are no parameters of the kernel that pyright sees.
# pyright: reportCallIssue=false

from __future__ import annotations

import torch
from torch import Tensor

from ..device import runtime
from ..device.checks import check_tensor, require
from ..device.dependent import dependent_launch, early_launch
from ..device.input_rounding import InputRounding
from .config import MAX_ROW, row_tile
from .norm_kernel import embed_norm_kernel, norm_kernel
from .outputs import FLOATS, RowOutputs, allocate, code_constants, code_pointers


def rms_norm(
    x_TD: Tensor,
    weight_D: Tensor,
    eps: float,
    *,
    residual_TD: Tensor | None = None,
    rows_S: Tensor | None = None,
    plus_one: bool = False,
    group: int = 0,
    rounding: InputRounding | None = None,
    values: bool = True,
    out: RowOutputs | None = None,
) -> RowOutputs:
    """``residual += x`` when given, then RMSNorm of it (else of ``x``).

    Args:
        x_TD: float16, bfloat16 or float32.
        weight_D: any float dtype; rounded to that of ``x`` unless ``plus_one``.
        eps: added to the mean square.
        residual_TD: any float dtype, updated in place.
        rows_S: int64; norm only these rows, to [S, D] outputs.
        plus_one: Gemma's ``1 + weight``.
        group: also write float32 sums of groups of this many rounded values (a power of two).
        rounding: also write the values rounded so.
        values: write the values themselves.
        out: buffers to fill; missing ones are allocated.

    Raises:
        KernelInputError: shapes or types do not fit, or D > 32768.
    """
    check_tensor("x", x_TD, (None, None), FLOATS)
    tokens, width = x_TD.shape
    check_tensor("weight", weight_D, (width,), FLOATS, x_TD.device)
    require(0 < width <= MAX_ROW, lambda: f"a row has {width} values; expected 1..{MAX_ROW}")
    if residual_TD is not None:
        check_tensor("residual", residual_TD, (tokens, width), FLOATS, x_TD.device)
        require(rows_S is None, "residual and rows cannot be given together")
    if rows_S is not None:
        check_tensor("rows", rows_S, (None,), (torch.int64, torch.int32), x_TD.device)
    count = tokens if rows_S is None else int(rows_S.shape[0])
    written = allocate(count, width, x_TD, out, group, rounding, values)
    if count == 0:
        return written
    block, num_warps = row_tile(width, group)
    early = dependent_launch(runtime.arch(runtime.device_index(x_TD)))
    norm_kernel[(count,)](
        x_TD,
        residual_TD if residual_TD is not None else x_TD,
        rows_S if rows_S is not None else x_TD,
        weight_D,
        _or(written.values, x_TD),
        _or(written.sums, x_TD),
        *code_pointers(written.rounded, x_TD),
        eps,
        D=width,
        BLOCK=block,
        GROUP=max(group, 1),
        ADD=residual_TD is not None,
        PICK=rows_S is not None,
        PLUS_ONE=plus_one,
        STORE=values,
        SUMS=group > 0,
        **code_constants(rounding),
        EARLY=early,
        num_warps=num_warps,
        **early_launch(early),
    )
    return written


def embed_norm(
    ids_T: Tensor,
    table_VD: Tensor,
    *,
    weight_D: Tensor | None = None,
    eps: float = 0.0,
    scale: float = 1.0,
    plus_one: bool = False,
    group: int = 0,
    residual_TD: Tensor | None = None,
    out: RowOutputs | None = None,
) -> tuple[Tensor, RowOutputs | None]:
    """Rows of an embedding table and, with a weight, their first norm -> (residual, norm).

    Args:
        ids_T: int64 or int32 [T]; an id outside of the table gives zeros.
        table_VD: float16, bfloat16 or float32 [V, D].
        weight_D: [D], any float dtype, of the first norm, or None for the rows alone.
        scale: factor on the rows (Gemma), rounded to the table's dtype.
        residual_TD: [T, D] buffer for the rows, in the table's dtype or float32.

    The other arguments and errors are those of :func:`rms_norm`.
    """
    check_tensor("ids", ids_T, (None,), (torch.int64, torch.int32))
    check_tensor("table", table_VD, (None, None), FLOATS, ids_T.device)
    tokens, width = int(ids_T.shape[0]), int(table_VD.shape[1])
    require(0 < width <= MAX_ROW, lambda: f"a row has {width} values; expected 1..{MAX_ROW}")
    if residual_TD is None:
        residual_TD = torch.empty(tokens, width, dtype=table_VD.dtype, device=ids_T.device)
    check_tensor("residual", residual_TD, (tokens, width), FLOATS, ids_T.device)
    written: RowOutputs | None = None
    if weight_D is not None:
        check_tensor("weight", weight_D, (width,), FLOATS, ids_T.device)
        written = allocate(tokens, width, table_VD, out, group)
    if tokens == 0:
        return residual_TD, written
    block, num_warps = row_tile(width, group)
    embed_norm_kernel[(tokens,)](
        ids_T,
        table_VD,
        residual_TD,
        weight_D if weight_D is not None else table_VD,
        _or(written.values if written else None, table_VD),
        _or(written.sums if written else None, table_VD),
        int(table_VD.shape[0]),
        scale,
        eps,
        D=width,
        BLOCK=block,
        GROUP=max(group, 1),
        SCALED=scale != 1.0,
        NORM=weight_D is not None,
        PLUS_ONE=plus_one,
        STORE=True,
        SUMS=group > 0,
        num_warps=num_warps,
    )
    return residual_TD, written


def _or(x: Tensor | None, stand_in: Tensor) -> Tensor:
    return stand_in if x is None else x
