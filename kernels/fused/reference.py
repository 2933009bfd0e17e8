"""What the fused ops mean, in torch; every float tensor may be float64.

Shape letters: T tokens, D hidden size, I MLP width, G values in a group, H query heads, J
key/value heads, E head dimension, F half the rotated dimensions, V vocabulary, S tokens of a
block.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float, plus_one: bool = False) -> Tensor:
    """RMSNorm of [..., D] over the last dimension, in its dtype (Zhang and Sennrich, 2019).

    Plain: the normalised value is rounded to the dtype of ``x``, then multiplied. ``plus_one``
    (Gemma): it is multiplied by ``1 + weight`` before it is rounded.
    """
    wide = x_TD if x_TD.dtype == torch.float64 else x_TD.float()
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if plus_one:
        return (y * (1.0 + weight_D.to(y.dtype))).to(x_TD.dtype)
    return y.to(x_TD.dtype) * weight_D.to(x_TD.dtype)


def group_sums(x_TD: Tensor, group: int) -> Tensor:
    """Sums of ``group`` consecutive values, the last group cut short: [T, ceil(D / G)]."""
    wide = x_TD if x_TD.dtype == torch.float64 else x_TD.float()
    padding = -x_TD.shape[-1] % group
    return torch.nn.functional.pad(wide, (0, padding)).unflatten(-1, (-1, group)).sum(-1)


def gated(gate_up_TI2: Tensor, activation: str) -> Tensor:
    """``act(gate) * up`` [T, I], gate being the first half of a row.

    ``silu``, ``gelu_tanh``, or ``clipped_swiglu``: see :func:`~..reference.gated_mul`.
    """
    gate, up = gate_up_TI2.chunk(2, dim=-1)
    if activation == "clipped_swiglu":
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        return gate / (1.0 + torch.exp(-1.702 * gate)) * (up + 1.0)
    if activation == "silu":
        return gate * torch.sigmoid(gate) * up
    inner = 0.7978845608028654 * (gate + 0.044715 * gate**3)
    return 0.5 * gate * (1.0 + torch.tanh(inner)) * up
