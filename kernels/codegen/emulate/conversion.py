"""cvt: between integers, floats, and pairs of small floats (PTX ISA 9.7.9.21)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .floating import bf16_to_f32, f32_to_bf16
from .integer import joined
from .operations import HOME, PTX_TYPES, PtxDecoding, PtxOperation, Values, plain, unsupported
from .syntax import Instruction, Register

Conversion = Callable[[Any], Any]

_ROUNDINGS: dict[str, Conversion] = {
    "rzi": np.trunc,
    "rni": np.rint,
    "rmi": np.floor,
    "rpi": np.ceil,
}


def decode_cvt(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """cvt."""
    target, source = ins.parts[-2], ins.parts[-1]
    modes = ins.parts[1:-2]
    if target in ("f16x2", "bf16x2", "e4m3x2") and source == "f32":
        return _two_floats(decoding, ins, target, modes)
    if (modes, target, source) == (("rn",), "f16x2", "e4m3x2"):
        return _from_e4m3(decoding, ins)
    if target in PTX_TYPES and PTX_TYPES[target].kind in "iu" and source in PTX_TYPES:
        return _to_integer(decoding, ins, target, source, modes)
    if modes not in ((), ("rn",)):
        raise unsupported(ins)
    work = _to_float(target, source)
    if work is None:
        raise unsupported(ins)
    return _registers(decoding, ins, _bits(target), _bits(source), work)


def _bits(kind: str) -> int:
    return 16 if kind == "bf16" else 8 * PTX_TYPES[kind].itemsize


def _registers(
    decoding: PtxDecoding, ins: Instruction, wide: int, narrow: int, work: Conversion
) -> PtxOperation:
    """``work`` takes patterns of the source's bits and gives those of the target's bits.

    Integers may stand in wider registers: of a source the lower bits count.
    """
    operand = ins.operands[1]
    have = operand.bits if isinstance(operand, Register) else max(narrow, 16)
    a = decoding.source(ins, 1, have)
    taken = np.dtype(f"u{narrow // 8}")
    result = ins.operands[0]
    if not isinstance(result, Register) or result.bits < wide or have < narrow:
        raise unsupported(ins)
    d, home = result.slot, HOME[result.bits]
    if have == narrow:

        def run(v: Values) -> None:
            v[d] = work(v[a])
    else:

        def run(v: Values) -> None:
            v[d] = work(v[a].astype(taken))

    def extended(v: Values) -> None:
        run(v)
        v[d] = v[d].astype(home)

    return plain(ins, (a,), (d,), run if home.itemsize * 8 == wide else extended)


def _to_integer(
    decoding: PtxDecoding, ins: Instruction, target: str, source: str, modes: tuple[str, ...]
) -> PtxOperation:
    to, came = PTX_TYPES[target], PTX_TYPES[source]
    # A result that is narrower than its register is extended by its sign.
    wide = np.dtype(f"{to.kind}{max(to.itemsize, 2)}")
    if came.kind == "f":
        if len(modes) != 1 or modes[0] not in _ROUNDINGS:
            raise unsupported(ins)
        rounding = _ROUNDINGS[modes[0]]

        def work(bits: Any) -> Any:
            return float_to_integer(rounding(bits.view(came)), to).view(f"u{to.itemsize}")
    else:
        if modes:
            raise unsupported(ins)

        def work(bits: Any) -> Any:
            return bits.view(came).astype(to).astype(wide).view(f"u{wide.itemsize}")

    return _registers(decoding, ins, 8 * wide.itemsize, 8 * came.itemsize, work)


def float_to_integer(value: Any, dtype: np.dtype[Any]) -> Any:
    """Whole floats clamped to the range of an integer type; NaN becomes 0."""
    info = np.iinfo(dtype)
    limit = 2.0 ** (info.bits - (dtype.kind == "i"))  # the first number that is too large
    wide = value.astype("f8")
    inside = np.where(np.isnan(wide) | (wide >= limit) | (wide <= info.min), 0.0, wide)
    result = np.where(wide >= limit, dtype.type(info.max), inside.astype(dtype))
    return np.where(wide <= info.min, dtype.type(info.min), result).astype(dtype)


def _to_float(target: str, source: str) -> Conversion | None:
    """Conversions whose result is a float, rounded to nearest even."""
    if source in ("f16", "bf16") and target == "f32":
        if source == "bf16":
            return lambda bits: bf16_to_f32(bits).view("u4")
        return lambda bits: bits.view("f2").astype("f4").view("u4")
    if source == "f32" and target == "bf16":
        return lambda bits: f32_to_bf16(bits.view("f4"))
    if target not in PTX_TYPES or source not in PTX_TYPES or PTX_TYPES[target].kind != "f":
        return None
    came, to = PTX_TYPES[source], PTX_TYPES[target]
    if to.itemsize == 2 and came.kind != "f":
        # Through float64, which holds them all: rounded once. One that is too large is infinite.
        def halved(bits: Any) -> Any:
            with np.errstate(over="ignore"):
                return bits.view(came).astype("f8").astype(to).view("u2")

        return halved if came.itemsize <= 4 else None
    return lambda bits: bits.view(came).astype(to).view(f"u{to.itemsize}")


def _two_floats(
    decoding: PtxDecoding, ins: Instruction, target: str, modes: tuple[str, ...]
) -> PtxOperation:
    """cvt of two float32 to a pair: the first operand becomes the upper half."""
    small = target == "e4m3x2"
    if modes != (("rn", "satfinite") if small else ("rn",)):
        raise unsupported(ins)
    upper, lower = decoding.source(ins, 1, 32), decoding.source(ins, 2, 32)
    d = decoding.target(ins, 0, 16 if small else 32)
    if small:

        def run(v: Values) -> None:
            high, low = (f32_to_e4m3(v[slot].view("f4")) for slot in (upper, lower))
            v[d] = low | (high << np.uint16(8))
    else:
        narrow = f32_to_bf16 if target == "bf16x2" else lambda x: x.astype("f2").view("u2")

        def run(v: Values) -> None:
            v[d] = joined(narrow(v[lower].view("f4")), narrow(v[upper].view("f4")))

    return plain(ins, (upper, lower), (d,), run)


def _all_e4m3() -> np.ndarray[Any, Any]:
    """The values of all 256 patterns: 4 bits of exponent, 3 of mantissa, bias 7, no infinity."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    value[(codes & 127) == 127] = np.nan
    return np.copysign(value, np.where(codes & 128, -1.0, 1.0)).astype("f4")


_E4M3 = _all_e4m3()


def e4m3_to_f32(bits: Any) -> Any:
    """e4m3 patterns of 8 bits as float32."""
    return _E4M3[bits]


def _pairs_of_e4m3() -> np.ndarray[Any, Any]:
    """uint32 [65536]: the two float16 of every pair of codes."""
    halves = _E4M3.astype("f2").view("u2")
    codes = np.arange(1 << 16)
    return joined(halves[codes & 255], halves[codes >> 8])


_E4M3_PAIRS = _pairs_of_e4m3()


def _from_e4m3(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    a, d = decoding.source(ins, 1, 16), decoding.target(ins, 0, 32)

    def run(v: Values) -> None:
        v[d] = _E4M3_PAIRS.take(v[a])

    return plain(ins, (a,), (d,), run)


def f32_to_e4m3(value: Any) -> Any:
    """float32 rounded to nearest even e4m3, as patterns in 16 bits; too large becomes 448."""
    size = np.abs(value).astype("f8")
    # The spacing of the numbers around: 2**-9 below 2**-6, else an eighth of the power of two.
    _, exponent = np.frexp(size)
    step = np.ldexp(1.0, np.maximum(exponent - 1, -6) - 3)
    near = np.minimum(np.rint(size / step) * step, 448.0)
    code = np.searchsorted(_E4M3[:127], np.nan_to_num(near).astype("f4")).astype("u2")
    code = np.where(np.isnan(value), np.uint16(127), code)
    return code | (np.signbit(value).astype("u2") << np.uint16(7))
