"""cvt against Python's integers, exact fractions and torch's small floats."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from emulate_support import LANES, bf16_values, compute, floats, integers, rounded, same

Array = np.ndarray[Any, Any]

_TYPES = {"s8": "i1", "u8": "u1", "s16": "i2", "u16": "u2", "s32": "i4", "u32": "u4"}
_TYPES |= {"s64": "i8", "u64": "u8"}


@pytest.mark.parametrize(
    ("target", "source"),
    [
        ("s64", "s32"),
        ("u64", "u32"),
        ("u32", "u64"),
        ("u16", "u32"),
        ("u32", "u16"),
        ("s32", "s16"),
        ("s64", "s16"),
        ("u16", "u64"),
        ("u64", "u16"),
        ("s32", "u16"),
        ("u64", "s32"),
    ],
)
def test_between_integers(target: str, source: str) -> None:
    a = integers(_TYPES[source])
    found = compute(f"cvt.{target}.{source} $r, $0;", [a], _TYPES[target])
    bits = int(target[1:])
    wanted = [x & ((1 << bits) - 1) for x in a.tolist()]
    assert found.view(f"u{bits // 8}").tolist() == wanted


@pytest.mark.parametrize(
    ("target", "source", "kept"),
    [("s16", "s8", "u2"), ("s32", "s8", "u2"), ("s64", "s8", "u8"), ("s8", "s64", "u8")],
)
def test_bytes_in_wider_registers(target: str, source: str, kept: str) -> None:
    """The lower byte of a source counts; a result of a byte fills its register with its sign."""
    a = integers(kept)
    width = {"s8": "i2", "s16": "i2", "s32": "i4", "s64": "i8"}[target]
    found = compute(f"cvt.{target}.{source} $r, $0;", [a], width)
    assert found.tolist() == [((x & 255) ^ 128) - 128 for x in a.tolist()]


@pytest.mark.parametrize("source", ["s16", "u16", "s32", "u32"])
def test_integers_to_float16(source: str) -> None:
    a = integers(_TYPES[source])
    near = np.arange(len(a)).astype(_TYPES[source]) * 37 + 2000  # where not every number is one
    for x in (a, near):
        found = compute(f"cvt.rn.f16.{source} $r, $0;", [x], "f2")
        assert same(found, np.array([rounded(Fraction(n), "f16") for n in x.tolist()], "f2"))


@pytest.mark.parametrize("source", ["s32", "u32", "s64", "u64"])
def test_integers_to_float32(source: str) -> None:
    a = integers(_TYPES[source])
    found = compute(f"cvt.rn.f32.{source} $r, $0;", [a], "f4")
    assert same(found, np.array([rounded(Fraction(x), "f32") for x in a.tolist()], "f4"))


def test_integers_to_float64():
    a = integers("i8")
    assert compute("cvt.rn.f64.s64 $r, $0;", [a], "f8").tolist() == [float(x) for x in a.tolist()]


@pytest.mark.parametrize("source", ["f32", "f64"])
@pytest.mark.parametrize("target", ["s32", "u32", "s64", "u64"])
@pytest.mark.parametrize(
    ("mode", "work"), [("rzi", math.trunc), ("rni", round), ("rmi", math.floor)]
)
def test_floats_to_integers(mode: str, work: Any, target: str, source: str) -> None:
    a = floats({"f32": "f4", "f64": "f8"}[source])
    a[:9] = [2.0**31, -(2.0**31), 2.0**32, 2.0**63, -(2.0**63), 2.0**64, -0.5, 0.5, 1.5]
    spread = np.arange(LANES) % 2 == 1
    spread[:9] = False
    a[spread] = np.ldexp(np.random.randn(LANES), np.random.randint(0, 70, LANES))[spread]
    info = np.iinfo(_TYPES[target])

    def one(x: float) -> int:
        if math.isnan(x):
            return 0
        return min(
            max(work(x) if math.isfinite(x) else (x > 0) * 2**80 - 2**79, info.min), info.max
        )

    found = compute(f"cvt.{mode}.{target}.{source} $r, $0;", [a], _TYPES[target])
    assert found.tolist() == [one(x) for x in a.tolist()]


def test_between_float32_and_float64():
    a, b = floats("f4"), floats("f8")
    assert same(compute("cvt.f64.f32 $r, $0;", [a], "f8"), np.array(a.tolist()))
    wanted = [rounded(Fraction(x), "f32") if math.isfinite(x) else x for x in b.tolist()]
    assert same(compute("cvt.rn.f32.f64 $r, $0;", [b], "f4").astype("f8"), np.array(wanted))


def _rounded(values: Array, kind: str) -> Array:
    return np.array(
        [rounded(Fraction(x), kind) if math.isfinite(x) else x for x in values.tolist()]
    )


def test_16_bit_floats():
    a, half = floats("f4"), floats("f2")
    brain = (floats("f4").view("u4") >> 16).astype("u2")
    assert same(compute("cvt.f32.f16 $r, $0;", [half], "f4"), np.array(half.tolist(), "f4"))
    assert same(compute("cvt.f32.bf16 $r, $0;", [brain], "f4"), bf16_values(brain))
    assert same(compute("cvt.rn.f16.f32 $r, $0;", [a], "f2").astype("f8"), _rounded(a, "f16"))
    found = bf16_values(compute("cvt.rn.bf16.f32 $r, $0;", [a], "u2"))
    assert same(found.astype("f8"), _rounded(a, "bf16"))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_pairs_take_the_first_operand_as_the_upper(kind: str) -> None:
    high, low = floats("f4"), floats("f4")
    halves = (
        compute(f"cvt.rn.{kind}x2.f32 $r, $0, $1;", [high, low], "u4").view("u2").reshape(-1, 2)
    )
    values = bf16_values(halves) if kind == "bf16" else halves.view("f2")
    assert same(values[:, 0].astype("f8"), _rounded(low, kind))
    assert same(values[:, 1].astype("f8"), _rounded(high, kind))


def test_all_e4m3_to_float16():
    codes = np.arange(256, dtype="u1")
    pairs = codes.view("u2")
    found = compute("cvt.rn.f16x2.e4m3x2 $r, $0;", [pairs], "u4").view("f2")
    wanted = torch.from_numpy(codes).view(torch.float8_e4m3fn).half().numpy()
    assert same(found, wanted)


def test_float32_to_e4m3():
    high, low = (np.ldexp(np.random.randn(LANES), np.random.randint(-12, 12, LANES)) for _ in "ab")
    middles = torch.arange(126, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    low[:125] = ((middles[1:] + middles[:-1]) / 2).numpy()  # halves go to even
    high[:5] = [1e9, -np.inf, np.inf, 464.0, np.nan]
    a, b = high.astype("f4"), low.astype("f4")
    found = (
        compute("cvt.rn.satfinite.e4m3x2.f32 $r, $0, $1;", [a, b], "u2").view("u1").reshape(-1, 2)
    )
    for values, codes in ((b, found[:, 0]), (a, found[:, 1])):
        # torch's conversion does not saturate, so the clamp is done before.
        wanted = torch.from_numpy(values).clamp(-448, 448).to(torch.float8_e4m3fn).float()
        assert same(
            torch.from_numpy(codes.copy()).view(torch.float8_e4m3fn).float().numpy(), wanted.numpy()
        )
