"""Lay weights out for the C kernels: tiles of 16 rows, one row per vector lane.

See ``linear.c`` for the layout. Shape letters: N rows, K columns, G groups, P = N / 16 tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .arena import Arena

LANES = 16
Q4, Q8, F32, F16, BF16 = range(5)
_DENSE = {torch.float32: F32, torch.float16: F16, torch.bfloat16: BF16}


@dataclass(slots=True)
class TiledLinear:
    """A weight [N, K] in the C kernels' layout.

    Attributes:
        kind: one of Q4, Q8, F32, F16, BF16.
        n: rows before padding to whole tiles.
        k: columns.
        group: columns that share a scale; K for dense weights.
        codes: packed codes or elements.
        scales: [P, G, 16] half or float, or None for dense weights.
        offsets: like ``scales``, added after scaling, or None.
        center: subtracted from every 4-bit code.
        bias: float32 [P * 16] or None.
    """

    kind: int
    n: int
    k: int
    group: int
    codes: Tensor
    scales: Tensor | None
    offsets: Tensor | None
    center: float
    bias: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.n, self.k

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        parts = (self.codes, self.scales, self.offsets)
        return sum(t.numel() * t.element_size() for t in parts if t is not None)


def pack_dense(arena: Arena, weight_NK: Tensor, bias_N: Tensor | None = None) -> TiledLinear:
    """A float32, float16 or bfloat16 matrix."""
    n, k = weight_NK.shape
    tiles = arena.place(_tile(_pad_rows(weight_NK)))
    return TiledLinear(
        _DENSE[weight_NK.dtype], n, k, k, tiles, None, None, 0.0, _pad_bias(bias_N, n)
    )


def pack_q4(
    arena: Arena,
    codes: Tensor,
    k: int,
    group: int,
    scales_NG: Tensor,
    offsets_NG: Tensor | None,
    bias_N: Tensor | None = None,
) -> TiledLinear:
    """4-bit codes uint8 [N, K / 2], low nibble first; ``K`` must be a multiple of 8.

    Without offsets the codes are symmetric: ``w = scale * (code - 8)``; with them
    ``w = scale * code + offset``.
    """
    n = codes.shape[0]
    words = _pad_rows(codes).contiguous().view(torch.int32)
    scales, offsets = _pair(arena, scales_NG, offsets_NG)
    return TiledLinear(
        Q4,
        n,
        k,
        group,
        arena.place(_tile(words)),
        scales,
        offsets,
        8.0 if offsets_NG is None else 0.0,
        _pad_bias(bias_N, n),
    )


def pack_q8(
    arena: Arena,
    signed_NK: Tensor,
    group: int,
    scales_NG: Tensor,
    offsets_NG: Tensor | None,
    bias_N: Tensor | None = None,
) -> TiledLinear:
    """int8 codes [N, K]: ``w = scale * code + offset``."""
    n, k = signed_NK.shape
    scales, offsets = _pair(arena, scales_NG, offsets_NG)
    return TiledLinear(
        Q8,
        n,
        k,
        group,
        arena.place(_tile(_pad_rows(signed_NK))),
        scales,
        offsets,
        0.0,
        _pad_bias(bias_N, n),
    )


def _tile(x_NX: Tensor) -> Tensor:
    """[N, X] -> [P, X, 16]."""
    n, width = x_NX.shape
    return x_NX.view(n // LANES, LANES, width).transpose(1, 2)


def _pad_rows(x: Tensor) -> Tensor:
    missing = -x.shape[0] % LANES
    return torch.cat((x, x.new_zeros(missing, x.shape[1]))) if missing else x


def _pair(arena: Arena, scales: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both in one type: half when that loses nothing, else float."""
    half = all(t is None or t.dtype == torch.float16 for t in (scales, offsets))
    dtype = torch.float16 if half else torch.float32
    tiled = [
        None if t is None else _tile(_pad_rows(t.to(dtype))).contiguous() for t in (scales, offsets)
    ]
    assert tiled[0] is not None
    return tiled[0], tiled[1]


def _pad_bias(bias: Tensor | None, n: int) -> Tensor | None:
    if bias is None:
        return None
    padded = torch.zeros(-(-n // LANES) * LANES)
    padded[:n] = bias
    return padded
