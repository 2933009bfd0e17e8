"""int8 keys and values: one scale per token and KV head."""

from __future__ import annotations

import torch
from torch import Tensor

from ..formats.activations import quantize_activations
from ..formats.weight_format import ActivationFormat

_RULE = ActivationFormat(top=127.0)


def quantize_kv(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes of the last dimension and their scale: ``x ~ codes * scale``.

    Args:
        x: [..., E] float.

    Returns:
        int8 [..., E] in -127..127 and float32 [...], the largest magnitude / 127, or 1 for zeros:
        the rule of activations with 127 at the top.
    """
    codes, scale = quantize_activations(x.reshape(-1, x.shape[-1]), _RULE)
    return codes.to(torch.int8).view(x.shape), scale.view(x.shape[:-1])


def dequantize_kv(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """``codes * scale`` in ``dtype``; shapes [..., E] and [...]."""
    return codes.to(dtype) * scale.to(dtype).unsqueeze(-1)
