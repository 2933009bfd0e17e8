"""Packing of 4-bit weights whose codes index a table of 16 values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..device.checks import check_tensor, require
from ..formats.code_tables import NF4
from ..fragments.layout import BYTE_SCALE_TYPES, Fragments, pack, pack_bytes, unpack_words


@dataclass(frozen=True, slots=True)
class PackedCodebook(Fragments):
    """A packed codebook weight; see :class:`Fragments`.

    Attributes:
        lut_fp16: int32 [1 or stored rows, 8], the tables as the kernel wants them: low bytes of
            the 16 entries in fp16, four a word, then high bytes.
        lut_bf16: the same in bf16.
    """

    lut_fp16: Tensor
    lut_bf16: Tensor


def pack_codebook(
    codes_NK: Tensor,
    scales: Tensor,
    table: Tensor | tuple[float, ...] = NF4,
    *,
    block: int = 64,
    factors: Tensor | None = None,
) -> PackedCodebook:
    """Pack a weight ``w = scale * table[code]``; stays on the device of ``codes_NK``.

    Args:
        codes_NK: uint8 [N, K], values 0 to 15, one code per element.
        scales: float, one per ``block`` consecutive elements of the flattened weight (absmax of
            bitsandbytes, already dequantized if nested): ceil(N * K / block) of them, any shape.
            With block -1: one a row. float8_e8m0fnu, or float8_e4m3fn without signs: [N, G], and
            they stay bytes.
        table: 16 values for all rows, or float [N, 16] for tables of rows (Lloyd-Max).
        block: 32 to 4096 elements, or -1. Where K is no multiple, the common divisor must be a
            multiple of 32. Scales of one byte have blocks of 16 or 32 of their rows.
        factors: float32 [N], which the e4m3 scales of each row are multiplied by.

    The table's entries are rounded to the type of the activations.

    Raises:
        KernelInputError: shapes, dtypes or block do not fit; codes exceed 15.
    """
    check_tensor("codes", codes_NK, (None, None), (torch.uint8,))
    n, k = codes_NK.shape
    device = codes_NK.device
    values = torch.as_tensor(table, dtype=torch.float32, device=device)
    values = values[None] if values.dim() == 1 else values
    require(
        tuple(values.shape) in ((1, 16), (n, 16)),
        lambda: f"table has shape {tuple(values.shape)}; expected 16 values or {(n, 16)}",
    )
    require(block == -1 or block > 0, lambda: f"block is {block}; expected a positive number or -1")
    if codes_NK.numel():
        top = int(codes_NK.max())
        require(top <= 15, lambda: f"codes go up to {top}; expected 4-bit codes, 0 to 15")
    if scales.dtype in BYTE_SCALE_TYPES:
        return _with_registers(pack_bytes(codes_NK, scales, factors, values, block))
    flat = scales.reshape(-1).to(torch.float32)
    count = n if block == -1 else -(-n * k // block)
    require(
        flat.numel() == count, lambda: f"{flat.numel()} scales; expected {count} for block {block}"
    )
    group = block
    if block != -1:
        # Blocks may straddle rows; pieces of the common divisor never do.
        group = math.gcd(block, k)
        require(
            group % 32 == 0 or n * k == 0,
            lambda: f"K is {k} with blocks of {block}: pieces of {group} do not fit a kernel",
            "dequantize this layer",
        )
        flat = flat.repeat_interleave(block // group)[: n * k // group]
    return _with_registers(pack(codes_NK, flat.reshape(n, -1), None, values, group, planes=4))


def _with_registers(p: Fragments) -> PackedCodebook:
    """The weight with its tables as the kernels look them up."""
    assert p.tables is not None
    luts = [_registers(p.tables.to(t)) for t in (torch.float16, torch.bfloat16)]
    own = p.words, p.scales, None, p.tables, p.rows, p.features, p.group, p.planes
    return PackedCodebook(*own, *luts, scale=p.scale, factors=p.factors)


def without_signs(codes_NK: Tensor, scales_NG: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """E2M1 codes, uint8 [N, K], that take over the signs of e4m3 scales [N, G], and those without.

    Negative scales are legal, though no tool writes them. Exponents (e8m0) have no sign.
    """
    raw = scales_NG.view(torch.uint8)
    if scales_NG.dtype != torch.float8_e4m3fn or not bool((raw & 0x80).any()):
        return codes_NK, scales_NG
    signs = (raw & 0x80) >> 4  # bit 3 of a code is its sign
    wide = signs.repeat_interleave(group, dim=1)[:, : codes_NK.shape[1]]
    return codes_NK ^ wide, (raw & 0x7F).view(torch.float8_e4m3fn)


def unpack_codebook(weight: PackedCodebook) -> Tensor:
    """Codes uint8 [N, K]."""
    return unpack_words(weight.words, weight.rows, weight.features, 4)


def _registers(values: Tensor) -> Tensor:
    """16-bit values [rows, 16] to int32 [rows, 8]: low bytes, then high bytes."""
    pairs = values.contiguous().view(torch.uint8).view(-1, 16, 2)
    return pairs.transpose(1, 2).contiguous().view(-1, 32).view(torch.int32)
