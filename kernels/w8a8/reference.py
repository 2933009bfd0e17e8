"""The meaning of the W8A8 product in plain torch, exact in float64."""

from __future__ import annotations

from torch import Tensor


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
