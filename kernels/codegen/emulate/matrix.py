"""ldmatrix, stmatrix and mma.sync, and the layouts of their fragments (PTX ISA 9.7.14).

Sums of products are float64, rounded to float32 once: products of 16-bit and 8-bit floats are
exact there, and what a sum of at most 256 of them loses is far below the last bit of float32, so
that the result does not depend on an order of summation. A tensor core adds with fewer bits;
what a kernel may rely on is met by both. Integers are exact, and wrap or saturate at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .conversion import e4m3_to_f32
from .floating import bf16_to_f32
from .operations import PtxDecoding, PtxOperation, effect, unsupported
from .syntax import Instruction

if TYPE_CHECKING:
    from .convoy import Convoy


def _halves_to_f64() -> np.ndarray[Any, Any]:
    return np.arange(1 << 16, dtype="u2").view("f2").astype("f8")


_F16 = _halves_to_f64()  # looking up is faster than NumPy's conversion of float16

ELEMENTS: dict[str, tuple[np.dtype[Any], Callable[[Any], Any]]] = {
    "f16": (np.dtype("u2"), lambda bits: _F16.take(bits)),
    "bf16": (np.dtype("u2"), lambda bits: bf16_to_f32(bits).astype("f8")),
    "s8": (np.dtype("i1"), lambda bits: bits.astype("f8")),
    "u8": (np.dtype("u1"), lambda bits: bits.astype("f8")),
    "e4m3": (np.dtype("u1"), lambda bits: e4m3_to_f32(bits).astype("f8")),
}
"""Element types of the factors: how they are kept, and their values as float64."""


def a_fragment(registers: Any, dtype: np.dtype[Any]) -> Any:
    """[n, 16, K] of the four A registers uint32 [4, n, 32] of m16n8k16 (2 bytes) or k32 (1 byte).

    Register i of lane 4 g + t has row g + 8 (i mod 2) and, in groups of 4 bytes, column
    t + 4 (i div 2): PTX ISA 9.7.14.5.8 and 9.7.14.5.11.
    """
    count = registers.shape[1]
    each = 4 // dtype.itemsize
    parts = registers.view(dtype).reshape(2, 2, count, 8, 4, each)  # [K half, row half, n, g, t, e]
    return parts.transpose(2, 1, 3, 0, 4, 5).reshape(count, 16, 8 * each)


def b_fragment(registers: Any, dtype: np.dtype[Any]) -> Any:
    """[n, 8, K]: the transpose of B of the two B registers uint32 [2, n, 32].

    Register i of lane 4 g + t has column g and, in groups of 4 bytes, row t + 4 i.
    """
    count = registers.shape[1]
    each = 4 // dtype.itemsize
    parts = registers.view(dtype).reshape(2, count, 8, 4, each)  # [K half, n, g, t, e]
    return parts.transpose(1, 2, 0, 3, 4).reshape(count, 8, 8 * each)


def c_fragment(registers: Any) -> Any:
    """[n, 16, 8] of the four accumulators [4, n, 32] of 32 bits.

    Register i of lane 4 g + t has row g + 8 (i div 2) and column 2 t + i mod 2.
    """
    count = registers.shape[1]
    parts = registers.reshape(2, 2, count, 8, 4)  # [row half, column bit, n, g, t]
    return parts.transpose(2, 0, 3, 4, 1).reshape(count, 16, 8)


def c_registers(matrix: Any) -> Any:
    """The inverse of :func:`c_fragment`: [4, n, 32] of [n, 16, 8]."""
    count = len(matrix)
    parts = matrix.reshape(count, 2, 8, 4, 2)
    return np.ascontiguousarray(parts.transpose(1, 4, 0, 2, 3)).reshape(4, count, 32)


def accumulated(total: Any, kind: str, saturate: bool) -> Any:
    """uint32 patterns of sums in float64, as accumulators of ``f32`` or ``s32`` keep them."""
    if kind == "f32":
        return total.astype("f4").view("u4")
    if saturate:
        return np.clip(total, -(2.0**31), 2.0**31 - 1).astype("i4").view("u4")
    return total.astype("i8").astype("u4")


def values_of(registers: Any, kind: str) -> Any:
    """float64 of accumulators kept as uint32."""
    return registers.view("f4" if kind == "f32" else "i4").astype("f8")


def decode_mma(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """mma.sync.aligned.m16n8 with A by rows and B by columns."""
    parts = ins.parts
    saturate = "satfinite" in parts
    plain_parts = [p for p in parts if p != "satfinite"]
    shape, kinds = plain_parts[3], plain_parts[6:]
    if plain_parts[1:3] != ["sync", "aligned"] or plain_parts[4:6] != ["row", "col"]:
        raise unsupported(ins)
    depth = {"m16n8k16": 2, "m16n8k32": 1}.get(shape)
    if len(kinds) != 4 or kinds[0] != kinds[3] or ins.guard is not None:
        raise unsupported(ins)
    if any(k not in ELEMENTS or ELEMENTS[k][0].itemsize != depth for k in kinds[1:3]):
        raise unsupported(ins)
    (dtype_a, value_a), (dtype_b, value_b) = ELEMENTS[kinds[1]], ELEMENTS[kinds[2]]
    result = kinds[0]
    if result not in ("f32", "s32") or (result == "s32") != (kinds[1] in ("s8", "u8")):
        raise unsupported(ins)
    d, a, b, c = (decoding.parts(ins, place) for place in range(4))
    if [len(x) for x in (d, a, b, c)] != [4, 4, 2, 4]:
        raise unsupported(ins)
    targets = [decoding.target(ins, part, 32) for part in d]
    first, second, third = (
        [decoding.source(ins, part, 32) for part in group if part is not None]
        for group in (a, b, c)
    )

    def run(convoy: Convoy) -> None:
        convoy.need_whole(ins)
        left = value_a(a_fragment(stacked(convoy, first), dtype_a))
        right = value_b(b_fragment(stacked(convoy, second), dtype_b))
        start = values_of(c_fragment(stacked(convoy, third)), result)
        total = np.matmul(left, right.transpose(0, 2, 1)) + start
        registers = c_registers(accumulated(total, result, saturate))
        for slot, row in zip(targets, registers.reshape(4, -1), strict=True):
            convoy.values[slot] = row

    return effect(ins, (*first, *second, *third), targets, run)


def stacked(convoy: Convoy, slots: list[int]) -> Any:
    """[registers, warps, 32]."""
    return np.concatenate([convoy.lanes(slot) for slot in slots]).reshape(len(slots), -1, 32)


def _matrices(decoding: PtxDecoding, ins: Instruction, place: int) -> list[int]:
    """Slots of the registers of ldmatrix or stmatrix, one for each 8x8 matrix of 16 bits."""
    allowed = {"sync", "aligned", "m8n8", "trans", "shared", "shared::cta", "b16", "x1", "x2", "x4"}
    count = {"x1": 1, "x2": 2, "x4": 4}
    asked = [count[part] for part in ins.parts if part in count]
    parts = decoding.parts(ins, place)
    if ins.guard is not None or not allowed.issuperset(ins.parts[1:]) or asked != [len(parts)]:
        raise unsupported(ins)
    return [decoding.target(ins, part, 32) for part in parts]


def _row_lanes(c: Convoy, count: int) -> Any:
    """Positions of the lanes that give the addresses of ``count`` matrices' rows."""
    return (np.arange(0, len(c.threads), 32)[:, None] + np.arange(8 * count)).reshape(-1)


def decode_ldmatrix(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """ldmatrix: lane 8 i + r gives the address of row r of matrix i; lane 4 r + t gets of each
    row r the pair t, or with ``trans`` of each column."""
    slots = _matrices(decoding, ins, 0)
    base, offset = decoding.address(ins, 1)
    transposed, count = ins.has("trans"), len(slots)

    def run(c: Convoy) -> None:
        c.need_whole(ins)
        lanes = _row_lanes(c, count)
        address = c.lanes(base)[lanes].astype("i8") + offset
        if c.machine.options.count:
            c.machine.counts.shared(ins, c, address, 16, lanes)
        rows = c.machine.shared.load(c, ins, address, np.dtype("u4"), 4, lanes)
        if transposed:
            squares = rows.view("u2").reshape(-1, 8, 8).transpose(0, 2, 1)
            rows = np.ascontiguousarray(squares).view("u4")
        words = rows.reshape(-1, count, 32)
        for place, slot in enumerate(slots):
            c.values[slot] = words[:, place].reshape(-1)

    return effect(ins, (base,), slots, run)


def decode_stmatrix(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """stmatrix: the inverse of ldmatrix."""
    slots = _matrices(decoding, ins, 1)
    base, offset = decoding.address(ins, 0)
    transposed, count = ins.has("trans"), len(slots)

    def run(c: Convoy) -> None:
        c.need_whole(ins)
        lanes = _row_lanes(c, count)
        address = c.lanes(base)[lanes].astype("i8") + offset
        words = stacked(c, slots).transpose(1, 0, 2)  # [warps, matrices, 32]
        rows = np.ascontiguousarray(words).reshape(-1, 4)
        if transposed:
            squares = rows.view("u2").reshape(-1, 8, 8).transpose(0, 2, 1)
            rows = np.ascontiguousarray(squares).view("u4").reshape(-1, 4)
        if c.machine.options.count:
            c.machine.counts.shared(ins, c, address, 16, lanes)
        c.machine.shared.store(c, ins, address, rows, lanes)

    return effect(ins, (base, *slots), (), run)
