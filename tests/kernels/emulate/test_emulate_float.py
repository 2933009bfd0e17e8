"""Floating-point instructions against exact rational arithmetic that is rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from emulate_support import LANES, bf16_values, compute, floats, rounded, same

Array = np.ndarray[Any, Any]

EXACT: dict[str, Callable[..., Fraction]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "fma": lambda a, b, c: a * b + c,
}


def _operands(kind: str, count: int) -> list[Array]:
    """Operands as they are kept: floats, or patterns of bfloat16."""
    if kind == "bf16":
        return [(floats("f4").view("u4") >> 16).astype("u2") for _ in range(count)]
    return [floats({"f16": "f2", "f32": "f4"}[kind]) for _ in range(count)]


def _values(kept: Array) -> Array:
    with np.errstate(invalid="ignore"):  # of NaNs that signal
        return (bf16_values(kept) if kept.dtype.kind == "u" else kept).astype("f8")


def _wanted(op: str, kind: str, operands: list[Array]) -> Array:
    """Rounded once where all operands and the divisor are ordinary; by IEEE's rules elsewhere."""
    columns = [_values(operand) for operand in operands]
    result = np.empty(len(columns[0]))
    with np.errstate(all="ignore"):
        for lane, row in enumerate(zip(*columns, strict=True)):
            if all(map(math.isfinite, row)) and not (op == "div" and row[1] == 0):
                result[lane] = rounded(EXACT[op](*map(Fraction, row)), kind)
            else:
                a, b, c = (*row, 0.0)[:3]
                plain = {"add": a + b, "sub": a - b, "mul": a * b, "fma": a * b + c}
                result[lane] = plain[op] if op in plain else np.float64(a) / np.float64(b)
    return result


def _check(text: str, op: str, kind: str, count: int) -> None:
    operands = _operands(kind, count)
    found = compute(text, operands, operands[0].dtype.str)
    assert same(_values(found), _wanted(op, kind, operands))


@pytest.mark.parametrize("kind", ["f32", "f16"])
@pytest.mark.parametrize("op", ["add", "sub", "mul"])
def test_sums_and_products(op: str, kind: str) -> None:
    _check(f"{op}.{kind} $r, $0, $1;", op, kind, 2)


@pytest.mark.parametrize("name", ["div.rn.f32", "div.full.f32"])
def test_quotients_of_floats(name: str) -> None:
    _check(f"{name} $r, $0, $1;", "div", "f32", 2)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_fused_multiply_add(kind: str) -> None:
    for _ in range(4):
        _check(f"fma.rn.{kind} $r, $0, $1, $2;", "fma", kind, 3)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_fused_multiply_add_rounds_once(kind: str) -> None:
    """Products at the middle between two numbers, and a third operand too small to be seen."""
    bits = {"f32": 24, "f16": 11, "bf16": 8}[kind]
    # (1 + 2**-n)(1 + 2**-m) lies half-way where n + m = bits.
    n = np.random.randint(1, bits, LANES)
    sign = np.random.choice([-1.0, 1.0], LANES)
    tiny = np.ldexp(
        np.random.choice([-1.0, 0.0, 1.0], LANES), {"f32": -90, "f16": -24}.get(kind, -90)
    )
    columns = [sign * (1 + 2.0**-n), 1 + 2.0 ** (n - bits), tiny]
    if kind == "bf16":
        operands = [(c.astype("f4").view("u4") >> 16).astype("u2") for c in columns]
    else:
        operands = [c.astype({"f32": "f4", "f16": "f2"}[kind]) for c in columns]
    assert all(np.array_equal(_values(o), c) for o, c in zip(operands, columns, strict=True))
    found = compute(f"fma.rn.{kind} $r, $0, $1, $2;", operands, operands[0].dtype.str)
    assert same(_values(found), _wanted("fma", kind, operands))


def test_fused_multiply_add_rounds_once_below_the_normal_numbers():
    """A product just short of half the smallest number, and a sum that needs more than 53 bits."""
    unit = 2.0**-75
    a = np.full(LANES, unit * (1 + 2.0**-23), "f4")
    b = np.full(LANES, unit * (1 - 2.0**-23), "f4") * np.random.choice([-1.0, 1.0], LANES).astype(
        "f4"
    )
    c = (2.0**-149 * np.random.randint(2**22, 2**23, LANES)).astype("f4")
    found = compute("fma.rn.f32 $r, $0, $1, $2;", [a, b, c], "f4")
    assert same(_values(found), _wanted("fma", "f32", [a, b, c]))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("op", ["add", "sub", "mul", "fma"])
def test_pairs_of_floats(op: str, kind: str) -> None:
    count = 3 if op == "fma" else 2
    low, high = _operands(kind, count), _operands(kind, count)
    pairs = [np.stack([a, b], 1).view("u4").reshape(-1) for a, b in zip(low, high, strict=True)]
    names = ", ".join(f"${i}" for i in range(count))
    found = compute(f"{op}{'.rn' if count == 3 else ''}.{kind}x2 $r, {names};", pairs, "u4")
    halves = found.view(low[0].dtype).reshape(-1, 2)
    assert same(_values(halves[:, 0]), _wanted(op, kind, low))
    assert same(_values(halves[:, 1]), _wanted(op, kind, high))


def test_product_of_float64():
    a, b = floats("f8"), floats("f8")
    with np.errstate(all="ignore"):
        wanted = [x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert same(compute("mul.f64 $r, $0, $1;", [a, b], "f8"), np.array(wanted))


def _flush(x: float) -> float:
    return math.copysign(0.0, x) if abs(x) < 2.0**-126 else x


def test_flushing_of_subnormal_numbers():
    a, b, c = (floats("f4", special=False) for _ in range(3))
    exact = [
        rounded(Fraction(_flush(x)) * Fraction(_flush(y)) + Fraction(_flush(z)), "f32")
        for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    ]
    found = compute("fma.rn.ftz.f32 $r, $0, $1, $2;", [a, b, c], "f4")
    assert same(found, np.array([_flush(x) for x in exact], "f4"))


@pytest.mark.parametrize("op", ["min", "max"])
def test_least_and_greatest(op: str) -> None:
    a, b = floats("f4"), floats("f4")

    def one(x: float, y: float) -> float:
        if math.isnan(x) or math.isnan(y):
            return y if math.isnan(x) else x
        return min(x, y) if op == "min" else max(x, y)

    wanted = np.array([one(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)], "f4")
    assert same(compute(f"{op}.f32 $r, $0, $1;", [a, b], "f4"), wanted)


def test_sign_of_floats():
    a = floats("f4")
    flip = compute("neg.f32 $r, $0;", [a], "u4")
    bits = a.view("u4")
    ordinary = ~np.isnan(a)
    assert np.array_equal(flip[ordinary], (bits ^ 0x80000000)[ordinary])
    assert np.array_equal(
        compute("abs.f32 $r, $0;", [a], "u4")[ordinary], (bits & 0x7FFFFFFF)[ordinary]
    )


def test_square_root():
    a = np.abs(floats("f4", special=False))
    found = compute("sqrt.rn.f32 $r, $0;", [a], "f4")
    for x, root in zip(a.tolist(), found, strict=True):
        # Nearest: the exact root lies between the middles to both neighbours.
        below, above = (
            (Fraction(float(root)) + Fraction(float(np.nextafter(root, np.float32(to))))) / 2
            for to in (-np.inf, np.inf)
        )
        assert (below < 0 or below**2 <= Fraction(x)) and Fraction(x) <= above**2


@pytest.mark.parametrize("ftz", ["", ".ftz"])
def test_power_of_two(ftz: str) -> None:
    a = np.random.uniform(-160, 140, LANES).astype("f4")
    a[:4] = [0.0, 1.0, -np.inf, np.inf]
    found = compute(f"ex2.approx{ftz}.f32 $r, $0;", [a], "f4")
    wanted = np.array([math.inf if x >= 128 else 2.0**x for x in a.tolist()])
    if ftz:
        wanted = np.where(wanted < 2.0**-126, 0.0, wanted)
    finite = np.isfinite(wanted)
    assert np.array_equal(np.isfinite(found), finite)
    # Half a unit in the last place of a normal number, and half the smallest one below.
    error = np.abs(found[finite] - wanted[finite])
    assert (error <= np.maximum(2.0**-24 * wanted[finite], 2.0**-150)).all()


FLOAT_COMPARISONS: dict[str, tuple[Callable[[float, float], bool], bool]] = {
    name + suffix: (work, suffix == "u")
    for name, work in {
        "eq": lambda a, b: a == b,
        "ne": lambda a, b: a != b,
        "lt": lambda a, b: a < b,
        "le": lambda a, b: a <= b,
        "gt": lambda a, b: a > b,
        "ge": lambda a, b: a >= b,
    }.items()
    for suffix in ("", "u")
} | {"num": (lambda a, b: True, False), "nan": (lambda a, b: False, True)}


@pytest.mark.parametrize("kind", ["f32", "f64", "f16", "bf16"])
@pytest.mark.parametrize("name", FLOAT_COMPARISONS)
def test_comparisons_of_floats(name: str, kind: str) -> None:
    a, b = [floats("f8"), floats("f8")] if kind == "f64" else _operands(kind, 2)
    equal = np.random.rand(LANES) < 0.3
    b[equal] = a[equal]
    found = compute(f"setp.{name}.{kind} $r, $0, $1;", [a, b], "bool")
    work, unordered = FLOAT_COMPARISONS[name]
    wanted = [
        unordered if math.isnan(x) or math.isnan(y) else work(x, y)
        for x, y in zip(_values(a).tolist(), _values(b).tolist(), strict=True)
    ]
    assert found.tolist() == wanted
