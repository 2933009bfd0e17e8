"""Floating-point instructions (PTX ISA 9.7.3, 9.7.4 and, for comparisons, 9.7.7).

float32 sums, products, quotients and roots are NumPy's, which round once to nearest even. A fused
multiply-add is computed in float64, where the product is exact and the sum is rounded to odd, so
that the last rounding is the only one that shows. 16-bit sums and products are exact or rounded
to odd in float64 in the same way. Approximations of the hardware (``ex2.approx``, ``div.full``)
give the nearest value here; NaNs have the payload that NumPy gives them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .integer import Binary, half, joined, unary
from .operations import PtxDecoding, PtxOperation, Values, plain, scalar_type, unsupported, viewed
from .syntax import Instruction

_SMALLEST_NORMAL = {4: np.float32(2.0**-126), 8: np.float64(2.0**-1022)}


def bf16_to_f32(bits: Any) -> Any:
    """bfloat16 patterns of 16 bits as float32."""
    return (bits.astype("u4") << np.uint32(16)).view("f4")


def f32_to_bf16(value: Any) -> Any:
    """float32 rounded to nearest even bfloat16, as 16-bit patterns; NaN becomes 0x7fff."""
    word = value.view("u4")
    rounded = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(value), np.uint16(0x7FFF), rounded.astype("u2"))


def sum_rounded_to_odd(a: Any, b: Any) -> Any:
    """a + b in float64; where that is inexact, the neighbour whose last bit is one.

    Rounding such a sum to a type with at least two bits fewer gives what rounding the exact sum
    gives (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums").
    """
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)  # exact: Knuth's TwoSum
    inexact = (error != 0) & np.isfinite(total)
    if not inexact.any():
        return total
    even = inexact & ((total.view("u8") & np.uint64(1)) == 0)
    away = (error > 0) == (total > 0)  # towards larger magnitude
    step = np.where(away, 1, -1).astype("i8")
    return np.where(even, total.view("i8") + step, total.view("i8")).view("f8")


def fused_f32(a: Any, b: Any, c: Any) -> Any:
    """a * b + c of float32, rounded once."""
    product = a.astype("f8") * b.astype("f8")
    total = product + c
    # A second rounding can only err where the first one ended half-way between two float32, or,
    # below the normal numbers, where the lower bits are zero; both are rare.
    low = total.view("u8") & np.uint64(0x0FFFFFFF)
    if not low.all():
        doubtful = (total.view("u8") & np.uint64(0x1FFFFFFF)) == np.uint64(0x10000000)
        doubtful = doubtful | (np.abs(total) < 2.0**-125)
        if doubtful.any():
            total = sum_rounded_to_odd(product, c.astype("f8"))
    return total.astype("f4")


def f64_to_bf16(value: Any) -> Any:
    """float64 that was rounded to odd, to nearest bfloat16 patterns."""
    near = value.astype("f4")
    # To odd again, so that the step from float32 to bfloat16 is the only rounding that counts.
    back = near.astype("f8")
    inexact = (back != value) & np.isfinite(near)
    word = near.view("u4")
    beyond = inexact & (np.abs(back) > np.abs(value))
    truncated = np.where(beyond, word - np.uint32(1), word)
    return f32_to_bf16(np.where(inexact, truncated | np.uint32(1), word).view("f4"))


def f64_to_f16(value: Any) -> Any:
    """float64 to nearest float16, as patterns."""
    return value.astype("f2").view("u2")


def _widened(kind: str) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """(16-bit patterns to float64, float64 to 16-bit patterns)."""
    if kind == "f16":
        return lambda bits: bits.view("f2").astype("f8"), f64_to_f16
    return lambda bits: bf16_to_f32(bits).astype("f8"), f64_to_bf16


def flushed(value: Any) -> Any:
    """The value with zeros of its sign in the place of subnormal numbers."""
    small = np.abs(value) < _SMALLEST_NORMAL[value.dtype.itemsize]
    return np.where(small, np.copysign(value.dtype.type(0), value), value)


def _modes(ins: Instruction, allowed: tuple[str, ...] = ("rn", "ftz")) -> bool:
    """Whether to flush subnormals; UnsupportedFault for any other modifier."""
    if any(part not in allowed for part in ins.parts[1:-1]):
        raise unsupported(ins)
    return ins.has("ftz")


def _three(
    decoding: PtxDecoding, ins: Instruction, count: int, work: Callable[..., Any], kind: str
) -> PtxOperation:
    """An instruction of two or three operands of a 16-bit type or a pair of them, by float64."""
    pair = kind.endswith("x2")
    bits = 32 if pair else 16
    sources = [decoding.source(ins, place, bits) for place in range(1, 1 + count)]
    d = decoding.target(ins, 0, bits)
    widen, narrow = _widened(kind.removesuffix("x2"))
    if pair:

        def run(v: Values) -> None:
            low, high = (
                narrow(work(*(widen(half(v[a], place)) for a in sources))) for place in (0, 1)
            )
            v[d] = joined(low, high)
    else:

        def run(v: Values) -> None:
            v[d] = narrow(work(*(widen(v[a]) for a in sources)))

    return plain(ins, sources, (d,), run)


def _float_binary(
    decoding: PtxDecoding, ins: Instruction, work: Binary, wide_work: Binary
) -> PtxOperation:
    kind = ins.parts[-1]
    if kind in ("f16", "bf16", "f16x2", "bf16x2"):
        if _modes(ins):
            raise unsupported(ins)
        return _three(decoding, ins, 2, wide_work, kind)
    ftz = _modes(ins, ("rn", "ftz", "full"))
    dtype = scalar_type(ins, kind)
    bits, home = viewed(dtype)
    a, b = decoding.source(ins, 1, bits), decoding.source(ins, 2, bits)
    d = decoding.target(ins, 0, bits)
    if ftz:

        def run(v: Values) -> None:
            first, second = flushed(v[a].view(dtype)), flushed(v[b].view(dtype))
            v[d] = flushed(work(first, second)).view(home)
    else:

        def run(v: Values) -> None:
            v[d] = work(v[a].view(dtype), v[b].view(dtype)).view(home)

    return plain(ins, (a, b), (d,), run)


def decode_add(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """add of floats."""
    return _float_binary(decoding, ins, np.add, sum_rounded_to_odd)


def decode_sub(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """sub of floats."""
    return _float_binary(decoding, ins, np.subtract, lambda a, b: sum_rounded_to_odd(a, -b))


def decode_mul(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """mul of floats."""
    return _float_binary(decoding, ins, np.multiply, np.multiply)


def decode_min(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """min of floats: the other operand where one is NaN."""
    return _float_binary(decoding, ins, np.fmin, np.fmin)


def decode_max(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """max of floats: the other operand where one is NaN."""
    return _float_binary(decoding, ins, np.fmax, np.fmax)


def decode_div(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """div.rn, and div.full, which may err by 2 ulp on a GPU."""
    if ins.parts[-1] not in ("f32", "f64"):
        raise unsupported(ins)
    return _float_binary(decoding, ins, np.divide, np.divide)


def decode_fma(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """fma, rounded once."""
    ftz = _modes(ins)
    kind = ins.parts[-1]
    if kind in ("f16", "bf16", "f16x2", "bf16x2"):
        if ftz:
            raise unsupported(ins)
        return _three(decoding, ins, 3, lambda a, b, c: sum_rounded_to_odd(a * b, c), kind)
    if kind != "f32":
        raise unsupported(ins)
    a, b, c = (decoding.source(ins, place, 32) for place in (1, 2, 3))
    d = decoding.target(ins, 0, 32)

    def run(v: Values) -> None:
        parts = [v[a].view("f4"), v[b].view("f4"), v[c].view("f4")]
        if ftz:
            v[d] = flushed(fused_f32(*(flushed(part) for part in parts))).view("u4")
        else:
            v[d] = fused_f32(*parts).view("u4")

    return plain(ins, (a, b, c), (d,), run)


def decode_neg(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """neg of floats."""
    _modes(ins, ())
    return unary(decoding, ins, scalar_type(ins, ins.parts[-1]), np.negative)


def decode_abs(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """abs of floats."""
    _modes(ins, ())
    return unary(decoding, ins, scalar_type(ins, ins.parts[-1]), np.abs)


def decode_sqrt(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """sqrt.rn."""
    if ins.parts[1:] != ("rn", "f32"):
        raise unsupported(ins)
    return unary(decoding, ins, np.dtype("f4"), np.sqrt)


def decode_ex2(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """ex2.approx: the nearest float32 of the power of two, where a GPU may err by 2 ulp."""
    ftz = _modes(ins, ("approx", "ftz"))
    if ins.parts[-1] != "f32" or not ins.has("approx"):
        raise unsupported(ins)

    def work(value: Any) -> Any:
        power = np.exp2((flushed(value) if ftz else value).astype("f8")).astype("f4")
        return flushed(power) if ftz else power

    return unary(decoding, ins, np.dtype("f4"), work)


_COMPARISONS: dict[str, Binary] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def comparison(name: str, floats: bool) -> Binary | None:
    """What setp's comparison of that name does, None for an unknown one.

    For floats the plain names are false where an operand is NaN, those with ``u`` are true.
    """
    if not floats:
        unsigned = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
        return _COMPARISONS.get(unsigned.get(name, name))
    unordered = lambda a, b: np.isnan(a) | np.isnan(b)  # noqa: E731
    if name == "nan":
        return unordered
    if name == "num":
        return lambda a, b: ~unordered(a, b)
    if name == "ne":
        return lambda a, b: (a != b) & ~unordered(a, b)
    if name in _COMPARISONS:
        return _COMPARISONS[name]
    base = _COMPARISONS.get(name.removesuffix("u"))
    if base is None or not name.endswith("u"):
        return None
    return lambda a, b: base(a, b) | unordered(a, b)


def decode_setp(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """setp with one target, of integers and floats."""
    if len(ins.parts) != 3:
        raise unsupported(ins)
    kind = ins.parts[2]
    floats = kind in ("f16", "bf16", "f32", "f64")
    work = comparison(ins.parts[1], floats)
    if work is None:
        raise unsupported(ins)
    dtype = np.dtype("u2") if kind == "bf16" else scalar_type(ins, kind)
    bits, _ = viewed(dtype)
    a, b, d = (
        decoding.source(ins, 1, bits),
        decoding.source(ins, 2, bits),
        decoding.target(ins, 0, 1),
    )
    if kind == "bf16":

        def run(v: Values) -> None:
            v[d] = work(bf16_to_f32(v[a]), bf16_to_f32(v[b]))
    else:

        def run(v: Values) -> None:
            v[d] = work(v[a].view(dtype), v[b].view(dtype))

    return plain(ins, (a, b), (d,), run)
