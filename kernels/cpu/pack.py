"""Lay weights out for the C kernels: tiles of 32 rows, see ``weight.h``.

Shape letters: N rows, K columns, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..formats.activations import piece_columns
from ..formats.code_tables import E2M1, IQ4_NL
from ..formats.compact import ByteScales, CodedScales
from ..formats.stored import CODES_ALONE, HIGH_FIRST, INTERLEAVED
from ..formats.weight_format import ActivationFormat, InputRule
from ..kind import round_up
from . import ops
from .arena import Arena
from .enums import Added, BlockType, NumberType, TileCodes, TileValues
from .library import Library
from .ops import CHUNK, TILE

CACHE_LINE = 64
"""Bytes of one."""
SUPER = 256
"""Columns of a super-block."""

INTEGER_CODES = {
    bits: TileCodes[f"BITS{8 if bits == 7 else bits}"] for bits in (2, 3, 4, 5, 6, 7, 8)
}
"""Width of a code in the stream -> how it is kept."""

_WIDTHS = {
    TileCodes.BITS2: 2,
    TileCodes.BITS3: 3,
    TileCodes.BITS4: 4,
    TileCodes.BITS5: 5,
    TileCodes.BITS6: 6,
    TileCodes.BITS8: 8,
    TileCodes.TABLE: 4,
    TileCodes.E4M3: 8,
    TileCodes.F32: 32,
    TileCodes.F16: 16,
    TileCodes.BF16: 16,
}
_NUMBERS = {
    torch.float32: NumberType.F32,
    torch.float16: NumberType.F16,
    torch.bfloat16: NumberType.BF16,
    torch.float8_e8m0fnu: NumberType.E8M0,
    torch.float8_e4m3fn: NumberType.E4M3,
}
_BYTES = (NumberType.NESTED, NumberType.E8M0, NumberType.E4M3)
_DENSE = {
    torch.float32: TileCodes.F32,
    torch.float16: TileCodes.F16,
    torch.bfloat16: TileCodes.BF16,
}
# Bytes of a row in the head of a super-block.
_HEADS = {
    TileValues.NONE: 0,
    TileValues.K2: 20,
    TileValues.K3: 14,
    TileValues.K4: 16,
    TileValues.K6: 18,
    TileValues.XS: 8,
}
_SUPER_HALVES = (TileValues.K2, TileValues.K3, TileValues.K6)


@dataclass(frozen=True, slots=True)
class TileShape:
    """How one row of a weight [N, K] is cut and scaled, apart from N and the data.

    Attributes:
        codes: what the codes are.
        values: what scales them.
        k: columns.
        span: columns of a span, whole chunks.
        halves: scales belong to 16 columns.
        number: type of the scales and offsets of groups.
        added: what groups have beside a scale.
        center: subtracted from every integer code.
    """

    codes: TileCodes
    values: TileValues
    k: int
    span: int
    halves: bool = False
    number: NumberType = NumberType.F32
    added: Added = Added.NONE
    center: int = 0

    @property
    def takes_blocks(self) -> bool:
        """Whether products of integers can take them: entries of a table rounded to bytes."""
        return self.codes <= TileCodes.TABLE

    def tile_bytes(self, n: int) -> int:
        """Bytes of ``n`` rows in whole tiles: heads and whole chunks."""
        return -(-n // TILE) * self._tile

    def packed_bytes(self, n: int) -> int:
        """The same, but for the padding to whole tiles."""
        return n * self._tile // TILE

    @property
    def _tile(self) -> int:
        chunks, spans = -(-self.k // CHUNK), -(-self.k // self.span)
        whole, left = divmod(spans, self._together)
        heads = whole * self._together * self._head + round_up(left * self._head, CACHE_LINE)
        return chunks * CHUNK * TILE * _WIDTHS[self.codes] // 8 + heads

    @property
    def _together(self) -> int:
        """Spans whose heads lie side by side."""
        return next((t for t in (1, 2) if t * self._head % CACHE_LINE == 0), 4)

    @property
    def _head(self) -> int:
        """Bytes of a head."""
        if self.values != TileValues.GROUP:
            return TILE * _HEADS[self.values]
        size = 32 if self.number == NumberType.F32 else 8 if self.number in _BYTES else 16
        beside = {Added.NONE: 0, Added.ZERO: 8, Added.ZERO4: 4}.get(self.added, size)
        return TILE * (size + beside) * (1 + self.halves) // 8


def group_shape(
    codes: TileCodes, k: int, group: int, number: NumberType, added: Added, center: int
) -> TileShape | None:
    """A row with a scale for every ``group`` columns (-1: for all); None where tiles cannot.

    Groups of whole chunks are spans. Other groups of whole 16s are cut into such.
    """
    if group == -1 or group >= k:
        span, halves = -(-k // CHUNK) * CHUNK, False
    elif group % CHUNK == 0:
        span, halves = group, False
    elif group % 16 == 0:
        span, halves = CHUNK, True
    else:
        return None
    return TileShape(codes, TileValues.GROUP, k, span, halves, number, added, center)


def block_shape(type: BlockType, k: int) -> TileShape:
    """A row of GGUF blocks of one type."""
    name, group, half = type.name, TileValues.GROUP, NumberType.F16
    if name.endswith(("_0", "_1")):
        bits = int(name[1])
        offset = name.endswith("_1")
        added, center = (Added.OFFSET, 0) if offset else (Added.NONE, 1 << (bits - 1))
        return TileShape(INTEGER_CODES[bits], group, k, CHUNK, False, half, added, center)
    if type == BlockType.IQ4_NL:
        return TileShape(TileCodes.TABLE, group, k, CHUNK, False, half)
    if type == BlockType.MXFP4:
        return TileShape(TileCodes.TABLE, group, k, CHUNK, False, NumberType.E8M0)
    codes, values, center = {
        BlockType.Q2_K: (TileCodes.BITS2, TileValues.K2, 0),
        BlockType.Q3_K: (TileCodes.BITS3, TileValues.K3, 4),
        BlockType.Q4_K: (TileCodes.BITS4, TileValues.K4, 0),
        BlockType.Q5_K: (TileCodes.BITS5, TileValues.K4, 0),
        BlockType.Q6_K: (TileCodes.BITS6, TileValues.K6, 32),
        BlockType.IQ4_XS: (TileCodes.TABLE, TileValues.XS, 0),
    }[type]
    return TileShape(codes, values, k, SUPER, values in _SUPER_HALVES, center=center)


def dense_shape(dtype: torch.dtype, k: int) -> TileShape:
    """A row of plain numbers."""
    return TileShape(_DENSE[dtype], TileValues.NONE, k, -(-k // CHUNK) * CHUNK)


class TiledLinear(ops.Tiled):
    """A weight [N, K] in the C kernels' layout: all tiles, with a bias padded to whole ones.

    Attributes:
        order: int32 [K]: column k multiplies input ``x[order[k]]``; None = in order.
        act: how the format rounds inputs, or None when it does not.
        rule: how a run takes the inputs where the format does not say.
    """

    order: Tensor | None = None
    act: ActivationFormat | None = None
    rule: InputRule = "float"

    @property
    def piece(self) -> int:
        """Chunks whose products by inputs rounded row by row have one sum, at most 4."""
        if self.rule != "int8-token" or self.values != TileValues.GROUP or self.halves:
            return 1
        return piece_columns(self.span, self.k) // CHUNK

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.n, self.k

    @property
    def takes_int8(self) -> bool:
        """Whether a product with quantized inputs is one of int8 by int8, scaled at the end."""
        act = self.act
        bare = self.codes == TileCodes.BITS8 and self.span >= self.k and self.center == 128
        bare = bare and self.added == Added.NONE
        return bare and act is not None and act.kind == "int8" and act.symmetric

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        parts = (self.data, self.outer, self.firsts, self.factors)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)


def pack_dense(
    arena: Arena, library: Library, weight_NK: Tensor, bias_N: Tensor | None = None
) -> TiledLinear:
    """A float32, float16 or bfloat16 matrix [N, K] and a bias [N]."""
    n, k = weight_NK.shape
    packed = _empty(arena, dense_shape(weight_NK.dtype, k), n, bias_N)
    _pack_rows(library, packed, weight_NK.contiguous().view(torch.uint8), 8)
    return packed


def pack_blocks(
    arena: Arena,
    library: Library,
    type: BlockType,
    parts: Sequence[Tensor],
    k: int,
    bias_N: Tensor | None = None,
) -> TiledLinear | None:
    """GGUF rows of one block type, as stored: uint8 [N, bytes of a row] to be stacked along N.

    None where a scale or minimum is not finite.
    """
    stacked, n = _stackable(parts, 0, 1), sum(p.shape[0] for p in parts)
    packed = _empty(arena, block_shape(type, k), n, bias_N)
    if packed.codes == TileCodes.TABLE:
        packed.table = torch.tensor(E2M1 if type == BlockType.MXFP4 else IQ4_NL)
    bad = torch.zeros(1, dtype=torch.int32)
    start = 0
    for part in stacked:
        stop = start + part.shape[0]
        tiled, row_bytes = _rows(packed, start, stop), part.stride(0)
        op = ops.PackBlocks(tiled=tiled, source=part, bad=bad, row_bytes=row_bytes, type=type)
        run_op(library, op)
        start = stop
    return None if bad.item() else packed


def pack_groups(
    arena: Arena,
    library: Library,
    shape: TileShape,
    codes: Sequence[Tensor],
    encoding: str,
    bits: int,
    scales_NG: Tensor,
    added_NG: Tensor | None = None,
    bias_N: Tensor | None = None,
    table: Tensor | None = None,
    order: Tensor | None = None,
    compact: CodedScales | ByteScales | None = None,
) -> TiledLinear:
    """Codes, scales and what is added to them by groups, and a bias [N].

    Args:
        arena: where the tiles go.
        library: what fills them.
        shape: from :func:`group_shape`.
        codes: parts to be stacked along the rows.
        encoding: what they are, one of ``CODES_ALONE``.
        bits: of a code.
        scales_NG: in the type of ``shape.number``, those of a byte in uint8.
        added_NG: offsets or zero points of that type, or whole zero points in uint8, as
            ``shape.added`` says.
        bias_N: added to the product, or None.
        table: float32 [16], what codes stand for, or None.
        order: int32 [K], column k becomes code ``order[k]``; None = in order.
        compact: what scales of a byte mean.
    """
    scales = scales_NG.contiguous()
    added = None if added_NG is None else added_NG.contiguous()
    packed = _empty(arena, shape, scales.shape[0], bias_N)
    packed.table = table
    if isinstance(compact, CodedScales):
        packed.outer = torch.cat((compact.table, compact.outer.flatten()))
        packed.firsts = torch.zeros(-(-packed.n // TILE) * TILE, dtype=torch.int32)
        packed.firsts[: packed.n] = compact.firsts
        packed.run_shift = compact.run_shift
    elif compact is not None and compact.factors is not None:
        packed.factors = torch.ones(-(-packed.n // TILE) * TILE)
        packed.factors[: packed.n] = compact.factors
        packed.divides = compact.divides
    dim, rows = CODES_ALONE[encoding]
    start = 0
    for part in _stackable(codes, dim, rows):
        stop = start + part.shape[dim] * rows
        tiled, own = _rows(packed, start, stop), scales[start:]
        beside = None if added is None else added[start:]
        if dim == 0:
            first = encoding == HIGH_FIRST
            _pack_rows(library, tiled, part, bits, own, beside, order, high_first=first)
        else:
            op = ops.PackWords(
                tiled=tiled,
                source=part,
                scales=own,
                added=beside,
                order=order,
                row_words=part.stride(0),
                across=encoding == INTERLEAVED,
            )
            run_op(library, op)
        start = stop
    return packed


def number_type(dtype: torch.dtype) -> NumberType:
    """How scales of a float type are kept."""
    return _NUMBERS[dtype]


def _empty(arena: Arena, shape: TileShape, n: int, bias: Tensor | None) -> TiledLinear:
    """A weight [N, K] whose tiles are yet to be filled."""
    return TiledLinear(
        data=arena.empty(shape.tile_bytes(n)),
        bias=_pad_bias(bias, n),
        codes=shape.codes,
        values=shape.values,
        n=n,
        k=shape.k,
        span=shape.span,
        halves=shape.halves,
        number=shape.number,
        added=shape.added,
        center=shape.center,
    )


def _pack_rows(
    library: Library,
    packed: TiledLinear,
    codes: Tensor,
    bits: int,
    scales: Tensor | None = None,
    added: Tensor | None = None,
    order: Tensor | None = None,
    high_first: bool = False,
) -> None:
    """Fill all tiles from rows [N, bytes]."""
    codes = codes if codes.stride(1) == 1 else codes.contiguous()
    op = ops.PackRows(
        tiled=packed,
        source=codes,
        scales=scales,
        added=added,
        order=order,
        row_bytes=codes.stride(0),
        bits=bits,
        high_first=high_first,
    )
    run_op(library, op)


def _rows(packed: TiledLinear, start: int, stop: int) -> TiledLinear:
    """Rows of a weight, from a whole tile on."""
    tile = packed.data.numel() // -(-packed.n // TILE)
    return replace(packed, n=stop - start, data=packed.data[start // TILE * tile :])


def run_op(library: Library, op: ops.Op) -> None:
    """Run one op. Nothing follows at once, so the workers may sleep."""
    library.run(ops.RECORDS.pack(op)[0], 1, spin_us=0)


def _stackable(parts: Sequence[Tensor], dim: int, rows: int) -> Sequence[Tensor]:
    """Parts whose rows lie whole, or one joined along ``dim`` for a seam inside a tile.

    An element of that dimension has so many ``rows``.
    """
    if all(part.shape[dim] * rows % TILE == 0 for part in parts[:-1]):
        return [part if part.stride(1) == 1 else part.contiguous() for part in parts]
    return [torch.cat(list(parts), dim=dim)]


def _pad_bias(bias: Tensor | None, n: int) -> Tensor | None:
    if bias is None:
        return None
    padded = torch.zeros(-(-n // TILE) * TILE)
    padded[:n] = bias
    return padded
