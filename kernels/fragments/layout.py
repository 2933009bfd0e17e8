"""Weights of 8-bit integers or 4-bit table codes in the order of tensor-core fragments.

A weight [N, K] is padded to 128 rows and to whole slices of ``32 * planes`` k; plane j of a slice
are its k = 32 j + e, e in 0..31. One int32 word holds all planes of one row and of the pair
(e, e + 1), e = 8 i + 2 t. With row = 16 a + 8 b + c in an atom of 64 rows, storage is

    [atom][slice][b: 2][a: 4][c: 8][t: 4][i: 4]                    int32, 4 KB an atom and slice

so that lane 4 c + t of a warp loads 16 contiguous bytes, the pairs that the tensor core wants
from it for four steps of k. Bits of a word, lowest first:

    2 planes, bytes:    plane 0 of e, plane 1 of e, plane 0 of e + 1, plane 1 of e + 1
    4 planes, nibbles:  e and e + 1 of plane 0, of plane 1, of plane 2, of plane 3

Scales and offsets: [groups + spare][atom][a][c][b]; fp16 where that is exact, else fp32. Scales of
one byte: the same with an int32 word for four groups that follow each other, the first in its
lowest bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ..device.checks import require

ByteScale = Literal["", "e8m0", "e4m3"]
BYTE_SCALE_TYPES: dict[torch.dtype, ByteScale] = {
    torch.float8_e8m0fnu: "e8m0",
    torch.float8_e4m3fn: "e4m3",
}
BYTE_GROUPS = (16, 32)
"""Groups that may have scales of one byte."""
FRAGMENT_ROWS = 64
FRAGMENT_ROW_ALIGN = 128


@dataclass(frozen=True, slots=True)
class Fragments:
    """A packed weight; see the module. ``w = scale * v + offset``, v the decoded code.

    Attributes:
        words: int32 [atoms, slices, 1024].
        scales: fp16 or fp32 [groups + spare, atoms * 64], or int32 words of bytes.
        offsets: the same, or None.
        tables: float32 [1 or stored rows, 16] of a codebook, else None.
        rows: N before padding.
        features: K before padding.
        group: k that share a scale: 32, 64, whole slices, or 0 = all of K; 16 with 2 planes.
        planes: 2 for 8-bit, 4 for 4-bit codes.
        scale: ``e8m0`` or ``e4m3`` for scales of one byte, else "".
        factors: float32 [atoms * 64] in the order of scales, of each row; None unless e4m3.
        float8: 8-bit codes are float8_e4m3fn, not integers.
    """

    words: Tensor
    scales: Tensor
    offsets: Tensor | None
    tables: Tensor | None
    rows: int
    features: int
    group: int
    planes: int
    scale: ByteScale = field(default="", kw_only=True)
    factors: Tensor | None = field(default=None, kw_only=True)
    float8: bool = field(default=False, kw_only=True)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K) of the weight as it was given."""
        return self.rows, self.features

    @property
    def slice(self) -> int:
        """k of one slice."""
        return 32 * self.planes

    @property
    def stored_rows(self) -> int:
        """Rows with padding."""
        return self.words.shape[0] * FRAGMENT_ROWS

    @property
    def narrow(self) -> bool:
        """See :func:`.config.most_tokens`."""
        return self.offsets is not None or (self.planes == 4 and self.group == 16)

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        parts = (self.words, self.scales, self.offsets, self.tables, self.factors)
        return sum(t.numel() * t.element_size() for t in parts if t is not None)


F = TypeVar("F", bound=Fragments)


def stack_fragments(parts: Sequence[F]) -> F | None:
    """Weights of the same shape as row blocks of one, for products by expert.

    None where they are packed in different ways.
    """
    first, changed = parts[0], {}
    for each in fields(first):
        values = [getattr(part, each.name) for part in parts]
        if not isinstance(values[0], Tensor):
            if any(value is not values[0] and value != values[0] for value in values):
                return None
            continue
        if any(v.dtype != values[0].dtype or v.shape != values[0].shape for v in values):
            return None
        by_group = each.name in ("scales", "offsets")
        if each.name == "words" or by_group or values[0].shape[0] > 1:
            changed[each.name] = torch.cat(values, dim=1 if by_group else 0)
        elif not all(torch.equal(value, values[0]) for value in values):
            return None  # one table each
    return replace(first, **changed)


def pack(
    codes_NK: Tensor,
    scales_NG: Tensor,
    offsets_NG: Tensor | None,
    tables: Tensor | None,
    group: int,
    planes: int,
) -> Fragments:
    """Pack uint8 codes [N, K]; ``group`` is a multiple of 32 (with 2 planes of 16) or -1.

    G = ceil(K / group), 1 for -1.
    """
    n, k = codes_NK.shape
    least = 16 if planes == 2 else 32
    require(
        group == -1 or (group > 0 and group % least == 0),
        lambda: f"group size {group} is not -1 or a multiple of {least}",
        "dequantize this layer",
    )
    groups = 1 if group == -1 else -(-k // group)
    for name, x in (("scales", scales_NG), ("zeros", offsets_NG)):
        require(
            x is None or tuple(x.shape) == (n, groups),
            f"{name} have shape {None if x is None else tuple(x.shape)}; expected {(n, groups)}",
        )
    size = 32 * planes
    if group != -1 and group % size:
        # Kernels know 16, 32, 64 and whole slices: other multiples repeat their scales.
        fine = math.gcd(group, size)
        scales_NG = scales_NG.repeat_interleave(group // fine, dim=1)
        if offsets_NG is not None:
            offsets_NG = offsets_NG.repeat_interleave(group // fine, dim=1)
        group = fine
    rows = -(-n // FRAGMENT_ROW_ALIGN) * FRAGMENT_ROW_ALIGN
    stored = max(group, 0)
    given = [scales_NG] if offsets_NG is None else [scales_NG, offsets_NG]
    per_row = _tables(given, rows, k, stored, size)
    if tables is not None:
        tables = tables.to(torch.float32)
        if tables.shape[0] != 1:
            tables = torch.cat((tables, tables.new_zeros(rows - n, 16)))
    return Fragments(
        words=pack_words(codes_NK, rows, planes),
        scales=per_row[0],
        offsets=per_row[1] if len(per_row) > 1 else None,
        tables=tables,
        rows=n,
        features=k,
        group=stored,
        planes=planes,
    )


def pack_bytes(
    codes_NK: Tensor, scales_NG: Tensor, factors_N: Tensor | None, tables: Tensor, group: int
) -> Fragments:
    """Pack uint8 codes [N, K] of 4 bits with scales of one byte in groups of 16 or 32.

    ``scales_NG`` is float8_e8m0fnu, or float8_e4m3fn without signs, and then ``factors_N`` has a
    float32 for each row.
    """
    n, k = codes_NK.shape
    kind, groups = BYTE_SCALE_TYPES[scales_NG.dtype], -(-k // group)
    require(group in BYTE_GROUPS, lambda: f"groups of {group} with scales of {kind}")
    require(
        tuple(scales_NG.shape) == (n, groups),
        lambda: f"scales have shape {tuple(scales_NG.shape)}; expected {(n, groups)}",
    )
    require((factors_N is None) == (kind == "e8m0"), "factors of rows are those of e4m3 scales")
    if kind == "e4m3":
        signed = bool((scales_NG.view(torch.uint8) & 0x80).any())
        require(not signed, "e4m3 scales have signs; expected numbers from 0 up")
    # Everything but the scales, which are all of K here.
    bare = pack(codes_NK, torch.ones(n, 1, device=codes_NK.device), None, tables, -1, planes=4)
    per_word = 4 * group
    padded = torch.zeros(n, -(-k // per_word) * 4, dtype=torch.uint8, device=codes_NK.device)
    padded[:, :groups] = scales_NG.view(torch.uint8)
    scales = _table(padded.view(torch.int32), bare.stored_rows, k, per_word, bare.slice)
    factors = None
    if factors_N is not None:
        column = factors_N.to(device=codes_NK.device, dtype=torch.float32)[:, None]
        factors = _table(column, bare.stored_rows, k, 0, bare.slice)[0].contiguous()
    return replace(bare, scales=scales, group=group, scale=kind, factors=factors)


def pack_words(codes_NK: Tensor, rows: int, planes: int) -> Tensor:
    """Codes uint8 [N, K] to words [rows / 64, slices, 1024]; padding holds code 0."""
    n, k = codes_NK.shape
    slices = -(-k // (32 * planes))
    q = codes_NK.new_zeros((rows, slices * 32 * planes))
    q[:n, :k] = codes_NK
    # Dimensions: atom, a, b, c, slice, plane, i, t, half.
    q = q.view(rows // FRAGMENT_ROWS, 4, 2, 8, slices, planes, 4, 4, 2)
    if planes == 2:
        q = q.permute(0, 4, 2, 1, 3, 7, 6, 8, 5)
    else:
        q = (q[..., 0] | q[..., 1] << 4).permute(0, 4, 2, 1, 3, 7, 6, 5)
    return q.reshape(rows // FRAGMENT_ROWS, slices, 4096).contiguous().view(torch.int32)


def unpack_words(words: Tensor, n: int, k: int, planes: int) -> Tensor:
    """Inverse of :func:`pack_words`: uint8 [n, k]."""
    atoms, slices, _ = words.shape
    q = words.contiguous().view(torch.uint8)
    if planes == 2:
        q = q.view(atoms, slices, 2, 4, 8, 4, 4, 2, 2).permute(0, 3, 2, 4, 1, 8, 6, 5, 7)
    else:
        q = q.view(atoms, slices, 2, 4, 8, 4, 4, 4).permute(0, 3, 2, 4, 1, 7, 6, 5)
        q = torch.stack((q & 15, q >> 4), dim=-1)
    return q.reshape(atoms * FRAGMENT_ROWS, slices * 32 * planes)[:n, :k].contiguous()


def unpack_scales(table: Tensor, n: int, groups: int) -> Tensor:
    """Scales or offsets [groups + spare, rows] to float32 [n, groups]."""
    t = table.float().view(table.shape[0], -1, 4, 8, 2).permute(1, 2, 4, 3, 0)
    return t.reshape(-1, table.shape[0])[:n, :groups].contiguous()


def _tables(given: list[Tensor], rows: int, k: int, group: int, size: int) -> list[Tensor]:
    """float [N, G] each to [groups + spare, rows], in one type: fp16 if that is exact for all."""
    wide = [x.to(torch.float32) for x in given]
    exact = all(bool((x.half().float() == x).all()) for x in wide)
    tables = [_table(x, rows, k, group, size) for x in wide]
    return [table.half() if exact else table for table in tables]


def _table(x_NG: Tensor, rows: int, k: int, group: int, size: int) -> Tensor:
    """Entries [N, G] to [groups + spare, rows], zeros where there are none."""
    slices = -(-k // size)
    groups = 1 if group == 0 else -(-slices * size // group)
    spare = size // group if 0 < group < size else 1
    table = x_NG.new_zeros((groups + spare, rows))
    used = min(groups, x_NG.shape[1])
    table[:used, : x_NG.shape[0]] = x_NG[:, :used].T
    table = table.view(-1, rows // FRAGMENT_ROWS, 4, 2, 8).permute(0, 1, 2, 4, 3)
    return table.reshape(groups + spare, rows).contiguous()
