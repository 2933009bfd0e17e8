"""int8 keys and values: one scale per token and KV head."""

from __future__ import annotations

import torch
from torch import Tensor


def quantize_kv(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes of the last dimension and their scale: ``x ~ codes * scale``.

    Args:
        x: [..., E] float.

    Returns:
        int8 [..., E] in -127..127 and float32 [...], the largest magnitude / 127. Rounding is to
        nearest, ties to even.
    """
    x = x.to(torch.float32)
    largest = x.abs().amax(-1)
    inverse = torch.where(largest > 0, 127.0 / largest, torch.zeros_like(largest))
    codes = (x * inverse.unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8)
    return codes, largest * (1.0 / 127.0)


def dequantize_kv(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """``codes * scale`` in ``dtype``; shapes [..., E] and [...]."""
    return codes.to(dtype) * scale.to(dtype).unsqueeze(-1)
