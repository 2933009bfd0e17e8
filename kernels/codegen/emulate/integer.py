"""Integer and logic instructions, moves and selections (PTX ISA 9.7.1, 9.7.8, 9.7.9).

Sums and products wrap, as NumPy's do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from .operations import (
    HOME,
    PtxDecoding,
    PtxOperation,
    Values,
    plain,
    scalar_type,
    unsupported,
    viewed,
)
from .syntax import Immediate, Instruction, OperandList, Register

Binary = Callable[[Any, Any], Any]

_LOGIC: dict[str, Binary] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
_SUMS: dict[str, Binary] = {
    "add": np.add,
    "sub": np.subtract,
    "min": np.minimum,
    "max": np.maximum,
}


def binary(
    decoding: PtxDecoding, ins: Instruction, dtype: np.dtype[Any], work: Binary
) -> PtxOperation:
    """``d = work(a, b)`` on operands seen as one type."""
    bits, home = viewed(dtype)
    a, b = decoding.source(ins, 1, bits), decoding.source(ins, 2, bits)
    d = decoding.target(ins, 0, bits)
    if dtype == home:

        def run(v: Values) -> None:
            v[d] = work(v[a], v[b])
    else:

        def run(v: Values) -> None:
            v[d] = work(v[a].view(dtype), v[b].view(dtype)).view(home)

    return plain(ins, (a, b), (d,), run)


def unary(
    decoding: PtxDecoding, ins: Instruction, dtype: np.dtype[Any], work: Callable[[Any], Any]
) -> PtxOperation:
    """``d = work(a)`` on an operand seen as one type."""
    bits, home = viewed(dtype)
    a, d = decoding.source(ins, 1, bits), decoding.target(ins, 0, bits)

    def run(v: Values) -> None:
        v[d] = work(v[a].view(dtype)).view(home)

    return plain(ins, (a,), (d,), run)


def decode_logic(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """and, or, xor, on registers and predicates."""
    return binary(decoding, ins, scalar_type(ins, ins.parts[1]), _LOGIC[ins.parts[0]])


def decode_not(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """not."""
    return unary(decoding, ins, scalar_type(ins, ins.parts[1]), np.invert)


def decode_sum(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """add, sub, min, max of integers; ``add.s16x2`` and its like by halves."""
    kind = ins.parts[-1]
    if len(ins.parts) != 2:
        raise unsupported(ins)
    work = _SUMS[ins.parts[0]]
    if kind in ("s16x2", "u16x2"):
        return _halves(decoding, ins, np.dtype("i2" if kind[0] == "s" else "u2"), work)
    return binary(decoding, ins, scalar_type(ins, kind), work)


def _halves(
    decoding: PtxDecoding, ins: Instruction, dtype: np.dtype[Any], work: Binary
) -> PtxOperation:
    a, b = decoding.source(ins, 1, 32), decoding.source(ins, 2, 32)
    d = decoding.target(ins, 0, 32)

    def run(v: Values) -> None:
        parts = [work(half(v[a], h).view(dtype), half(v[b], h).view(dtype)) for h in (0, 1)]
        v[d] = joined(parts[0].view("u2"), parts[1].view("u2"))

    return plain(ins, (a, b), (d,), run)


def half(value: Any, place: int) -> Any:
    """The lower (0) or upper (1) 16 bits of 32-bit words."""
    return (value >> np.uint32(16) if place else value).astype("u2")


def joined(low: Any, high: Any) -> Any:
    """32-bit words of their 16-bit halves."""
    return low.astype("u4") | (high.astype("u4") << np.uint32(16))


def decode_neg(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """neg of integers."""
    return unary(decoding, ins, scalar_type(ins, ins.parts[1]), np.negative)


def decode_abs(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """abs of integers."""
    return unary(decoding, ins, scalar_type(ins, ins.parts[1]), np.abs)


def _parts_of_product(ins: Instruction) -> tuple[str, np.dtype[Any], np.dtype[Any]]:
    """(lo, hi or wide; the type of the factors; the type of the result)."""
    if len(ins.parts) != 3 or ins.parts[1] not in ("lo", "hi", "wide"):
        raise unsupported(ins)
    dtype = scalar_type(ins, ins.parts[2])
    twice = np.dtype(f"{dtype.kind}{min(2 * dtype.itemsize, 8)}")
    return ins.parts[1], dtype, twice if ins.parts[1] == "wide" else dtype


def _product(ins: Instruction) -> tuple[Binary, np.dtype[Any], np.dtype[Any]]:
    mode, dtype, result = _parts_of_product(ins)
    if mode == "lo":
        return np.multiply, dtype, result
    if dtype.itemsize == 8:
        raise unsupported(ins, "the upper half of a product of 64 bits")
    twice = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")
    if mode == "wide":
        return lambda a, b: a.astype(twice) * b.astype(twice), dtype, result
    shift = 8 * dtype.itemsize
    return (
        lambda a, b: ((a.astype(twice) * b.astype(twice)) >> shift).astype(dtype),
        dtype,
        result,
    )


def decode_mul(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """mul.lo, mul.hi, mul.wide of integers."""
    work, dtype, result = _product(ins)
    bits, _ = viewed(dtype)
    width, home = viewed(result)
    a, b = decoding.source(ins, 1, bits), decoding.source(ins, 2, bits)
    d = decoding.target(ins, 0, width)

    def run(v: Values) -> None:
        v[d] = work(v[a].view(dtype), v[b].view(dtype)).view(home)

    return plain(ins, (a, b), (d,), run)


def decode_mad(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """mad.lo, mad.hi, mad.wide: the product plus a third operand of the result's width."""
    work, dtype, result = _product(ins)
    bits, _ = viewed(dtype)
    width, home = viewed(result)
    a, b = decoding.source(ins, 1, bits), decoding.source(ins, 2, bits)
    c, d = decoding.source(ins, 3, width), decoding.target(ins, 0, width)

    def run(v: Values) -> None:
        v[d] = work(v[a].view(dtype), v[b].view(dtype)).view(home) + v[c]

    return plain(ins, (a, b, c), (d,), run)


def truncated_quotient(a: Any, b: Any) -> Any:
    """a / b rounded to zero; all bits one for b = 0, where PTX leaves the value open."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // safe
    if a.dtype.kind == "i":
        quotient = quotient + ((a % safe != 0) & ((a < 0) != (safe < 0)))
    return np.where(b == 0, np.array(-1).astype(b.dtype), quotient.astype(b.dtype))


def decode_div(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """div of integers."""
    return binary(decoding, ins, scalar_type(ins, ins.parts[1]), truncated_quotient)


def decode_rem(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """rem of integers: what the truncated quotient leaves."""
    work = lambda a, b: a - truncated_quotient(a, b) * b  # noqa: E731
    return binary(decoding, ins, scalar_type(ins, ins.parts[1]), work)


def decode_shift(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """shl and shr: amounts of the width and more give zero, or copies of the sign."""
    dtype = scalar_type(ins, ins.parts[1])
    bits, home = viewed(dtype)
    a, n, d = (
        decoding.source(ins, 1, bits),
        decoding.source(ins, 2, 32),
        decoding.target(ins, 0, bits),
    )
    left, signed = ins.parts[0] == "shl", dtype.kind == "i"
    shift = np.left_shift if left else np.right_shift
    fixed = ins.operands[2]
    if isinstance(fixed, Immediate) and fixed.bits(32) < bits:
        amount = np.array(fixed.bits(32), dtype)

        def run(v: Values) -> None:
            v[d] = shift(v[a].view(dtype), amount).view(home)
    else:

        def run(v: Values) -> None:
            number = np.minimum(v[n], bits - 1).astype(dtype)
            result = shift(v[a].view(dtype), number).view(home)
            v[d] = result if signed else np.where(v[n] < bits, result, home.type(0))

    return plain(ins, (a, n), (d,), run)


def decode_bfe(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """bfe: ``c`` bits from bit ``b`` on; the signed form repeats the field's upper bit."""
    dtype = scalar_type(ins, ins.parts[1])
    bits, home = viewed(dtype)
    if bits != 32:
        raise unsupported(ins)
    a, b, c = (decoding.source(ins, place, 32) for place in (1, 2, 3))
    d = decoding.target(ins, 0, 32)

    def run(v: Values) -> None:
        # Beyond bit 31 the field has zeros, or copies of the sign; 64 bits hold both.
        wide = v[a].view(dtype).astype("i8")
        begin = (v[b] & np.uint32(255)).astype("i8")
        length = (v[c] & np.uint32(255)).astype("i8")
        moved = wide >> np.minimum(begin, 63)
        room = 64 - np.clip(length, 1, 64)
        unsigned = dtype.kind == "u"
        lifted = moved.view("u8") << room.astype("u8")
        field = lifted >> room.astype("u8") if unsigned else (lifted.view("i8") >> room).view("u8")
        v[d] = np.where(length == 0, 0, field).astype("u8").astype(home)

    return plain(ins, (a, b, c), (d,), run)


def decode_popc(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """popc."""
    bits, _ = viewed(scalar_type(ins, ins.parts[1]))
    a, d = decoding.source(ins, 1, bits), decoding.target(ins, 0, 32)

    def run(v: Values) -> None:
        v[d] = count_of_bits(v[a])

    return plain(ins, (a,), (d,), run)


def count_of_bits(word: Any) -> Any:
    """Bits that are set, as uint32, for words of any shape and width: sums of ever wider fields."""
    total = word.astype("u8")
    for width, mask in ((1, 0x5555), (2, 0x3333), (4, 0x0F0F), (8, 0x00FF)):
        every, shift = np.uint64(mask * 0x0001000100010001), np.uint64(width)
        total = (total & every) + ((total >> shift) & every)
    return ((total * np.uint64(0x0001000100010001)) >> np.uint64(48)).astype("u4")


def decode_lop3(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """lop3: any function of three bits, given by its eight values."""
    a, b, c = (decoding.source(ins, place, 32) for place in (1, 2, 3))
    d = decoding.target(ins, 0, 32)
    table = ins.operands[4]
    if len(ins.parts) != 2 or not isinstance(table, Immediate):
        raise unsupported(ins)
    work = three_input_logic(table.bits(8))

    def run(v: Values) -> None:
        v[d] = work(v[a], v[b], v[c])

    return plain(ins, (a, b, c), (d,), run)


def three_input_logic(table: int) -> Callable[[Any, Any, Any], Any]:
    """The function whose value is bit ``4 a + 2 b + c`` of ``table``."""
    if table == 0xEA:  # what unpacking weights is made of: (a & b) | c
        return lambda a, b, c: (a & b) | c

    def work(a: Any, b: Any, c: Any) -> Any:
        total = np.zeros_like(a | b | c)
        for place in range(8):
            if table >> place & 1:
                one = a if place & 4 else ~a
                one = one & (b if place & 2 else ~b)
                total = total | (one & (c if place & 1 else ~c))
        return total

    return work


def decode_prmt(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """prmt: four bytes chosen of eight, or their signs."""
    if len(ins.parts) != 2:
        raise unsupported(ins)
    a, b, c = (decoding.source(ins, place, 32) for place in (1, 2, 3))
    d = decoding.target(ins, 0, 32)
    selector = ins.operands[3]
    if isinstance(selector, Immediate) and not selector.bits(32) & 0x8888:
        work = _fixed_permutation(selector.bits(32))

        def run(v: Values) -> None:
            v[d] = work(v[a], v[b])
    else:

        def run(v: Values) -> None:
            v[d] = permuted_bytes(v[a], v[b], v[c])

    return plain(ins, (a, b, c), (d,), run)


def _fixed_permutation(selector: int) -> Callable[[Any, Any], Any]:
    """Shifts and masks for one selector without signs; bytes moved alike go together."""
    moves: dict[tuple[bool, int], int] = {}
    for place in range(4):
        chosen = selector >> 4 * place & 7
        key = chosen >= 4, 8 * (place - chosen % 4)
        moves[key] = moves.get(key, 0) | 0xFF << 8 * place
    steps = [(second, shift, np.uint32(mask)) for (second, shift), mask in moves.items()]

    def work(a: Any, b: Any) -> Any:
        total = None
        for second, shift, mask in steps:
            word = b if second else a
            if shift > 0:
                word = word << np.uint32(shift)
            elif shift < 0:
                word = word >> np.uint32(-shift)
            if mask != 0xFFFFFFFF:
                word = word & mask
            total = word if total is None else total | word
        return total

    return work


def permuted_bytes(a: Any, b: Any, selector: Any) -> Any:
    """prmt's default mode for 32-bit words of any shape."""
    both = a.astype("u8") | (b.astype("u8") << np.uint64(32))
    total = np.zeros_like(a | b | selector)
    for place in range(4):
        chosen = selector >> np.uint32(4 * place)
        byte = (both >> ((chosen & np.uint32(7)).astype("u8") << np.uint64(3))).astype("u4")
        byte = byte & np.uint32(0xFF)
        sign = np.where(byte & np.uint32(0x80), np.uint32(0xFF), np.uint32(0))
        byte = np.where(chosen & np.uint32(8), sign, byte)
        total = total | (byte << np.uint32(8 * place))
    return total


def decode_selp(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """selp."""
    bits, _ = viewed(scalar_type(ins, ins.parts[1]))
    a, b = decoding.source(ins, 1, bits), decoding.source(ins, 2, bits)
    p, d = decoding.source(ins, 3, 1), decoding.target(ins, 0, bits)

    def run(v: Values) -> None:
        v[d] = np.where(v[p], v[a], v[b])

    return plain(ins, (a, b, p), (d,), run)


def decode_mov(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """mov, packing and unpacking included."""
    kind = ins.parts[1]
    bits, _ = viewed(scalar_type(ins, kind))
    target, source = ins.operands
    if isinstance(target, OperandList):
        return _unpack(decoding, ins, bits, target)
    if isinstance(source, OperandList):
        return _pack(decoding, ins, bits, source)
    if kind == "pred" and isinstance(source, Immediate):
        a = decoding.constant(int(source.bits(32) != 0), 1)
    else:
        a = decoding.source(ins, 1, bits)
    d = decoding.target(ins, 0, bits)

    def run(v: Values) -> None:
        v[d] = v[a]

    operation = plain(ins, (a,), (d,), run)
    if ins.guard is None and isinstance(source, Register):
        return replace(operation, copies=a)
    return operation


def _unpack(
    decoding: PtxDecoding, ins: Instruction, bits: int, target: OperandList
) -> PtxOperation:
    width = bits // len(target.parts)
    a = decoding.source(ins, 1, bits)
    home, wide = HOME[width], HOME[bits].type
    places = [
        (decoding.target(ins, part, width), wide(width * place))
        for place, part in enumerate(target.parts)
        if part is not None
    ]

    def run(v: Values) -> None:
        word = v[a]
        for d, shift in places:
            v[d] = (word >> shift).astype(home)

    return plain(ins, (a,), [d for d, _ in places], run)


def _pack(decoding: PtxDecoding, ins: Instruction, bits: int, source: OperandList) -> PtxOperation:
    width = bits // len(source.parts)
    wide = HOME[bits]
    places = []
    for place, part in enumerate(source.parts):
        assert isinstance(part, (Register, Immediate))
        places.append((decoding.source(ins, part, width), wide.type(width * place)))
    d = decoding.target(ins, 0, bits)

    def run(v: Values) -> None:
        total = v[places[0][0]].astype(wide)
        for a, shift in places[1:]:
            total = total | (v[a].astype(wide) << shift)
        v[d] = total

    return plain(ins, [a for a, _ in places], (d,), run)
