"""The codebook linear layer."""

from __future__ import annotations

import torch
from torch import Tensor

from ..device import runtime
from ..device.expert_tiles import ExpertTiles
from ..device.workspace import Workspace
from ..fragments import product
from .layout import PackedCodebook


def codebook_linear(
    x_MK: Tensor,
    weight: PackedCodebook,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    exact: bool = False,
    workspace: Workspace | None = None,
) -> Tensor:
    """``x @ W.T + bias + residual`` -> [M, N] with weights ``scale * table[code]``.

    The table, rounded to the type of ``x``, lies in registers; scales multiply fp32 sums.
    Otherwise as :func:`halfbyte.kernels.w8a16.w8a16_linear`. Source of the formats: Dettmers et
    al., QLoRA, 2023. Raises KernelInputError.
    """
    lut = _lut(weight, x_MK, x_MK.dtype)
    return product.linear(x_MK, weight, lut, bias, residual, out, exact, workspace)


def codebook_grouped(
    x_PK: Tensor,
    weight: PackedCodebook,
    bias: Tensor | None,
    tiles: ExpertTiles,
    *,
    exact: bool,
    workspace: Workspace,
) -> Tensor:
    """Each row of ``x`` [P, K] times the matrix of its expert -> [P, N].

    ``weight`` holds those of all experts, ``bias`` is [E, N]; the rest as codebook_linear. Raises
    KernelInputError.
    """
    return product.grouped(
        x_PK, weight, _lut(weight, x_PK, x_PK.dtype), bias, tiles, exact, workspace
    )


def dequantize(weight: PackedCodebook, dtype: torch.dtype) -> Tensor:
    """The dense weight [N, K] from rounded table entries, in fp32, rounded once to ``dtype``."""
    size = (weight.stored_rows, weight.features)
    out = torch.empty(size, dtype=dtype, device=weight.words.device)
    lut = _lut(weight, out, dtype)
    return product.dequantize(weight, lut, dtype, 0, out)[: weight.rows]


def _lut(weight: PackedCodebook, x: Tensor, dtype: torch.dtype) -> Tensor:
    """What the kernel looks up: registers with PTX, else the entries themselves."""
    if runtime.use_ptx(x):
        return weight.lut_fp16 if dtype == torch.float16 else weight.lut_bf16
    assert weight.tables is not None
    return weight.tables.to(dtype)
