"""Packing of 4-bit weights for the W4A16 kernels: fragment order, one packing for every M.

Units. A weight [N, K] is padded to whole atoms of 64 rows and whole slices of 128 k. One 16-bit
unit holds the codes of k = e, 32 + e, 64 + e, 96 + e of one row and slice (e in 0..31), lowest
bits first and then rotated left by two bits, so that kernels find two of them where they want
them, and the others after swapping bytes. With e = 8 i + 2 t + half (i, t in 0..3) and
row = 16 a + 8 b + c, storage is

    [atom][slice][b: 2][a: 4][c: 8][t: 4][i: 4][half: 2]      int16, 4 KB an atom and slice

so that lane 4 c + t of a warp loads 16 contiguous bytes and they are the pairs of k that the
tensor-core fragment wants from it, for four consecutive 8-wide steps of k; a warp loads 512
contiguous bytes. Element (row, k) never moves between lanes afterwards.

Table. One entry per row and group: scale and offset, as two fp16 in an int32 where both are exact
in fp16, else as two fp32 in an int64 (scale in the low half). Storage [group][atom][a][c][b], with
spare groups at the end, because kernels load one step ahead. Three meanings, all exact:

    shift >= 0:      w = scale * (q - shift), one zero point for the whole matrix
    zero form:       w = scale * (q - offset)
    additive form:   w = scale * q + offset
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from halfbyte.errors import KernelInputError

from ..device.checks import require
from ..device.column_order import SLICE as SLICE
from ..formats.weight_format import ZeroKind

ATOM_ROWS = 64
ROW_ALIGN = 128


@dataclass(frozen=True, slots=True)
class PackedW4:
    """A packed 4-bit weight; see the module for the layout.

    Attributes:
        units: int16 [atoms, slices, 2048].
        table: int32 or int64 [groups + spare, atoms * 64].
        rows: N, rows of the weight before padding.
        features: K, before padding.
        group: k that share an entry: 32, 64, a multiple of 128, or 0 = all of K.
        shift: zero point of the whole matrix, or -1 when entries hold offsets.
        additive: the offset is added after scaling (else subtracted before).
        gated: rows are gate and up in alternating blocks of 64 (see :func:`interleave`).
    """

    units: Tensor
    table: Tensor
    rows: int
    features: int
    group: int
    shift: int
    additive: bool
    gated: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K) of the weight as it was given."""
        return self.rows, self.features

    @property
    def out_features(self) -> int:
        """Columns of the product: N, or N / 2 after ``silu(gate) * up``."""
        return self.rows // 2 if self.gated else self.rows

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        return sum(t.numel() * t.element_size() for t in (self.units, self.table))


def stack_w4(parts: Sequence[PackedW4]) -> PackedW4 | None:
    """Weights of the same shape as row blocks of one, for products by expert.

    None where they are packed in different ways.
    """
    first = parts[0]
    rest = dict.fromkeys(("rows", "features", "group", "shift", "additive", "gated"))
    alike = all(
        part.table.dtype == first.table.dtype
        and all(getattr(part, name) == getattr(first, name) for name in rest)
        for part in parts
    )
    if not alike:
        return None
    units = torch.cat([part.units for part in parts])
    return replace(first, units=units, table=torch.cat([part.table for part in parts], dim=1))


def supports(group: int) -> str | None:
    """None when scales shared by ``group`` k can be packed, else the reason why not."""
    if group == -1 or (group % 32 == 0 and group > 0):
        return None
    return f"group size {group} is not -1 or a multiple of 32"


def pack_w4(
    codes_NK: Tensor,
    scales_NG: Tensor,
    zeros_NG: Tensor | None = None,
    *,
    zero: ZeroKind = "none",
    group: int = 128,
    gated: bool = False,
) -> PackedW4:
    """Pack a 4-bit weight.

    Args:
        codes_NK: uint8 [N, K], values 0 to 15, one code per element; any N and K.
        scales_NG: float [N, G]; G = ceil(K / group), 1 for group -1.
        zeros_NG: [N, G] zero points (``int``) or added offsets (``float``); None for ``none``.
        zero: ``none``: w = s (q - 8); ``int``: w = s (q - z); ``float``: w = s q + z.
        group: k that share a scale, a multiple of 32, or -1 for all of K. The last may be short.
        gated: the first N / 2 rows are gate, the others up: interleave them for the fused
            ``silu(gate) * up``.

    Raises:
        KernelInputError: shapes, dtypes or group do not fit; codes exceed 15.
    """
    _check(codes_NK, scales_NG, zeros_NG, zero, group, gated)
    n, k = codes_NK.shape
    scales = scales_NG.to(torch.float32)
    offsets = torch.zeros_like(scales) if zeros_NG is None else zeros_NG.to(torch.float32)
    shift = -1
    if zero == "none":
        shift = 8
    elif zero == "int" and offsets.numel():
        # A common zero point costs nothing at run time, because it merges with the codes' bias.
        # Looked for before rows are interleaved, which puts padding among them.
        common = float(offsets[0, 0])
        if bool((offsets == common).all()) and common in range(17):
            shift, offsets = int(common), torch.zeros_like(offsets)
    if gated:
        codes_NK, scales, offsets = (interleave(t) for t in (codes_NK, scales, offsets))
    if group != -1 and group % SLICE:
        # Tables know 32, 64 and whole slices; any other multiple of 32 repeats its entries.
        fine = math.gcd(group, SLICE)
        scales = scales.repeat_interleave(group // fine, dim=1)
        offsets = offsets.repeat_interleave(group // fine, dim=1)
        group = fine
    rows = -(-codes_NK.shape[0] // ROW_ALIGN) * ROW_ALIGN
    slices = -(-k // SLICE)
    stored = 0 if group == -1 else group
    return PackedW4(
        units=pack_units(codes_NK, rows, slices),
        table=_pack_table(scales, offsets, rows, slices, stored),
        rows=n,
        features=k,
        group=stored,
        shift=shift,
        additive=zero == "float",
        gated=gated,
    )


def pack_units(codes_NK: Tensor, rows: int, slices: int) -> Tensor:
    """Codes uint8 [N, K] to units int16 [rows / 64, slices, 2048]; padding holds code 0."""
    n, k = codes_NK.shape
    units = torch.empty(
        (rows // ATOM_ROWS, slices, ATOM_ROWS * 32), dtype=torch.int16, device=codes_NK.device
    )
    step = 64 * ATOM_ROWS
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        part = codes_NK[start : min(stop, n)]
        q = part.new_zeros((stop - start, slices * SLICE))
        q[: part.shape[0], :k] = part
        q = q.view(-1, slices, 4, 32).to(torch.int16)
        u = q[:, :, 0] << 2 | q[:, :, 1] << 6 | q[:, :, 2] << 10 | q[:, :, 3] << 14
        u |= q[:, :, 3] >> 2
        u = u.view(-1, 4, 2, 8, slices, 4, 4, 2).permute(0, 4, 2, 1, 3, 6, 5, 7)
        units[start // ATOM_ROWS : stop // ATOM_ROWS] = u.reshape(-1, slices, ATOM_ROWS * 32)
    return units


def unpack_units(units: Tensor, n: int, k: int) -> Tensor:
    """Inverse of :func:`pack_units`: uint8 [n, k] in stored row order."""
    atoms, slices, _ = units.shape
    u = units.view(atoms, slices, 2, 4, 8, 4, 4, 2).permute(0, 3, 2, 4, 1, 6, 5, 7)
    u = u.reshape(atoms * ATOM_ROWS, slices, 1, 32).to(torch.int32) & 0xFFFF
    u = u >> 2 | u << 14
    shifts = torch.arange(0, 16, 4, device=units.device, dtype=torch.int32).view(4, 1)
    q = (u >> shifts) & 15
    return q.reshape(atoms * ATOM_ROWS, slices * SLICE)[:n, :k].to(torch.uint8)


def unpack_table(weight: PackedW4) -> tuple[Tensor, Tensor]:
    """Scales and offsets fp32 [stored rows, groups + spare], in stored row order."""
    t = weight.table
    if t.dtype == torch.int32:
        pair = t.unsqueeze(-1).view(torch.float16).to(torch.float32)
    else:
        pair = t.unsqueeze(-1).view(torch.float32)
    pair = pair.view(t.shape[0], -1, 4, 8, 2, 2).permute(1, 2, 4, 3, 0, 5)
    pair = pair.reshape(t.shape[1], t.shape[0], 2)
    return pair[..., 0], pair[..., 1]


def unpack_w4(weight: PackedW4) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [N, K], scales and offsets fp32 [N, G], in the row order that was given.

    ``G`` counts the table's groups (32, 64 or whole slices), which may be finer than the
    checkpoint's; offsets are 0 where the zero point is common.
    """
    stored = weight.units.shape[0] * ATOM_ROWS
    codes = unpack_units(weight.units, stored, weight.features)
    groups = 1 if weight.group == 0 else -(-weight.features // weight.group)
    scales, offsets = (t[:, :groups] for t in unpack_table(weight))
    if weight.gated:
        return (
            deinterleave(codes, weight.rows),
            deinterleave(scales, weight.rows),
            deinterleave(offsets, weight.rows),
        )
    n = weight.rows
    return codes[:n], scales[:n], offsets[:n]


def interleave(x_N: Tensor) -> Tensor:
    """Rows [gate; up] to blocks of 64 rows gate, up, gate, up, ...; the last pair zero-padded.

    Works on weights, scales and biases alike, of any dtype: [N, ...] with an even N gives
    [N padded to 128, ...].
    """
    half = x_N.shape[0] // 2
    blocks = -(-half // ATOM_ROWS)
    out = x_N.new_zeros((blocks, 2, ATOM_ROWS, *x_N.shape[1:]))
    for side in range(2):
        padded = x_N.new_zeros((blocks * ATOM_ROWS, *x_N.shape[1:]))
        padded[:half] = x_N[side * half : (side + 1) * half]
        out[:, side] = padded.view(blocks, ATOM_ROWS, *x_N.shape[1:])
    return out.view(-1, *x_N.shape[1:])


def deinterleave(x_N: Tensor, n: int) -> Tensor:
    """Inverse of :func:`interleave`: [n, ...], rows of gate and up together."""
    half = n // 2
    blocks = -(-half // ATOM_ROWS)
    pairs = x_N[: blocks * 2 * ATOM_ROWS].view(blocks, 2, ATOM_ROWS, *x_N.shape[1:])
    return torch.cat([pairs[:, side].reshape(-1, *x_N.shape[1:])[:half] for side in range(2)])


def _pack_table(scales: Tensor, offsets: Tensor, rows: int, slices: int, group: int) -> Tensor:
    """fp32 [N, G] pairs to entries [groups + spare, rows]; kernels may read every entry."""
    per_slice = SLICE // group if 0 < group < SLICE else 1
    groups = 1 if group == 0 else -(-slices * SLICE // group)
    pair = scales.new_zeros((groups + per_slice, rows, 2))
    used = min(groups, scales.shape[1])
    pair[:used, : scales.shape[0], 0] = scales[:, :used].T
    pair[:used, : scales.shape[0], 1] = offsets[:, :used].T
    halves = pair.to(torch.float16)
    exact = bool((halves.to(torch.float32) == pair).all())
    entries = halves.view(torch.int32) if exact else pair.view(torch.int64)
    entries = entries.view(-1, rows // ATOM_ROWS, 4, 2, 8).permute(0, 1, 2, 4, 3)
    return entries.reshape(-1, rows).contiguous()


def _check(
    codes: Tensor, scales: Tensor, zeros: Tensor | None, zero: str, group: int, gated: bool
) -> None:
    require(
        codes.dim() == 2 and codes.dtype == torch.uint8,
        lambda: (
            f"codes are {codes.dtype} {tuple(codes.shape)}; expected uint8 [N, K], one code each"
        ),
    )
    reason = supports(group)
    if reason is not None:
        raise KernelInputError(reason, hint="requantize, or dequantize this layer")
    n, k = codes.shape
    groups = 1 if group == -1 else -(-k // group)
    require(
        tuple(scales.shape) == (n, groups),
        lambda: (
            f"scales have shape {tuple(scales.shape)}; expected {(n, groups)} for group {group}"
        ),
    )
    require(
        zero in ("none", "int", "float"),
        lambda: f"zero kind is {zero!r}; expected none, int or float",
    )
    require(
        (zeros is None) == (zero == "none"),
        lambda: f"zero kind is {zero!r} but zeros are {'absent' if zeros is None else 'given'}",
    )
    require(
        zeros is None or zeros.shape == scales.shape,
        lambda: (
            f"zeros have shape {None if zeros is None else tuple(zeros.shape)}; "
            f"expected {tuple(scales.shape)} like the scales"
        ),
    )
    require(
        not gated or n % 2 == 0,
        lambda: f"gated weight has {n} rows; expected gate and up of one size",
    )
    if codes.numel():
        top = int(codes.max())
        require(top <= 15, lambda: f"codes go up to {top}; expected 4-bit codes, 0 to 15")
