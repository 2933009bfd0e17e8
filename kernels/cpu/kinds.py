"""Kinds of tiles: how the C kernels keep a canonical weight [N, K], and which kind takes which.

==========================================  ===============================================
weight                                      kind
==========================================  ===============================================
GGUF blocks, still as stored                ``blocks``: the file's bits
float8_e4m3fn                               ``float8``: bytes
indices of a table of up to 16 entries      ``table``: 4 bits
integers of 2 to 6 and 8 bits, in groups    ``integers``: as many bits (7: 8)
all others                                  ``dense``
==========================================  ===============================================

Groups are whole 16s, or all of K. Codes leave out the rounding of weights to 16 bits that some
formats have; see ``expand_rounded``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..formats.canonical import QuantizedLinear, Weight, WeightFormat
from ..formats.compact import ByteScales, CodedScales, CompactNumbers, FloatZeros
from ..formats.stored import CODES_ALONE, STREAM, StoredLinear
from ..formats.weight_format import InputRule, ZeroKind
from ..formats.whole import zero_points
from ..kind import NO_CODES, Kind, MatrixSpec, carrier
from .arena import Arena
from .enums import Added, BlockType, NumberType, TileCodes
from .inputs import default_rule
from .library import Library
from .ops import CHUNK
from .pack import (
    INTEGER_CODES,
    TiledLinear,
    TileShape,
    block_shape,
    dense_shape,
    group_shape,
    number_type,
    pack_blocks,
    pack_dense,
    pack_groups,
)

# Rows that are unpacked at a time: temporaries of bit streams are several times the codes.
_BLOCK = 1024
_FLOAT = 4  # bytes
_NESTED_CODES = 256  # entries of the table of nested scales
_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3": torch.float8_e4m3fn,
}


class TileKind(Kind, Protocol):
    """One way to keep weights for the C kernels.

    Attributes:
        held: what memory holds, for people.
    """

    held: str

    def how(self, spec: MatrixSpec) -> str:
        """What becomes of an accepted weight, in words."""
        ...

    def input_rule(self, spec: MatrixSpec, wanted: InputRule | None) -> InputRule:
        """How products round inputs where the weight's format leaves them alone.

        ``wanted`` is what the run asks for; None leaves it to the kind.
        """
        ...

    def pack(
        self, arena: Arena, library: Library, weight: Weight, bias: Tensor | None
    ) -> TiledLinear | None:
        """An accepted weight [N, K] and its bias [N] in tiles of rows.

        None where its data cannot be kept so after all; a later kind takes it then.
        """
        ...


class BlockTiles:
    """GGUF blocks, whose codes and scales stay the file's own bits."""

    name: str = "blocks"
    held: str = "blocks as in the file"

    def accepts(self, spec: MatrixSpec, arch: int) -> str | None:
        """Whatever is still stored in a type that the packer knows."""
        if spec.format is None:
            return NO_CODES
        if spec.encoding not in BlockType.__members__:
            return "codes are not stored as GGUF blocks"
        return None

    def how(self, spec: MatrixSpec) -> str:
        """The type."""
        return f"{spec.encoding} blocks, 32 rows side by side"

    def input_rule(self, spec: MatrixSpec, wanted: InputRule | None) -> InputRule:
        """What the run asks for, else what the figures say for the format."""
        assert spec.format is not None
        return wanted or default_rule(spec.format)

    def packed_bytes(self, spec: MatrixSpec) -> int:
        """The file's bytes, but for the padding of N to whole tiles."""
        return block_shape(BlockType[spec.encoding], spec.k).packed_bytes(spec.n)

    def pack(
        self, arena: Arena, library: Library, weight: Weight, bias: Tensor | None
    ) -> TiledLinear | None:
        """[N, K] from the stored rows; None where a scale is no finite number."""
        assert isinstance(weight, StoredLinear)
        form = BlockType[weight.encoding]
        return pack_blocks(arena, library, form, weight.parts, weight.in_features, bias)


@dataclass(slots=True)
class CodeTiles:
    """Codes with a scale, and perhaps an offset or a zero point, for each group.

    Attributes:
        name: for tables and messages.
        held: what memory holds, for people.
        codes: what they are, for people.
        zeros: zero kinds of the formats that it takes.
    """

    name: str
    held: str
    codes: str
    zeros: tuple[ZeroKind, ...]

    def accepts(self, spec: MatrixSpec, arch: int) -> str | None:
        """By the zero kind, and groups that chunks of columns can follow."""
        form = spec.format
        if form is None:
            return NO_CODES
        if form.zero not in self.zeros:
            return f"codes are no {self.codes}"
        if len(form.table) > 16:
            return f"the table has {len(form.table)} entries, more than 16"
        if self._shape(spec) is None:
            return f"groups of {form.group_size} columns are no whole 16s"
        return None

    def how(self, spec: MatrixSpec) -> str:
        """How many bits become how many."""
        assert spec.format is not None
        shape = self._shape(spec)
        assert shape is not None
        bits = spec.format.bits
        kept = {7: 8}.get(bits, bits) if shape.codes <= TileCodes.BITS8 else max(bits, 4)
        return f"{bits}-bit {self.codes} in {kept} bits"

    def input_rule(self, spec: MatrixSpec, wanted: InputRule | None) -> InputRule:
        """Floats where codes stand for no whole numbers; else as the run or the figures say."""
        assert spec.format is not None
        shape = self._shape(spec)
        assert shape is not None
        return (wanted or default_rule(spec.format)) if shape.takes_blocks else "float"

    def packed_bytes(self, spec: MatrixSpec) -> int:
        """Codes, scales, offsets and zero points, but for the padding of N to whole tiles."""
        shape = self._shape(spec)
        assert shape is not None
        size = shape.packed_bytes(spec.n)
        if shape.number == NumberType.NESTED:
            assert spec.compact is not None
            scales = spec.n * -(-spec.k // shape.span)
            size += _FLOAT * (spec.n + _NESTED_CODES + 2 * -(-scales // spec.compact.run))
        elif shape.number == NumberType.E4M3:
            size += _FLOAT * spec.n
        return size

    def pack(
        self, arena: Arena, library: Library, weight: Weight, bias: Tensor | None
    ) -> TiledLinear | None:
        """[N, K]; columns in the order of the codes, which the product follows."""
        assert isinstance(weight, QuantizedLinear)
        form, k = weight.format, weight.in_features
        numbers = _numbers(weight)
        scales, added = numbers.scales, numbers.added
        number = numbers.type
        shape = _row_shape(form, k, number, numbers.kept)
        assert shape is not None
        if shape.halves and form.group_size != 16:
            again = form.group_size // 16
            scales = scales.repeat_interleave(again, dim=1)[:, : -(-k // 16)]
            added = (
                None if added is None else added.repeat_interleave(again, dim=1)[:, : -(-k // 16)]
            )
        table = None
        if form.table:
            table = torch.zeros(16)
            table[: len(form.table)] = torch.tensor(form.table)
        order = None
        if weight.perm is not None and not _in_order(weight.perm):
            order = weight.perm.to(torch.int32).contiguous()
        if isinstance(weight, StoredLinear) and weight.encoding in CODES_ALONE:
            # Codes that are still in the file's order are put into that of the groups.
            codes, encoding, place = weight.parts, weight.encoding, order
        else:
            codes, encoding, place = (weight.codes,), STREAM, None
        packed = pack_groups(
            *(arena, library, shape, codes, encoding, form.bits),
            *(scales, added, bias, table, place, numbers.compact),
        )
        packed.order = order
        return packed

    def _shape(self, spec: MatrixSpec) -> TileShape | None:
        form = spec.format
        assert form is not None
        number, compact = number_type(_DTYPES[spec.dtype]), spec.compact
        added = {"int": Added.ZERO, "float": Added.OFFSET}.get(form.zero, Added.NONE)
        if added == Added.ZERO and form.bits <= 4:
            added = Added.ZERO4
        if compact is not None and compact.byte:
            number = number_type(_DTYPES[compact.dtype])
        elif compact is not None and form.zero == "float":
            number, added = number_type(_DTYPES[compact.dtype]), Added.FLOAT_ZERO
        elif compact is not None and _takes_nested(form, spec.k, compact.run):
            number = NumberType.NESTED
        return _row_shape(form, spec.k, number, added)


class DenseTiles:
    """Weights without codes in their own type, and codes that no kernel reads as float32."""

    name: str = "dense"
    held: str = "dense"

    def accepts(self, spec: MatrixSpec, arch: int) -> str | None:
        """Everything."""
        return None

    def how(self, spec: MatrixSpec) -> str:
        """Why there are no codes."""
        if spec.format is None:
            return NO_CODES
        return "no kernel reads such groups or tables: numbers in float32"

    def input_rule(self, spec: MatrixSpec, wanted: InputRule | None) -> InputRule:
        """Floats always."""
        return "float"

    def packed_bytes(self, spec: MatrixSpec) -> int:
        """The elements, but for the padding of N to whole tiles and of K to whole chunks."""
        dtype = _DTYPES[spec.dtype] if spec.format is None else torch.float32
        return dense_shape(dtype, spec.k).packed_bytes(spec.n)

    def pack(
        self, arena: Arena, library: Library, weight: Weight, bias: Tensor | None
    ) -> TiledLinear:
        """[N, K]; columns in the order of the inputs."""
        dense = weight if isinstance(weight, Tensor) else weight.dequantize(torch.float32)
        return pack_dense(arena, library, dense, bias)


def pack_weight(
    arena: Arena,
    library: Library,
    weight: Weight,
    bias: Tensor | None = None,
    wanted: InputRule | None = None,
) -> TiledLinear:
    """A weight [N, K] and its bias [N] in tiles of rows; the meaning is kept exactly.

    ``wanted`` is how the run asks inputs to be rounded; None leaves it to the kind.
    """
    spec = MatrixSpec.of(weight)
    kind = carrier(TILE_KINDS, spec, 0).kind
    packed = kind.pack(arena, library, weight, bias)
    if packed is None:
        # Not as stored. Converting tells what is wrong with the data, where something is.
        spec = replace(spec, encoding="")
        kind = carrier(TILE_KINDS, spec, 0).kind
        packed = kind.pack(arena, library, weight, bias)
    assert packed is not None
    if isinstance(weight, QuantizedLinear):
        packed.act = weight.format.act
        packed.rule = "float" if packed.act is not None else kind.input_rule(spec, wanted)
    return packed


def expand_rounded(weight: Weight) -> Weight:
    """Codes [N, K] whose format rounds each weight to 16 bits, as exactly those; else as it is.

    The codes alone are a little more accurate than their tool's weights. Whoever asks for
    float32 wants the tool's answers, and pays with four times the memory of such a matrix.
    """
    if isinstance(weight, Tensor) or not weight.format.rounds:
        return weight
    out = torch.empty(weight.shape, dtype=getattr(torch, weight.format.rounds))
    for rows, block in _blocks(weight):
        out[rows] = block.dequantize(out.dtype)
    return out


_INTEGERS: tuple[ZeroKind, ...] = ("none", "int", "float")
TILE_KINDS: tuple[TileKind, ...] = (
    BlockTiles(),
    CodeTiles("float8", "float8 codes", "floats", ("e4m3",)),
    CodeTiles("table", "4-bit codes", "indices of a table", ("table",)),
    CodeTiles("integers", "integer codes", "integers", _INTEGERS),
    DenseTiles(),
)
"""All kinds; the first that accepts a weight carries it."""


def _row_shape(form: WeightFormat, k: int, number: NumberType, added: Added) -> TileShape | None:
    """How rows of a format's codes are kept, or None when they cannot be."""
    center = 0
    if form.zero == "e4m3":
        codes = TileCodes.E4M3
    elif form.zero == "table":
        codes = TileCodes.TABLE
    else:
        codes = INTEGER_CODES[form.bits]
        center = 1 << (form.bits - 1) if form.zero == "none" else 0
    return group_shape(codes, k, form.group_size, number, added, center)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """What heads hold: scales and what is added to them, [N, G], and what bytes of scales mean."""

    scales: Tensor
    added: Tensor | None = None
    kept: Added = Added.NONE
    compact: CodedScales | ByteScales | None = None

    @property
    def type(self) -> NumberType:
        """Of the scales."""
        if self.compact is None:
            return number_type(self.scales.dtype)
        if isinstance(self.compact, CodedScales):
            return NumberType.NESTED
        return number_type(self.compact.scales.dtype)


def _numbers(weight: QuantizedLinear) -> _Numbers:
    """The numbers of a weight [N, K] in the fewest bits that keep them."""
    scales, zeros, form = weight.scales, weight.zeros, weight.format
    if scales.dtype not in _DTYPES.values():
        scales = scales.float()
    compact = weight.compact
    if compact is not None and _means(compact, weight):
        if isinstance(compact, FloatZeros):
            return _Numbers(compact.scales, compact.zeros, Added.FLOAT_ZERO)
        if isinstance(compact, ByteScales):
            return _Numbers(compact.scales.view(torch.uint8), compact=compact)
        if _takes_nested(form, weight.in_features, 1 << compact.run_shift):
            return _Numbers(compact.codes, compact=compact)
    if zeros is None:
        return _Numbers(scales)
    if form.zero == "int":
        points = zero_points(weight)
        if points is not None:
            small = form.bits <= 4 and int(points.max()) < 16
            return _Numbers(scales, points, Added.ZERO4 if small else Added.ZERO)
        # The product of a half-precision scale and a small integer is exact in float32.
        wide, offsets = scales.float(), -(scales.float() * zeros.float())
        return _Numbers(wide, offsets, Added.OFFSET)
    dtype = torch.promote_types(scales.dtype, zeros.dtype)
    return _Numbers(scales.to(dtype), zeros.to(dtype), Added.OFFSET)


def _takes_nested(form: WeightFormat, k: int, run: int) -> bool:
    """Whether kernels look up the scales of a weight with K columns themselves."""
    whole = form.group_size == -1 or form.group_size >= k or form.group_size % CHUNK == 0
    return run > 0 and form.zero == "table" and whole


def _means(compact: CompactNumbers, weight: QuantizedLinear) -> bool:
    """Whether it tells a weight's scales and offsets [N, G]; whoever changed those may forget."""
    scales, offsets = compact.numbers()
    if weight.zeros is None or offsets is None:
        return weight.zeros is offsets and torch.equal(scales, weight.scales)
    return torch.equal(scales, weight.scales) and torch.equal(offsets, weight.zeros)


def _blocks(weight: QuantizedLinear) -> Iterator[tuple[slice, QuantizedLinear]]:
    """The weight [N, K] in blocks of rows, each with its place."""
    n = weight.shape[0]
    for start in range(0, n, _BLOCK):
        rows = slice(start, min(start + _BLOCK, n))
        yield rows, weight.rows(rows.start, rows.stop)


def _in_order(perm_K: Tensor) -> bool:
    return torch.equal(perm_K, torch.arange(perm_K.numel(), dtype=perm_K.dtype))
