"""The meaning of W8A8 in plain torch: row quantization and the product, exact in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def quantize_rows(
    x_MK: Tensor,
    *,
    asymmetric: bool = False,
    scale: Tensor | None = None,
    zero: Tensor | None = None,
    dtype: torch.dtype = torch.int8,
    top: float | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(q [M, K], scale [M] or the given [1], zero or None); see the kernel for the formulas.

    Products of two float32 are exact in float64, so ties are found as the kernel finds them.
    """
    x = x_MK.float()
    if scale is not None:
        inverse = 1.0 / scale.float().reshape(1, 1)
    elif asymmetric:
        low = x.amin(1).clamp(max=0.0)
        span = x.amax(1).clamp(min=0.0) - low
        scale, inverse = span / 255.0, _reciprocal(255.0, span)
        zero = (-128 - torch.round(low.double() * inverse.double())).int()
    else:
        top = top or (448.0 if dtype == torch.float8_e4m3fn else 127.0)
        high = x.abs().amax(1)
        scale, inverse = high / top, _reciprocal(top, high)
    if dtype == torch.float8_e4m3fn:
        return (x * inverse.reshape(-1, 1)).clamp(-448, 448).to(dtype), scale, None
    q = torch.round(x.double() * inverse.double().reshape(-1, 1))
    if zero is not None:
        q = (q + zero.reshape(-1, 1)).clamp(-128, 127)
    symmetric = zero is None and top in (None, 127.0)
    return q.clamp(-127 if symmetric else -128, 127).to(torch.int8), scale, zero


def w8a8_linear(
    xq_MK: Tensor,
    sx: Tensor,
    codes_NK: Tensor,
    scales_N: Tensor,
    zx: Tensor | None = None,
    bias_N: Tensor | None = None,
    residual_MN: Tensor | None = None,
) -> Tensor:
    """``sx * sw * ((xq - zx) @ codes.T) + bias + residual`` in float64 [M, N]."""
    x = xq_MK.double()
    if zx is not None:
        x = x - zx.double().reshape(-1, 1)
    y = x @ codes_NK.double().T
    y = y * sx.double().reshape(-1, 1) * scales_N.double().reshape(1, -1)
    if bias_N is not None:
        y = y + bias_N.double()
    return y if residual_MN is None else y + residual_MN.double()


def _reciprocal(top: float, high: Tensor) -> Tensor:
    return torch.where(high < 1e-30, torch.zeros_like(high), top / high)
