"""The packed form of an 8-bit weight for 8-bit activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..device.checks import check_tensor, require
from ..device.input_rounding import K_ALIGN, InputRounding

MAX_K = 131072
"""First K at which int8 sums could leave int32: 127 * 128 * K < 2**31 below it."""

MAX_K_ASYMMETRIC = 65794
"""The same with a zero point: |q - zero| <= 255, and 255 * 128 * K < 2**31 below it."""


@dataclass(frozen=True, slots=True)
class PackedW8A8:
    """An 8-bit weight [N, K] with one scale a row.

    Attributes:
        codes: int8 or float8_e4m3fn [N, K padded to 16], zeros beyond K.
        scales: float32 [N].
        colsum: int32 [N], the sum of each row's codes (for activations with a zero point); zeros
            for float8.
        shape: (N, K).
        dtype: float16 or bfloat16, the type of the product.
        rounding: of the input, or None where callers round it.
    """

    codes: Tensor
    scales: Tensor
    colsum: Tensor
    shape: tuple[int, int]
    dtype: torch.dtype
    rounding: InputRounding | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        return self.codes.numel() + 4 * self.scales.numel()

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [N, K]."""
        codes_NK = self.codes[:, : self.shape[1]]
        return (codes_NK.to(torch.float32) * self.scales[:, None]).to(dtype)


def stack_w8a8(parts: Sequence[PackedW8A8]) -> PackedW8A8 | None:
    """Weights of the same shape as row blocks of one, for products by expert.

    None where they round their inputs in different ways.
    """
    first = parts[0]
    for part in parts:
        if part.rounding is None or first.rounding is None:
            return None
        same = (part.shape, part.dtype) == (first.shape, first.dtype)
        if not same or not part.rounding.agrees(first.rounding):
            return None
    # Through uint8, because not every device can copy parts of float8 tensors.
    codes = torch.cat([part.codes.view(torch.uint8) for part in parts]).view(first.codes.dtype)
    scales = torch.cat([part.scales for part in parts])
    return replace(first, codes=codes, scales=scales, colsum=torch.cat([p.colsum for p in parts]))


def pack_w8a8(
    codes_NK: Tensor,
    scales_N: Tensor,
    *,
    dtype: torch.dtype = torch.float16,
    rounding: InputRounding | None = None,
) -> PackedW8A8:
    """Pack codes and channel scales; stays on the device of ``codes_NK``.

    ``codes_NK`` [N, K] is int8, float8_e4m3fn, or uint8 with the zero point 128 (the canonical
    symmetric form); ``scales_N`` has N elements of any float type and shape; ``w = scale * code``.
    ``dtype`` is the type of products, ``rounding`` that of their inputs. Raises KernelInputError
    for other types and shapes.
    """
    kinds = (torch.int8, torch.uint8, torch.float8_e4m3fn)
    check_tensor("codes", codes_NK, (None, None), kinds)
    require(
        dtype in (torch.float16, torch.bfloat16),
        lambda: f"dtype is {dtype}; expected float16 or bfloat16",
    )
    n, k = codes_NK.shape
    require(
        scales_N.numel() == n, lambda: f"{scales_N.numel()} scales for {n} rows; expected one a row"
    )
    require(
        0 < k < MAX_K, lambda: f"K is {k}; sums of 8-bit products fit 32 bits only below {MAX_K}"
    )
    if codes_NK.dtype == torch.uint8:
        codes_NK = (codes_NK ^ 128).view(torch.int8)
    # Through uint8, because not every device can fill or copy parts of float8 tensors.
    padded = torch.zeros(n, -(-k // K_ALIGN) * K_ALIGN, dtype=torch.uint8, device=codes_NK.device)
    padded[:, :k] = codes_NK.view(torch.uint8)
    if codes_NK.dtype == torch.int8:
        colsum = codes_NK.sum(1, dtype=torch.int32)
    else:
        colsum = torch.zeros(n, dtype=torch.int32, device=codes_NK.device)
    scales = scales_N.reshape(n).to(device=codes_NK.device, dtype=torch.float32).contiguous()
    return PackedW8A8(padded.view(codes_NK.dtype), scales, colsum, (n, k), dtype, rounding)
