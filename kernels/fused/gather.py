"""Launching the gather of a step's inputs."""

# Launches: num_warps and num_stages are no parameters of the kernel that pyright sees.
# pyright: reportCallIssue=false

from __future__ import annotations

import torch
from torch import Tensor

from ..device.checks import check_tensor, require
from .config import next_power_of_2
from .gather_kernel import gather_kernel


def gather_step(
    rows_T: Tensor,
    positions_T: Tensor,
    tokens_RC: Tensor,
    tables_RW: Tensor,
    rope_table_PF2: Tensor,
    block_size: int,
    *,
    rope_shift_T: Tensor | None = None,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(token ids int64 [T], slots int64 [T], rope float32 [T, 2 F]) of a step's tokens.

    Args:
        rows_T: int32 or int64, row of each token; negative for padding.
        positions_T: int32, position of each token in its text; negative for padding.
        tokens_RC: int64, known tokens of every row.
        tables_RW: int32, block table of every row.
        rope_table_PF2: float32, cosines then sines by position.
        block_size: tokens of a KV block.
        rope_shift_T: int32, lines to add to the position (a second table below the first, for
            texts that rotate in another way), or None.
        out: the three results' buffers.

    Positions must lie inside of ``tokens`` and ``rope_table``; that is not checked. Padding gets
    id 0, slot -1 and no rotation.

    Raises:
        KernelInputError: shapes or types do not fit.
    """
    check_tensor("rows", rows_T, (None,), (torch.int32, torch.int64))
    count, device = int(rows_T.shape[0]), rows_T.device
    check_tensor("positions", positions_T, (count,), (torch.int32,), device)
    check_tensor("tokens", tokens_RC, (None, None), (torch.int64,), device)
    check_tensor("tables", tables_RW, (tokens_RC.shape[0], None), (torch.int32,), device)
    check_tensor("rope_table", rope_table_PF2, (None, None), (torch.float32,), device)
    columns = int(rope_table_PF2.shape[1])
    require(
        block_size > 0 and columns % 2 == 0, lambda: f"block size {block_size}, {columns} columns"
    )
    if rope_shift_T is not None:
        check_tensor("rope_shift", rope_shift_T, (count,), (torch.int32,), device)
    if out is None:
        out = (
            torch.empty(count, dtype=torch.int64, device=device),
            torch.empty(count, dtype=torch.int64, device=device),
            torch.empty(count, columns, dtype=torch.float32, device=device),
        )
    ids, slots, rope = out
    check_tensor("ids", ids, (count,), (torch.int64,), device)
    check_tensor("slots", slots, (count,), (torch.int64,), device)
    check_tensor("rope", rope, (count, columns), (torch.float32,), device)
    if count:
        gather_kernel[(count,)](
            rows_T,
            positions_T,
            tokens_RC,
            tables_RW,
            rope_table_PF2,
            rope_shift_T if rope_shift_T is not None else rows_T,
            ids,
            slots,
            rope,
            tokens_RC.stride(0),
            tables_RW.stride(0),
            PAGE=block_size,
            COLUMNS=columns,
            TILE=next_power_of_2(columns),
            SHIFT=rope_shift_T is not None,
            num_warps=1,
        )
    return out
