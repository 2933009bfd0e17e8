"""Random 4-bit weights for the W4A16 tests."""

from __future__ import annotations

import torch


def random_weight(n, k, group, zero, seed, *, half=True):
    g = torch.Generator().manual_seed(seed)
    groups = 1 if group == -1 else -(-k // group)
    codes = torch.randint(0, 16, (n, k), generator=g, dtype=torch.uint8)
    scales = torch.rand(n, groups, generator=g) * 0.02 + 1e-3
    zeros = None
    if zero == "int":
        zeros = torch.randint(0, 17, (n, groups), generator=g).float()
    elif zero == "float":
        zeros = torch.randn(n, groups, generator=g) * 0.05
    if half:
        scales = scales.half()
        zeros = None if zeros is None else zeros.half()
    return codes, scales, zeros
