"""Weights of any format with random content, for timing and checking."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .formats.canonical import QuantizedLinear
from .formats.weight_format import WeightFormat

_SIZE = 0.1
_E4M3_TOP = 448


def random_weight(form: WeightFormat, n: int, k: int, device: torch.device) -> QuantizedLinear:
    """A weight [N, K] with elements of about 0.1, float16 scales and no NaN, on ``device``."""
    shape = n, -(-k * form.bits // 8)
    codes = torch.randint(0, 256, shape, device=device, dtype=torch.uint8)
    if form.zero == "e4m3":
        codes[(codes & 127) == 127] = 126
    largest = {"table": 1, "e4m3": _E4M3_TOP}.get(form.zero, 1 << (form.bits - 1))
    size = n, 1 if form.group_size == -1 else -(-k // form.group_size)
    scales = ((torch.rand(size, device=device) + 0.5) * _SIZE / largest).to(torch.float16)
    zeros = None
    if form.zero == "int":
        zeros = torch.randint(0, 1 << form.bits, size, device=device).float()
    elif form.zero == "float":
        zeros = ((torch.rand(size, device=device) - 1.0) * _SIZE).to(torch.float16)
    return QuantizedLinear("random", form, codes, scales, zeros, k)


def clone(packed: Any) -> Any:
    """The same packed weight in memory of its own."""
    if isinstance(packed, Tensor):
        return packed.clone()
    assert is_dataclass(packed) and not isinstance(packed, type)
    have = {f.name: getattr(packed, f.name) for f in fields(packed)}
    return replace(packed, **{k: v.clone() for k, v in have.items() if isinstance(v, Tensor)})
