"""How the input of a linear layer is rounded before the product (W8A8): every rule, once.

The kernels in C and in Triton round as this does, bit for bit. Source of the formulas: those of
compressed-tensors, which divides by the scale and clamps before it rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .weight_format import ActivationFormat


def quantize_activations(x_TK: Tensor, rule: ActivationFormat) -> tuple[Tensor, Tensor]:
    """Codes less their zero point, float32 [T, K], and scales, float32 [T, 1], of inputs [T, K].

    ``q = round(clamp(x / scale + zero, low, high))``, ties to even, in float32; the input then
    stands for ``scale * (q - zero)``. ``q - zero`` is a whole number of at most 255 in size or a
    float8: exact in bfloat16, too. A scale of 0 (a row of zeros, or nearly) becomes 1. A row with
    a NaN or, where the scale is its own, an infinity has no meaning: its scale is no number.
    """
    x = x_TK.float()
    low = x.amin(-1, keepdim=True).clamp(max=0.0)
    high = x.amax(-1, keepdim=True).clamp(min=0.0)
    zero = x.new_full((x.shape[0], 1), float(rule.zero))
    if rule.scale is not None:
        scale = x.new_full((x.shape[0], 1), rule.scale)
    else:
        # Divided by tensors: torch may multiply by the reciprocal of a number.
        if rule.symmetric:
            scale = torch.maximum(high, -low) / x.new_tensor(rule.top)
        else:
            scale = (high - low) / x.new_tensor(255.0)
        scale = torch.where(scale == 0, 1.0, scale)
        if not rule.symmetric:
            zero = torch.round(-128.0 - low / scale).clamp(-128.0, 127.0)
    if rule.kind == "e4m3":
        return (x / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn).float(), scale
    return torch.round((x / scale + zero).clamp(-128.0, 127.0)) - zero, scale
