"""Kinds of tiles: how the C kernels keep a canonical weight [N, K], and which kind takes which.

====================================  ==============================================
codes                                 kind
====================================  ==============================================
up to 4 bits, K and group whole 8s    ``nibbles``, or ``table`` for indices of a table
other integers                        ``bytes``
float8_e4m3fn                         ``float8``: bytes
all others                            ``dense``: float32
====================================  ==============================================

Codes leave out the rounding of weights to 16 bits that some formats have; see ``expand_rounded``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..formats.canonical import QuantizedLinear, Weight, WeightFormat, pack_codes
from ..formats.stored import WORDS, StoredLinear
from ..formats.weight_format import InputRule, ZeroKind
from ..kind import NO_CODES, Kind, MatrixSpec, carrier
from .arena import Arena
from .inputs import default_rule
from .library import Library
from .ops import TileCodes
from .pack import E4M3, Q4, Q8, T4, TiledLinear, pack_blocks, pack_dense, pack_tiles

_HALF, _FLOAT = 2, 4
# Rows that are unpacked at a time: temporaries of bit streams are several times the codes.
_BLOCK = 1024


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
    ) -> TiledLinear:
        """An accepted weight [N, K] and its bias [N] in tiles of rows."""
        ...


@dataclass(slots=True)
class CodeTiles:
    """Codes with a scale, and perhaps an offset, for each group.

    Attributes:
        name: for tables and messages.
        held: what memory holds, for people.
        codes: what they are, for people.
        zeros: zero kinds of the formats that it takes.
        bits: of a code, 8 or 4; of 4 bits, eight share a word.
        number: of the layout in ``weight.h``.
        parts: makes the keyword arguments of :func:`~.pack.pack_tiles` from a weight.
    """

    name: str
    held: str
    codes: str
    zeros: tuple[ZeroKind, ...]
    bits: int
    number: TileCodes
    parts: Callable[[QuantizedLinear], dict[str, Any]]

    def accepts(self, spec: MatrixSpec, arch: int) -> str | None:
        """By the zero kind; nibbles only in whole eights."""
        if spec.format is None:
            return NO_CODES
        if spec.format.zero not in self.zeros:
            return f"codes are no {self.codes}"
        return _no_words(spec.format, spec.k) if self.bits == 4 else None

    def how(self, spec: MatrixSpec) -> str:
        """How many bits become how many, and why."""
        assert spec.format is not None
        why = _no_words(spec.format, spec.k)
        how = f"a byte each: {why}" if why else "eight to a word"
        return f"{spec.format.bits}-bit {self.codes}, {how}"

    def input_rule(self, spec: MatrixSpec, wanted: InputRule | None) -> InputRule:
        """What the run asks for, else what its figures say for the format."""
        assert spec.format is not None
        return wanted or default_rule(spec.format)

    def packed_bytes(self, spec: MatrixSpec) -> int:
        """Codes, scales and offsets, but for the padding of N to whole vectors."""
        form = spec.format
        assert form is not None
        values = 2 if form.zero in ("int", "float") else 1
        # Offsets that are computed are float32, and scales beside them, too.
        stored = values == 1 or (form.zero == "float" and self.bits == 4)
        width = _HALF if spec.dtype == "F16" and stored else _FLOAT
        groups = -(-spec.k // _group(form, spec.k))
        return spec.n * (spec.k * self.bits // 8 + groups * values * width)

    def pack(
        self, arena: Arena, library: Library, weight: Weight, bias: Tensor | None
    ) -> TiledLinear:
        """[N, K]; columns in the order of the codes, which the product follows."""
        assert isinstance(weight, QuantizedLinear)
        shape = weight.in_features, _group(weight.format, weight.in_features)
        parts = self.parts(weight)
        packed = pack_tiles(arena, library, self.number, shape, weight.scales, bias, **parts)
        if weight.perm is not None and not _in_order(weight.perm):
            packed.order = weight.perm.to(torch.int32).contiguous()
        return packed


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
        return f"indices of a table, {_no_words(spec.format, spec.k)}: no kernel looks those up"

    def input_rule(self, spec: MatrixSpec, wanted: InputRule | None) -> InputRule:
        """Floats always."""
        return "float"

    def packed_bytes(self, spec: MatrixSpec) -> int:
        """The elements, but for the padding of N to whole vectors."""
        plain = spec.format is None and spec.dtype != "F32"
        return spec.n * spec.k * (_HALF if plain else _FLOAT)

    def pack(
        self, arena: Arena, library: Library, weight: Weight, bias: Tensor | None
    ) -> TiledLinear:
        """[N, K]; columns in the order of the inputs."""
        dense = weight if isinstance(weight, Tensor) else weight.dequantize(torch.float32)
        return pack_dense(arena, library, dense, bias)


def pack_weight(arena: Arena, library: Library, weight: Weight, bias: Tensor | None) -> TiledLinear:
    """A weight [N, K] and its bias [N] in tiles of rows; the meaning is kept exactly."""
    packed = None
    if isinstance(weight, StoredLinear) and weight.encoding != WORDS:
        k, parts = weight.in_features, weight.parts
        packed = pack_blocks(arena, library, weight.encoding, parts, k, bias)
    if packed is None:
        found = carrier(TILE_KINDS, MatrixSpec.of(weight), 0)
        packed = found.kind.pack(arena, library, weight, bias)
    if isinstance(weight, QuantizedLinear):
        packed.act = weight.format.act
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


def _float8(weight: QuantizedLinear) -> dict[str, Any]:
    return {"codes": weight.codes}


def _table(weight: QuantizedLinear) -> dict[str, Any]:
    table = torch.zeros(16)
    table[: len(weight.format.table)] = torch.tensor(weight.format.table)
    return {"codes": _nibbles(weight), "table": table}


def _integers(weight: QuantizedLinear) -> dict[str, Any]:
    center = float(_middle(weight)) if weight.format.zero == "none" else 0.0
    if isinstance(weight, StoredLinear) and weight.encoding == WORDS:
        codes = weight.parts
    else:
        codes = _nibbles(weight)
    return {"codes": codes, "offsets": _offsets(weight), "center": center}


def _signed(weight: QuantizedLinear) -> dict[str, Any]:
    """Codes less their middle, which the offset gets back."""
    n, k = weight.shape
    codes, offsets, middle = weight.codes, _offsets(weight), _middle(weight)
    if weight.format.bits != 8:
        codes = torch.empty(n, k, dtype=torch.uint8)
        for rows, block in _blocks(weight):
            codes[rows] = block.unpack()
    if offsets is not None:
        offsets = offsets.float() + weight.scales.float() * middle
    return {"codes": codes, "offsets": offsets, "middle": middle}


_FOUR, _EIGHT = ("4-bit codes", "8-bit codes")
_INTEGERS: tuple[ZeroKind, ...] = ("none", "int", "float")
TILE_KINDS: tuple[TileKind, ...] = (
    CodeTiles("float8", _EIGHT, "floats", ("e4m3",), 8, E4M3, _float8),
    CodeTiles("table", _FOUR, "indices of a table", ("table",), 4, T4, _table),
    CodeTiles("nibbles", _FOUR, "integers", _INTEGERS, 4, Q4, _integers),
    CodeTiles("bytes", _EIGHT, "integers", _INTEGERS, 8, Q8, _signed),
    DenseTiles(),
)
"""All kinds; the first that accepts a weight carries it."""


def _group(form: WeightFormat, k: int) -> int:
    return k if form.group_size == -1 else min(form.group_size, k)


def _no_words(form: WeightFormat, k: int) -> str | None:
    """Why eight codes cannot share a word, or None."""
    if form.bits > 4:
        return "more than 4 bits"
    group = _group(form, k)
    return f"{k} columns in groups of {group} are no whole eights" if k % 8 or group % 8 else None


def _middle(weight: QuantizedLinear) -> int:
    return 1 << (weight.format.bits - 1)


def _offsets(weight: QuantizedLinear) -> Tensor | None:
    """[N, G] of ``w = scale * code + offset``; None for symmetric codes."""
    if weight.format.zero != "int":
        return weight.zeros
    assert weight.zeros is not None
    # The product of a half-precision scale and a small integer is exact in float32.
    return -(weight.scales.float() * weight.zeros.float())


def _nibbles(weight: QuantizedLinear) -> Tensor:
    """Codes of up to 4 bits in 4 each: uint8 [N, K / 2]."""
    if weight.format.bits == 4:
        return weight.codes
    n, k = weight.shape
    out = torch.empty(n, k // 2, dtype=torch.uint8)
    for rows, block in _blocks(weight):
        out[rows] = pack_codes(block.unpack(), 4)
    return out


def _blocks(weight: QuantizedLinear) -> Iterator[tuple[slice, QuantizedLinear]]:
    """The weight [N, K] in blocks of rows, each with its place."""
    n = weight.shape[0]
    for start in range(0, n, _BLOCK):
        rows = slice(start, min(start + _BLOCK, n))
        yield rows, weight.rows(rows.start, rows.stop)


def _in_order(perm_K: Tensor) -> bool:
    return torch.equal(perm_K, torch.arange(perm_K.numel(), dtype=perm_K.dtype))
