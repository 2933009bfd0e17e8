"""Canonical weights into the C kernels' layout: which kind keeps the codes as they are.

====================================  ==============================================
codes                                 kind
====================================  ==============================================
up to 4 bits, K and group whole 8s    nibbles: integers (Q4), or indices of a table (T4)
up to 4 bits, ragged; 5 to 8 bits     bytes (Q8)
float8_e4m3fn                         bytes (E4M3)
a table of 5 to 8 bits, or ragged     dense float32: no kernel looks those up
====================================  ==============================================

Codes leave out the rounding of weights to 16 bits that some formats have; see ``expand_rounded``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...kernels.cpu.arena import Arena
from ...kernels.cpu.library import Library
from ...kernels.cpu.pack import (
    TiledLinear,
    pack_blocks,
    pack_dense,
    pack_e4m3,
    pack_q4,
    pack_q8,
    pack_table,
)
from ...kernels.formats.canonical import QuantizedLinear, Weight, WeightFormat, pack_codes
from ...kernels.formats.stored import WORDS, StoredLinear

Codes = Literal["nibbles", "table", "bytes", "float8", "dense"]
"""How the C kernels keep the codes of a weight; ``dense`` is a matrix of float32."""

# Rows that are unpacked at a time: temporaries of bit streams are several times the codes.
BLOCK = 1024


def pack_weight(arena: Arena, library: Library, weight: Weight, bias: Tensor | None) -> TiledLinear:
    """A weight [N, K] and its bias [N] in tiles of rows; the meaning is kept exactly."""
    if isinstance(weight, Tensor):
        return pack_dense(arena, library, weight, bias)
    packed = None
    if isinstance(weight, StoredLinear) and weight.encoding != WORDS:
        packed = pack_blocks(
            arena, library, weight.encoding, weight.parts, weight.in_features, bias
        )
    if packed is None:
        packed = _pack_codes(arena, library, weight, bias)
    if packed is None:
        packed = pack_dense(arena, library, weight.dequantize(torch.float32), bias)
    elif weight.perm is not None and not _in_order(weight.perm):
        packed.order = weight.perm.to(torch.int32).contiguous()
    packed.act = weight.format.act
    return packed


def codes_kept(fmt: WeightFormat, k: int) -> tuple[Codes, str]:
    """How codes of ``k`` columns are kept, and why."""
    if fmt.zero == "e4m3":
        return "float8", "float8 codes as they are"
    group = k if fmt.group_size == -1 else min(fmt.group_size, k)
    words = fmt.bits <= 4 and k % 8 == 0 and group % 8 == 0
    ragged = f"{k} columns in groups of {group} are no whole eights"
    if fmt.zero == "table":
        if words:
            return "table", f"{fmt.bits}-bit indices of a table, eight to a word"
        why = ragged if fmt.bits <= 4 else f"{fmt.bits}-bit indices"
        return "dense", f"{why}: no kernel looks those up"
    if words:
        return "nibbles", f"{fmt.bits}-bit integers, eight to a word"
    if fmt.bits <= 4:
        return "bytes", f"{ragged}: a byte each"
    return "bytes", f"{fmt.bits}-bit integers, a byte each"


def expand_rounded(weight: Weight) -> Weight:
    """Codes [N, K] whose format rounds each weight to 16 bits, as exactly those; else as it is.

    The codes alone are a little more accurate than their tool's weights. Whoever asks for
    float32 wants the tool's answers, and pays with four times the memory of such a matrix.
    """
    if isinstance(weight, Tensor) or not weight.format.rounds:
        return weight
    n, k = weight.shape
    out = torch.empty(n, k, dtype=getattr(torch, weight.format.rounds))
    for start in range(0, n, BLOCK):
        rows = slice(start, min(start + BLOCK, n))
        out[rows] = weight.rows(rows.start, rows.stop).dequantize(out.dtype)
    return out


def _pack_codes(
    arena: Arena, library: Library, weight: QuantizedLinear, bias: Tensor | None
) -> TiledLinear | None:
    """The codes in the order of their columns, or None where no kind takes them."""
    fmt, k, scales = weight.format, weight.in_features, weight.scales
    group = k if fmt.group_size == -1 else min(fmt.group_size, k)
    kept, _ = codes_kept(fmt, k)
    if kept == "dense":
        return None
    if kept == "float8":
        return pack_e4m3(arena, library, weight.codes, group, scales, bias)
    if kept == "table":
        table = torch.zeros(16)
        table[: len(fmt.table)] = torch.tensor(fmt.table)
        return pack_table(arena, library, _nibbles(weight), k, group, scales, table, bias)
    # w = scale * (code - zero) = scale * code + offset; the product of a half-precision scale
    # and a small integer is exact in float32.
    offsets = weight.zeros
    if fmt.zero == "int":
        assert weight.zeros is not None
        offsets = -(scales.float() * weight.zeros.float())
    center = 1 << (fmt.bits - 1)
    if kept == "nibbles":
        middle = float(center) if fmt.zero == "none" else 0.0
        if isinstance(weight, StoredLinear) and weight.encoding == WORDS:
            codes = weight.parts
        else:
            codes = _nibbles(weight)
        return pack_q4(arena, library, codes, k, group, scales, offsets, bias, middle)
    if fmt.zero != "none":
        assert offsets is not None
        offsets = offsets.float() + scales.float() * center
    return pack_q8(arena, library, _bytes(weight), center, group, scales, offsets, bias)


def _nibbles(weight: QuantizedLinear) -> Tensor:
    """Codes of up to 4 bits in 4 each: uint8 [N, K / 2]."""
    if weight.format.bits == 4:
        return weight.codes
    n, k = weight.shape
    out = torch.empty(n, k // 2, dtype=torch.uint8)
    for start in range(0, n, BLOCK):
        block = weight.rows(start, min(start + BLOCK, n))
        out[start : start + BLOCK] = pack_codes(block.unpack(), 4)
    return out


def _bytes(weight: QuantizedLinear) -> Tensor:
    """Codes one per byte: uint8 [N, K]."""
    if weight.format.bits == 8:
        return weight.codes
    n, k = weight.shape
    out = torch.empty(n, k, dtype=torch.uint8)
    for start in range(0, n, BLOCK):
        out[start : start + BLOCK] = weight.rows(start, min(start + BLOCK, n)).unpack()
    return out


def _in_order(perm_K: Tensor) -> bool:
    return torch.equal(perm_K, torch.arange(perm_K.numel(), dtype=perm_K.dtype))
