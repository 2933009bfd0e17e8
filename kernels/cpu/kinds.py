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
from typing import Any

import torch
from torch import Tensor

from ..formats.canonical import QuantizedLinear, Weight, WeightFormat, pack_codes
from ..formats.stored import WORDS, StoredLinear
from ..formats.weight_format import ZeroKind
from .arena import Arena
from .library import Library
from .pack import E4M3, Q4, Q8, T4, TiledLinear, pack_blocks, pack_dense, pack_tiles

_HALF, _FLOAT = 2, 4
# Rows that are unpacked at a time: temporaries of bit streams are several times the codes.
BLOCK = 1024


@dataclass(frozen=True, slots=True)
class CodeTiles:
    """Codes with a scale, and perhaps an offset, for each group.

    Attributes:
        name: for people.
        codes: what they are, for people.
        zeros: zero kinds of the formats that it takes.
        bits: of a code, 8 or 4; of 4 bits, eight share a word.
        number: of the layout in ``weight.h``.
        parts: what :func:`~.pack.pack_tiles` wants to know of a weight beside its scales.
    """

    name: str
    codes: str
    zeros: tuple[ZeroKind, ...]
    bits: int
    number: int
    parts: Callable[[QuantizedLinear], dict[str, Any]]

    @property
    def held(self) -> str:
        """What memory holds, for people."""
        return f"{self.bits}-bit codes"

    def accepts(self, form: WeightFormat | None, k: int) -> str | None:
        """Why the kind takes no ``k`` columns of a format (None: no codes); None if it does."""
        if form is None or form.zero not in self.zeros:
            return f"no {self.codes}"
        return _no_words(form, k) if self.bits == 4 else None

    def how(self, form: WeightFormat, k: int) -> str:
        """How it keeps codes that it accepts, in words."""
        why = _no_words(form, k)
        how = f"a byte each: {why}" if why else "eight to a word"
        return f"{form.bits}-bit {self.codes}, {how}"

    def packed_bytes(self, n: int, k: int, form: WeightFormat, half: bool) -> int:
        """Bytes of a weight [N, K], but for the padding of N to whole vectors.

        ``half``: the scales and offsets of the checkpoint are float16.
        """
        values = 2 if form.zero in ("int", "float") else 1
        # Offsets that are computed are no float16 numbers; with two of a kind neither are scales.
        stored = values == 1 or (form.zero == "float" and self.bits == 4)
        width = _HALF if half and stored else _FLOAT
        return n * k * self.bits // 8 + n * -(-k // _group(form, k)) * values * width

    def pack(
        self, arena: Arena, library: Library, weight: QuantizedLinear, bias: Tensor | None
    ) -> TiledLinear:
        """A weight [N, K] that the kind accepts and its bias [N], columns in their own order."""
        group, parts = _group(weight.format, weight.in_features), self.parts(weight)
        shape = weight.in_features, group
        packed = pack_tiles(arena, library, self.number, shape, weight.scales, bias, **parts)
        if weight.perm is not None and not _in_order(weight.perm):
            packed.order = weight.perm.to(torch.int32).contiguous()
        return packed


class DenseTiles:
    """Weights without codes in their own type, and codes that no kernel reads as float32."""

    name = held = "dense"

    def accepts(self, form: WeightFormat | None, k: int) -> str | None:
        """None: everything can be made dense."""
        return None

    def how(self, form: WeightFormat, k: int) -> str:
        """Why the codes are not kept."""
        return f"{form.bits}-bit indices: {_no_words(form, k)}; no kernel looks those up"

    def packed_bytes(self, n: int, k: int, form: WeightFormat | None, half: bool) -> int:
        """Bytes of a weight [N, K], ``half`` saying whether one without codes has 16 bits."""
        return n * k * (_HALF if half and form is None else _FLOAT)

    def pack(
        self, arena: Arena, library: Library, weight: Weight, bias: Tensor | None
    ) -> TiledLinear:
        """A weight [N, K] and its bias [N], columns in the input's order."""
        dense = weight if isinstance(weight, Tensor) else weight.dequantize(torch.float32)
        return pack_dense(arena, library, dense, bias)


TileKind = CodeTiles | DenseTiles


def kind_of(form: WeightFormat | None, k: int) -> TileKind:
    """The kind that takes ``k`` columns of a format; None stands for weights without codes."""
    return next(kind for kind in KINDS if kind.accepts(form, k) is None)


def pack_weight(arena: Arena, library: Library, weight: Weight, bias: Tensor | None) -> TiledLinear:
    """A weight [N, K] and its bias [N] in tiles of rows; the meaning is kept exactly."""
    if isinstance(weight, Tensor):
        return DENSE.pack(arena, library, weight, bias)
    packed, k = None, weight.in_features
    if isinstance(weight, StoredLinear) and weight.encoding != WORDS:
        packed = pack_blocks(arena, library, weight.encoding, weight.parts, k, bias)
    if packed is None:
        packed = kind_of(weight.format, k).pack(arena, library, weight, bias)
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


DENSE = DenseTiles()
KINDS: tuple[TileKind, ...] = (
    CodeTiles("float8", "floats", ("e4m3",), 8, E4M3, _float8),
    CodeTiles("table", "indices of a table", ("table",), 4, T4, _table),
    CodeTiles("nibbles", "integers", ("none", "int", "float"), 4, Q4, _integers),
    CodeTiles("bytes", "integers", ("none", "int", "float"), 8, Q8, _signed),
    DENSE,
)
"""All kinds; the first that accepts a weight takes it."""


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
    for start in range(0, n, BLOCK):
        rows = slice(start, min(start + BLOCK, n))
        yield rows, weight.rows(rows.start, rows.stop)


def _in_order(perm_K: Tensor) -> bool:
    return torch.equal(perm_K, torch.arange(perm_K.numel(), dtype=perm_K.dtype))
