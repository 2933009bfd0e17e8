"""The W8A16 linear layer."""

from __future__ import annotations

import torch
from torch import Tensor

from ..device.expert_tiles import ExpertTiles
from ..device.workspace import Workspace
from ..fragments import product
from .layout import PackedW8A16


def w8a16_linear(
    x_MK: Tensor,
    weight: PackedW8A16,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    exact: bool = False,
    workspace: Workspace | None = None,
) -> Tensor:
    """``x @ W.T + bias + residual`` -> [M, N] with 8-bit weights.

    Accumulates in fp32 and rounds once, except for so many rows that a dequantized weight and a
    dense product are faster.

    Args:
        x_MK: fp16 or bf16 [M, K], contiguous; any M.
        weight: from :func:`~.layout.pack_w8a16`.
        bias: [N].
        residual: [M, N], may be ``out``.
        out: [M, N] to write to; allocated when None.
        exact: give each row the same bits whatever else is in ``x`` and however many rows it has.
        workspace: of this stream; required to keep a CUDA graph free of allocations.

    Raises:
        KernelInputError: shapes, dtypes, strides or devices do not fit.
    """
    return product.linear(x_MK, weight, None, bias, residual, out, exact, workspace)


def w8a16_grouped(
    x_PK: Tensor,
    weight: PackedW8A16,
    bias: Tensor | None,
    tiles: ExpertTiles,
    *,
    exact: bool,
    workspace: Workspace,
) -> Tensor:
    """Each row of ``x`` [P, K] times the matrix of its expert -> [P, N].

    ``weight`` holds those of all experts, ``bias`` is [E, N]; the rest as w8a16_linear. Raises
    KernelInputError.
    """
    return product.grouped(x_PK, weight, None, bias, tiles, exact, workspace)


def dequantize(weight: PackedW8A16, dtype: torch.dtype) -> Tensor:
    """The dense weight [N, K], computed in fp32 and rounded once to ``dtype``."""
    size = (weight.stored_rows, weight.features)
    out = torch.empty(size, dtype=dtype, device=weight.words.device)
    return product.dequantize(weight, None, dtype, 0, out)[: weight.rows]
