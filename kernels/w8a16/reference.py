"""The meaning of W8A16 in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import ZeroKind


def dequantize(
    codes_NK: Tensor, scales_NG: Tensor, zeros_NG: Tensor | None, zero: ZeroKind, group: int
) -> Tensor:
    """float64 [N, K]: ``s (q - 128)``, ``s (q - z)`` or ``s q + z``; q uint8, int8 = q - 128.

    ``e4m3``: ``s v``, v being the float8_e4m3fn of each byte.
    """
    k = codes_NK.shape[1]
    size = k if group == -1 else group
    if zero == "e4m3":
        spread = scales_NG.double().repeat_interleave(size, dim=1)[:, :k]
        return spread * codes_NK.view(torch.float8_e4m3fn).double()
    q = codes_NK.double() + (128 if codes_NK.dtype == torch.int8 else 0)
    s = scales_NG.double().repeat_interleave(size, dim=1)[:, :k]
    if zeros_NG is None:
        return s * (q - 128)
    z = zeros_NG.double().repeat_interleave(size, dim=1)[:, :k]
    return s * (q - z) if zero == "int" else s * q + z


def linear(
    x_MK: Tensor, w_NK: Tensor, bias_N: Tensor | None = None, residual_MN: Tensor | None = None
) -> Tensor:
    """``x @ w.T + bias + residual`` -> float64 [M, N]; any float or integer dtypes."""
    y = x_MK.double() @ w_NK.double().T
    y = y if bias_N is None else y + bias_N.double()
    return y if residual_MN is None else y + residual_MN.double()
