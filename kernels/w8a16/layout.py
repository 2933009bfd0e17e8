"""Packing of 8-bit weights for fp16 and bf16 activations."""

from __future__ import annotations

import torch
from torch import Tensor

from ..device.checks import check_tensor, require
from ..formats.weight_format import ZeroKind
from ..fragments.layout import Fragments, pack, unpack_words


class PackedW8A16(Fragments):
    """An 8-bit weight; see :class:`Fragments`. Decoded codes are ``byte - 128``, or float8."""

    __slots__ = ()


def pack_w8a16(
    codes_NK: Tensor,
    scales_NG: Tensor,
    zeros_NG: Tensor | None = None,
    *,
    zero: ZeroKind = "none",
    group: int = -1,
) -> PackedW8A16:
    """Pack an 8-bit weight; stays on the device of ``codes_NK``.

    Args:
        codes_NK: uint8 [N, K], or int8 (then code = value + 128); any N and K.
        scales_NG: float [N, G]; G = ceil(K / group), 1 for group -1.
        zeros_NG: [N, G] zero points (``int``) or added offsets (``float``); None for ``none``.
        zero: ``none``: w = s (q - 128); ``int``: w = s (q - z); ``float``: w = s q + z;
            ``e4m3``: w = s v, v being the float8_e4m3fn that a byte is.
        group: k that share a scale, a multiple of 16, or -1 for all of K. The last may be short.

    Raises:
        KernelInputError: shapes, dtypes or group do not fit.
    """
    check_tensor("codes", codes_NK, (None, None), (torch.uint8, torch.int8))
    require(
        zero in ("none", "int", "float", "e4m3"),
        lambda: f"zero kind is {zero!r}; expected none, int, float or e4m3",
    )
    require(
        (zeros_NG is None) == (zero in ("none", "e4m3")),
        lambda: f"zero kind is {zero!r} but zeros are {'absent' if zeros_NG is None else 'given'}",
    )
    float8 = zero == "e4m3"
    if codes_NK.dtype == torch.int8 and not float8:
        codes_NK = codes_NK.view(torch.uint8) ^ 128
    scales = scales_NG.to(torch.float32)
    offsets = None
    if zeros_NG is not None:
        # The kernel decodes v = q - 128: s (q - z) = s v + s (128 - z), s q + z = s v + 128 s + z.
        require(zeros_NG.shape == scales.shape, lambda: f"zeros have shape {tuple(zeros_NG.shape)}")
        zeros = zeros_NG.to(torch.float32)
        offsets = scales * (128 - zeros) if zero == "int" else scales * 128 + zeros
        if not bool(offsets.any()):
            offsets = None
    p = pack(codes_NK, scales, offsets, None, group, planes=2)
    own = p.words, p.scales, p.offsets, None, p.rows, p.features, p.group, p.planes
    return PackedW8A16(*own, float8=float8)


def unpack_w8a16(weight: PackedW8A16) -> Tensor:
    """Codes uint8 [N, K]."""
    return unpack_words(weight.words, weight.rows, weight.features, 2)
