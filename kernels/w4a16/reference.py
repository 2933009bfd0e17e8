"""The meaning of the W4A16 product in plain torch; slow, and the truth in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import PackedW4, unpack_w4


def dequantize(weight: PackedW4, dtype: torch.dtype = torch.float64) -> Tensor:
    """The weight [N, K] in the row order in which it was given, computed in ``dtype``."""
    codes, scales, offsets = unpack_w4(weight)
    k = weight.features
    span = k if weight.group == 0 else weight.group
    s_NK = scales.to(dtype).repeat_interleave(span, dim=1)[:, :k]
    o_NK = offsets.to(dtype).repeat_interleave(span, dim=1)[:, :k]
    q_NK = codes.to(dtype)
    if weight.shift >= 0:
        return s_NK * (q_NK - weight.shift)
    return s_NK * q_NK + o_NK if weight.additive else s_NK * (q_NK - o_NK)


def w4a16_linear_reference(
    x_MK: Tensor,
    weight: PackedW4,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """``x @ W.T``, plus bias [N], ``silu(gate) * up`` when gated, plus residual; in ``dtype``."""
    y = x_MK.to(dtype) @ dequantize(weight, dtype).T
    if bias is not None:
        y = y + bias.to(dtype)
    if weight.gated:
        gate, up = y.chunk(2, dim=-1)
        y = gate * torch.sigmoid(gate) * up
    return y if residual is None else y + residual.to(dtype)
