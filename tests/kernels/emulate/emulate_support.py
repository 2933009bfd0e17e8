"""Small PTX programs, operands with all kinds of values, and roundings in exact arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from halfbyte.kernels.codegen.emulate import Buffer, Counts, EmulationOptions, PtxProgram, run

Array = np.ndarray[Any, Any]

LANES = 128  # of one CTA in most programs here


def program(body: str, params: int, threads: int = LANES, registers: str = "") -> PtxProgram:
    """A kernel with ``params`` 64-bit parameters p0, p1, ... and some registers of each class."""
    names = ",\n".join(f".param .u64 p{number}" for number in range(params))
    return PtxProgram.parse(
        f"""
.version 8.0
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(
{names}
)
.reqntid {threads}
{{
.reg .pred %p<40>;
.reg .b16 %h<40>;
.reg .b32 %r<600>;
.reg .b64 %d<40>;
{registers}
{body}
ret;
}}
"""
    )


def launch(
    text: str,
    *buffers: Buffer | int,
    grid: tuple[int, int, int] = (1, 1, 1),
    threads: int = LANES,
    shared: int = 1 << 15,
    seed: int = 0,
    **options: Any,
) -> Counts:
    """Run a program whose parameters are these."""
    return run(
        program(text, len(buffers), threads),
        grid=grid,
        arguments=buffers,
        shared_bytes=shared,
        seed=seed,
        options=EmulationOptions(**options),
    )


def buffer(name: str, array: Array, written: bool = True) -> Buffer:
    """A buffer that holds a copy of an array."""
    return Buffer(name, np.ascontiguousarray(array).view("u1").reshape(-1).copy(), written)


_CLASS = {1: "%h", 2: "%h", 4: "%r", 8: "%d"}


def compute(instructions: str, operands: Sequence[Array], result: str) -> Array:
    """What instructions make of operands, one element a lane.

    Operand 0 is in register ``$0``, and so on, in one of its width (a predicate for bool); the
    result is in ``$r`` and has the NumPy type ``result``.
    """
    lines, addresses = ["mov.u32 %r0, %tid.x;"], []
    for number, operand in enumerate(operands):
        size = operand.itemsize
        register = f"{_CLASS[size]}{number + 1}"
        lines += [
            f"ld.param.b64 %d30, [p{number}];",
            f"mad.wide.u32 %d31, %r0, {size}, %d30;",
            f"ld.global.b{8 * size} {register}, [%d31];",
        ]
        if operand.dtype == bool:
            lines.append(f"setp.ne.b16 %p{number + 1}, {register}, 0;")
            register = f"%p{number + 1}"
        addresses.append(register)
    kept = np.dtype("i4") if result == "bool" else np.dtype(result)
    target = "%p20" if result == "bool" else f"{_CLASS[kept.itemsize]}20"
    for number, register in enumerate(addresses):
        instructions = instructions.replace(f"${number}", register)
    lines.append(instructions.replace("$r", target))
    if result == "bool":
        lines.append("selp.b32 %r20, 1, 0, %p20;")
        target = "%r20"
    lines += [
        f"ld.param.b64 %d30, [p{len(operands)}];",
        f"mad.wide.u32 %d31, %r0, {kept.itemsize}, %d30;",
        f"st.global.b{8 * kept.itemsize} [%d31], {target};",
    ]
    out = buffer("out", np.zeros(LANES, kept), written=False)
    launch("\n".join(lines), *(buffer(f"in{i}", o) for i, o in enumerate(operands)), out)
    return out.data.view(kept).astype(bool) if result == "bool" else out.data.view(kept)


def integers(kind: str) -> Array:
    """[LANES] integers: the smallest and largest, small ones, and any."""
    dtype = np.dtype(kind)
    info = np.iinfo(dtype)
    any_ = np.random.randint(0, 256, LANES * dtype.itemsize, dtype="u1").view(dtype)
    small = np.random.randint(-4 if info.min else 0, 40, LANES).astype(dtype)
    ends = np.random.choice(np.array([info.min, info.max, 0, 1, info.max - 1], dtype), LANES)
    return np.choose(np.random.randint(0, 3, LANES), [any_, small, ends])


_SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 0.5, 3.0, 65504.0]


def floats(kind: str, special: bool = True) -> Array:
    """[LANES] floats ``f2``, ``f4`` or ``f8``: special ones, subnormal ones, short and any."""
    dtype = np.dtype(kind)
    any_ = np.random.randint(0, 256, LANES * dtype.itemsize, dtype="u1").view(dtype)
    normal = np.random.randn(LANES).astype(dtype)
    short = (np.random.randint(-64, 65, LANES) * 2.0 ** np.random.randint(-8, 4, LANES)).astype(
        dtype
    )
    tiny = (np.random.randn(LANES) * float(np.finfo(dtype).tiny)).astype(dtype)
    ends = np.random.choice(np.array(_SPECIAL, dtype), LANES)
    chosen = np.choose(np.random.randint(0, 5, LANES), [any_, normal, short, tiny, ends])
    return chosen if special else np.where(np.isfinite(chosen), chosen, normal)


FORMATS = {"f32": (24, -149, 128), "f16": (11, -24, 16), "bf16": (8, -133, 128)}
"""Bits of the mantissa, exponent of the smallest number, and of the first one that is too large."""


def rounded(value: Fraction, kind: str) -> float:
    """A number rounded once to nearest even, as a float64, which holds all of these types."""
    bits, lowest, top = FORMATS[kind]
    if value == 0:
        return 0.0
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    while Fraction(2) ** exponent > size:
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= size:
        exponent += 1
    unit = Fraction(2) ** max(exponent - bits + 1, lowest)
    near = round(size / unit) * unit  # Python rounds halves to even
    result = np.inf if near >= Fraction(2) ** top else float(near)
    return -result if value < 0 else result


def bf16_values(bits: Array) -> Array:
    """float32 values of bfloat16 patterns uint16 [...]."""
    return (bits.astype("u4") << 16).view("f4")


def same(found: Array, wanted: Array) -> bool:
    """Whether floats are equal, NaN being equal to NaN; the sign of zero does not count."""
    return bool(np.array_equal(found, wanted, equal_nan=True))
