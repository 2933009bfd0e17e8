"""The meaning of a codebook weight in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def dequantize(
    codes_NK: Tensor, scales: Tensor, table: Tensor, block: int, dtype: torch.dtype
) -> Tensor:
    """``scale * table[code]`` in float64 [N, K]; entries are rounded to ``dtype`` first."""
    n, k = codes_NK.shape
    t = table.to(dtype).double().reshape(-1, 16)
    entries = t.expand(n, 16).gather(1, codes_NK.long())
    if block == -1:
        return entries * scales.double().reshape(n, 1)
    per_element = scales.double().reshape(-1).repeat_interleave(block)[: n * k]
    return entries * per_element.view(n, k)
