"""Rules of rounding activations, and rows that tell their implementations apart."""

from __future__ import annotations

import torch
from cpu_support import tokens
from torch import Tensor

from halfbyte.kernels.formats.canonical import ActivationFormat

RULES = {
    "token": ActivationFormat(),
    "token-127": ActivationFormat(top=127.0),
    "token-asym": ActivationFormat(symmetric=False),
    "tensor": ActivationFormat(scale=0.0173),
    "tensor-asym": ActivationFormat(symmetric=False, scale=0.0173, zero=-37),
    "e4m3-token": ActivationFormat("e4m3", top=448.0),
    "e4m3-tensor": ActivationFormat("e4m3", top=448.0, scale=0.0041),
}


def hard_rows(seed: int, width: int) -> Tensor:
    """Rows of every size, ties, zeros, one sign only, numbers that are hardly any."""
    sizes = torch.tensor([1.0, 1e-3, 300.0, 1e30, 1e-30, 1e-40])
    x = tokens(seed, 18, width)
    x[:6] *= sizes.unsqueeze(1)
    x[6] = 0
    x[7] = x[7].abs() + 1
    x[8] = -x[8].abs() - 1
    # With the scale 1: every half of a whole number, and 127.5 as the largest.
    x[9] = (torch.arange(width) % 255 - 127).float() + 0.5
    x[10] = 0.0173 * ((torch.arange(width) % 301) - 150 + 0.5)
    x[11] = 0.0041 * 2.0 ** -(torch.arange(width) % 24).float() * 449
    x[12] *= 1e-44
    x[13] *= 1e37
    x[14] = x[14].sign() * 3e38
    x[15] = x[15, 0]
    x[16] = -0.0
    x[17, 1:] = 0
    return x
