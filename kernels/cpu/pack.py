"""Lay weights out for the C kernels: tiles of L rows, one row per vector lane.

See ``weight.h`` for the layout; the machine decides L. Shape letters: N rows, K columns, G groups,
P = N / L tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..formats.weight_format import ActivationFormat
from . import ops
from .arena import Arena
from .library import Library
from .ops import BlockType, TileCodes

Q4, Q8, F32, F16, BF16, T4, E4M3 = TileCodes
# GGUF types that are packed as stored: kind, group, whether scales are half precision, whether
# there are offsets, center.
_AS_STORED = {
    BlockType.Q4_0: (Q4, 32, True, False, 8.0),
    BlockType.Q4_1: (Q4, 32, True, True, 0.0),
    BlockType.Q8_0: (Q8, 32, True, False, 0.0),
    BlockType.Q4_K: (Q4, 32, False, True, 0.0),
    BlockType.Q5_K: (Q8, 32, False, True, 0.0),
    BlockType.Q6_K: (Q8, 16, False, False, 0.0),
}
_DENSE = {torch.float32: F32, torch.float16: F16, torch.bfloat16: BF16}


class TiledLinear(ops.Tiled):
    """A weight [N, K] in the C kernels' layout: all tiles, with a bias padded to whole ones.

    Attributes:
        order: int32 [K]: column k multiplies input ``x[order[k]]``; None = in order.
        act: how inputs are quantized, or None when they are not.
    """

    order: Tensor | None = None
    act: ActivationFormat | None = None

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
    arena: Arena, library: Library, weight_NK: Tensor, bias_N: Tensor | None = None
) -> TiledLinear:
    """A float32, float16 or bfloat16 matrix [N, K] and a bias [N]."""
    n, k = weight_NK.shape
    kind, lanes = _DENSE[weight_NK.dtype], library.lanes
    data = arena.empty(-(-n // lanes) * lanes * k * weight_NK.element_size())
    bias = _pad_bias(bias_N, n, lanes)
    packed = TiledLinear(
        data=data,
        bias=bias,
        kind=kind,
        n=n,
        k=k,
        group=k,
        half_scales=False,
        has_scales=False,
        has_offsets=False,
        center=0.0,
    )
    _pack_rows(library, packed, weight_NK.contiguous().view(torch.uint8))
    return packed


def pack_blocks(
    arena: Arena,
    library: Library,
    form: str,
    parts: Sequence[Tensor],
    k: int,
    bias_N: Tensor | None = None,
) -> TiledLinear | None:
    """GGUF rows of one block type, as stored: uint8 [N, bytes of a row] to be stacked along N.

    None for types that have no such kernel, and where a scale or minimum is not finite.
    """
    if form not in BlockType.__members__:
        return None
    kind, group, half, has_offsets, center = _AS_STORED[BlockType[form]]
    stacked, n = _stackable(parts, library.lanes, 0), sum(p.shape[0] for p in parts)
    packed = _empty(arena, library.lanes, kind, n, k, group, half, has_offsets, center, bias_N)
    bad = torch.zeros(1, dtype=torch.int32)
    start = 0
    for part in stacked:
        stop = start + part.shape[0]
        tiled = _rows(library, packed, start, stop)
        row_bytes, number = part.stride(0), BlockType[form]
        op = ops.PackBlocks(tiled=tiled, source=part, bad=bad, row_bytes=row_bytes, type=number)
        _run(library, op)
        start = stop
    return None if bad.item() else packed


def pack_tiles(
    arena: Arena,
    library: Library,
    kind: TileCodes,
    shape: tuple[int, int],
    scales_NG: Tensor,
    bias_N: Tensor | None = None,
    *,
    codes: Tensor | Sequence[Tensor],
    offsets: Tensor | None = None,
    center: float = 0.0,
    middle: int = 0,
    table: Tensor | None = None,
) -> TiledLinear:
    """Codes, scales and offsets [N, G] into records, group by group, and a bias [N].

    Q4: ``w = scale * (code - center) + offset``; T4: ``w = scale * table[code]``; both for K and
    groups of whole eights. Q8: ``w = scale * (code - middle) + offset``, the difference being
    int8; E4M3: ``w = scale * value(code)``.

    Args:
        arena: where the tiles go.
        library: what fills them.
        kind: Q4, T4, Q8 or E4M3.
        shape: (K, columns of a group).
        scales_NG: in any float type.
        bias_N: added to the product, or None.
        codes: uint8 [N, K], or for Q4 and T4 [N, K / 2], low nibble first; for Q4 also int32
            words [K / 8, N], to be stacked along N.
        offsets: [N, G] or None.
        center: of Q4.
        middle: of Q8.
        table: float32 [16] of T4.
    """
    half = all(t is None or t.dtype == torch.float16 for t in (scales_NG, offsets))
    dtype = torch.float16 if half else torch.float32
    n, values = scales_NG.shape[0], scales_NG.to(dtype).contiguous()
    added = None if offsets is None else offsets.to(dtype).contiguous()
    has_offsets = added is not None
    packed = _empty(arena, library.lanes, kind, n, *shape, half, has_offsets, center, bias_N)
    packed.table = table
    if isinstance(codes, Tensor):
        _pack_rows(library, packed, codes, values, added, middle)
        return packed
    start = 0
    for part in _stackable(codes, library.lanes, 1):
        stop = start + part.shape[1]
        op = ops.PackWords(
            tiled=_rows(library, packed, start, stop),
            source=part,
            scales=values[start:],
            offsets=None if added is None else added[start:],
            row_words=part.stride(0),
        )
        _run(library, op)
        start = stop
    return packed


def _empty(
    arena: Arena,
    lanes: int,
    kind: TileCodes,
    n: int,
    k: int,
    group: int,
    half: bool,
    has_offsets: bool,
    center: float,
    bias: Tensor | None,
) -> TiledLinear:
    """A weight [N, K] with scales whose tiles are yet to be filled."""
    code_bytes = group * lanes // 2 if kind in (Q4, T4) else group * lanes
    value_bytes = lanes * (2 if half else 4)
    record = code_bytes + value_bytes * (1 + has_offsets)
    data = arena.empty(-(-n // lanes) * -(-k // group) * record)
    return TiledLinear(
        data=data,
        kind=kind,
        n=n,
        k=k,
        group=group,
        bias=_pad_bias(bias, n, lanes),
        half_scales=half,
        has_scales=True,
        has_offsets=has_offsets,
        center=center,
    )


def _pack_rows(
    library: Library,
    packed: TiledLinear,
    codes: Tensor,
    scales: Tensor | None = None,
    offsets: Tensor | None = None,
    middle: int = 0,
) -> None:
    """Fill all tiles from rows [N, bytes]; ``middle`` is subtracted from codes of a byte."""
    codes = codes if codes.stride(1) == 1 else codes.contiguous()
    op = ops.PackRows(
        tiled=packed,
        source=codes,
        scales=scales,
        offsets=offsets,
        row_bytes=codes.stride(0),
        middle=middle,
    )
    _run(library, op)


def _rows(library: Library, packed: TiledLinear, start: int, stop: int) -> TiledLinear:
    """Rows of a weight, from a whole tile on."""
    lanes = library.lanes
    tile = packed.data.numel() // -(-packed.n // lanes)
    return replace(packed, n=stop - start, data=packed.data[start // lanes * tile :])


def _run(library: Library, op: ops.Op) -> None:
    """Run one op. Nothing follows at once, so the workers may sleep."""
    library.run(ops.RECORDS.pack(op)[0], 1, spin_us=0)


def _stackable(parts: Sequence[Tensor], lanes: int, dim: int) -> Sequence[Tensor]:
    """Parts whose rows lie whole, or one joined along ``dim`` for a seam inside a tile."""
    if all(part.shape[dim] % lanes == 0 for part in parts[:-1]):
        return [part if part.stride(1) == 1 else part.contiguous() for part in parts]
    return [torch.cat(list(parts), dim=dim)]


def _pad_bias(bias: Tensor | None, n: int, lanes: int) -> Tensor | None:
    if bias is None:
        return None
    padded = torch.zeros(-(-n // lanes) * lanes)
    padded[:n] = bias
    return padded
