"""Lay weights out for the C kernels: tiles of L rows, one row per vector lane.

See ``weight.h`` for the layout; the machine decides L. Shape letters: N rows, K columns, G groups,
P = N / L tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..reference import ActivationRule
from .arena import Arena

Q4, Q8, F32, F16, BF16, T4, E4M3 = range(7)
_DENSE = {torch.float32: F32, torch.float16: F16, torch.bfloat16: BF16}


@dataclass(slots=True)
class TiledLinear:
    """A weight [N, K] in the C kernels' layout.

    Attributes:
        kind: one of Q4, Q8, F32, F16, BF16, T4, E4M3.
        n: rows before padding to whole tiles.
        k: columns.
        group: columns that share a scale; K for dense weights.
        data: uint8, all tiles.
        half_scales: scales and offsets are half precision, else float.
        has_scales: False for dense weights.
        has_offsets: an offset is added after scaling.
        center: subtracted from every 4-bit integer code.
        bias: float32 [P * L] or None.
        table: float32 [16], what the codes of kind T4 stand for, or None.
        order: int32 [K]: column k multiplies input ``x[order[k]]``; None = in order.
        act: how inputs are quantized, or None when they are not.
    """

    kind: int
    n: int
    k: int
    group: int
    data: Tensor
    half_scales: bool
    has_scales: bool
    has_offsets: bool
    center: float
    bias: Tensor | None
    table: Tensor | None = None
    order: Tensor | None = None
    act: ActivationRule | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.n, self.k

    @property
    def takes_int8(self) -> bool:
        """Whether a product with quantized inputs is one of int8 by int8, scaled at the end."""
        act = self.act
        bare = self.kind == Q8 and self.group == self.k and not self.has_offsets
        return bare and act is not None and act.kind == "int8" and act.symmetric

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        return self.data.numel()


def pack_dense(
    arena: Arena, lanes: int, weight_NK: Tensor, bias_N: Tensor | None = None
) -> TiledLinear:
    """A float32, float16 or bfloat16 matrix [N, K] and a bias [N]."""
    n, k = weight_NK.shape
    data = arena.place(_tile(weight_NK, lanes))
    kind = _DENSE[weight_NK.dtype]
    bias = _pad_bias(bias_N, n, lanes)
    return TiledLinear(kind, n, k, k, _bytes(data), False, False, False, 0.0, bias)


def pack_q4(
    arena: Arena,
    lanes: int,
    codes: Tensor,
    k: int,
    group: int,
    scales_NG: Tensor,
    offsets_NG: Tensor | None,
    bias_N: Tensor | None = None,
    center: float = 0.0,
) -> TiledLinear:
    """4-bit codes uint8 [N, K / 2], low nibble first; K and the group are multiples of 8.

    ``w = scale * (code - center) + offset``.
    """
    words = _words(codes, k, group, lanes)
    n = codes.shape[0]
    return _pack(arena, lanes, Q4, n, k, group, words, scales_NG, offsets_NG, center, bias_N)


def pack_table(
    arena: Arena,
    lanes: int,
    codes: Tensor,
    k: int,
    group: int,
    scales_NG: Tensor,
    table: Tensor,
    bias_N: Tensor | None = None,
) -> TiledLinear:
    """4-bit codes uint8 [N, K / 2] as in :func:`pack_q4`: ``w = scale * table[code]``.

    ``table`` is float32 [16].
    """
    words = _words(codes, k, group, lanes)
    n = codes.shape[0]
    packed = _pack(arena, lanes, T4, n, k, group, words, scales_NG, None, 0.0, bias_N)
    packed.table = table
    return packed


def pack_q8(
    arena: Arena,
    lanes: int,
    signed_NK: Tensor,
    group: int,
    scales_NG: Tensor,
    offsets_NG: Tensor | None,
    bias_N: Tensor | None = None,
) -> TiledLinear:
    """int8 codes [N, K]: ``w = scale * code + offset``."""
    n, k = signed_NK.shape
    codes = _tile(_pad_columns(signed_NK, -k % group), lanes)
    return _pack(arena, lanes, Q8, n, k, group, codes, scales_NG, offsets_NG, 0.0, bias_N)


def pack_e4m3(
    arena: Arena,
    lanes: int,
    codes_NK: Tensor,
    group: int,
    scales_NG: Tensor,
    bias_N: Tensor | None = None,
) -> TiledLinear:
    """float8_e4m3fn as uint8 [N, K], none of them NaN: ``w = scale * value(code)``."""
    n, k = codes_NK.shape
    codes = _tile(_pad_columns(codes_NK, -k % group), lanes)
    return _pack(arena, lanes, E4M3, n, k, group, codes, scales_NG, None, 0.0, bias_N)


def _pack(
    arena: Arena,
    lanes: int,
    kind: int,
    n: int,
    k: int,
    group: int,
    codes: Tensor,
    scales: Tensor,
    offsets: Tensor | None,
    center: float,
    bias: Tensor | None,
) -> TiledLinear:
    """Join codes [P, X, L], scales and offsets [N, G] into records, group by group."""
    half = all(t is None or t.dtype == torch.float16 for t in (scales, offsets))
    dtype = torch.float16 if half else torch.float32
    groups = scales.shape[1]
    tiles = codes.shape[0]
    per_group = codes.shape[1] // groups
    parts = [codes.view(tiles, groups, per_group, lanes)]
    for values in (scales, offsets):
        if values is not None:
            parts.append(_tile(values.to(dtype), lanes))
    widths = [p[0, 0].numel() * p.element_size() for p in parts]
    data = arena.empty(tiles * groups * sum(widths)).view(tiles, groups, sum(widths))
    begin = 0
    for part, width in zip(parts, widths, strict=True):
        # Written in place: a second copy of a large matrix would show in the memory peak.
        target = data[:, :, begin : begin + width].view(part.dtype)
        target.view(part.shape).copy_(part)
        begin += width
    return TiledLinear(
        kind,
        n,
        k,
        group,
        data.flatten(),
        half,
        True,
        offsets is not None,
        center,
        _pad_bias(bias, n, lanes),
    )


def _words(codes: Tensor, k: int, group: int, lanes: int) -> Tensor:
    """4-bit codes [N, K / 2] as int32 words of eight [P, K / 8, L], whole groups of them."""
    return _tile(_pad_columns(codes, -k % group // 2).view(torch.int32), lanes)


def _tile(x_NX: Tensor, lanes: int) -> Tensor:
    """[N, X] -> [P, X, L], with rows of zeros after the last."""
    missing = -x_NX.shape[0] % lanes
    if missing:
        x_NX = torch.cat((x_NX, x_NX.new_zeros(missing, x_NX.shape[1])))
    return x_NX.view(-1, lanes, x_NX.shape[1]).transpose(1, 2)


def _pad_columns(x: Tensor, missing: int) -> Tensor:
    """Zeros after the last column, for a short last group."""
    return torch.cat((x, x.new_zeros(x.shape[0], missing)), dim=1) if missing else x


def _bytes(x: Tensor) -> Tensor:
    return x.flatten().view(torch.uint8)


def _pad_bias(bias: Tensor | None, n: int, lanes: int) -> Tensor | None:
    if bias is None:
        return None
    padded = torch.zeros(-(-n // lanes) * lanes)
    padded[:n] = bias
    return padded
