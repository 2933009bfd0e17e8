"""Lay weights out for the C kernels: tiles of L rows, one row per vector lane.

See ``weight.h`` for the layout; the machine decides L. Shape letters: N rows, K columns, G groups,
P = N / L tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..reference import ActivationRule
from .arena import Arena
from .library import PACK_BLOCKS, PACK_ROWS, PACK_WORDS, Library
from .library import record as make_record

Q4, Q8, F32, F16, BF16, T4, E4M3 = range(7)
# GGUF types that are packed as stored: number in blocks.c, kind, group, whether scales are half
# precision, whether there are offsets, center.
_FORMS = {
    "Q4_0": (0, Q4, 32, True, False, 8.0),
    "Q4_1": (1, Q4, 32, True, True, 0.0),
    "Q8_0": (2, Q8, 32, True, False, 0.0),
    "Q4_K": (3, Q4, 32, False, True, 0.0),
    "Q5_K": (4, Q8, 32, False, True, 0.0),
    "Q6_K": (5, Q8, 16, False, False, 0.0),
}
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
    arena: Arena, library: Library, weight_NK: Tensor, bias_N: Tensor | None = None
) -> TiledLinear:
    """A float32, float16 or bfloat16 matrix [N, K] and a bias [N]."""
    n, k = weight_NK.shape
    kind, lanes = _DENSE[weight_NK.dtype], library.lanes
    data = arena.empty(-(-n // lanes) * lanes * k * weight_NK.element_size())
    bias = _pad_bias(bias_N, n, lanes)
    packed = TiledLinear(kind, n, k, k, data, False, False, False, 0.0, bias)
    elements = weight_NK.contiguous().view(torch.uint8)
    _run(library, PACK_ROWS, packed, 0, [elements], 0, (None, None))
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
    if form not in _FORMS:
        return None
    number, kind, group, half, has_offsets, center = _FORMS[form]
    stacked, n = _stackable(parts, library.lanes, 0), sum(p.shape[0] for p in parts)
    packed = _empty(arena, library.lanes, kind, n, k, group, half, has_offsets, center, bias_N)
    bad = torch.zeros(1, dtype=torch.int32)
    _run(library, PACK_BLOCKS, packed, number, stacked, 0, (bad,))
    return None if bad.item() else packed


def pack_tiles(
    arena: Arena,
    library: Library,
    kind: int,
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
        _run(library, PACK_ROWS, packed, middle, [codes], 0, (values, added))
    else:
        words = _stackable(codes, library.lanes, 1)
        _run(library, PACK_WORDS, packed, 0, words, 1, (values, added))
    return packed


def _empty(
    arena: Arena,
    lanes: int,
    kind: int,
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
        kind, n, k, group, data, half, True, has_offsets, center, _pad_bias(bias, n, lanes)
    )


def _run(
    library: Library,
    op: int,
    packed: TiledLinear,
    number: int,
    parts: Sequence[Tensor],
    dim: int,
    values: tuple[Tensor | None, ...],
) -> None:
    """Fill the tiles from parts whose axis ``dim`` is N; all but the last are whole tiles."""
    lanes = library.lanes
    tile = packed.data.numel() // -(-packed.n // lanes)
    start = 0
    for part in parts:
        part = part if part.stride(1) == 1 else part.contiguous()
        n = part.shape[dim]
        sizes = (packed.kind, number, n, packed.k, packed.group, int(packed.half_scales))
        flags = (part.stride(0), 0, 0, int(packed.has_scales), int(packed.has_offsets))
        data = packed.data[start // lanes * tile :]
        rows = [v[start:] if v is not None and v.dim() == 2 else v for v in values]
        record = make_record(op, (*sizes, *flags), (packed.center,), (data, None, part, *rows))
        # Nothing follows at once, so the workers may sleep.
        library.run(record, 1, spin_us=0)
        start += n


def _stackable(parts: Sequence[Tensor], lanes: int, dim: int) -> Sequence[Tensor]:
    """The parts, or one joined along ``dim`` where a seam would lie inside a tile."""
    if all(part.shape[dim] % lanes == 0 for part in parts[:-1]):
        return parts
    return [torch.cat(list(parts), dim=dim)]


def _pad_bias(bias: Tensor | None, n: int, lanes: int) -> Tensor | None:
    if bias is None:
        return None
    padded = torch.zeros(-(-n // lanes) * lanes)
    padded[:n] = bias
    return padded
