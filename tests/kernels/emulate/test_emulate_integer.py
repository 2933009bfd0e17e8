"""Integer and logic instructions against formulas in Python's integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulate_support import LANES, compute, integers

_NUMPY = {"s": "i", "u": "u", "b": "u"}


def _type(kind: str) -> str:
    return f"{_NUMPY[kind[0]]}{int(kind[1:]) // 8}"


def _wrap(value: int, dtype: str) -> int:
    bits = 8 * np.dtype(dtype).itemsize
    value &= (1 << bits) - 1
    return value - (1 << bits) if dtype[0] == "i" and value >> bits - 1 else value


def _check(
    text: str, kinds: list[str], result: str, formula: Callable[..., int], **fixed: Any
) -> None:
    operands = [fixed.get(f"operand{i}", integers(_type(kind))) for i, kind in enumerate(kinds)]
    found = compute(text, operands, _type(result))
    rows = zip(*(operand.tolist() for operand in operands), strict=True)
    wanted = [_wrap(formula(*row), _type(result)) for row in rows]
    assert found.tolist() == wanted


def _truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


TWO: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "min": min,
    "max": max,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "mul.lo": lambda a, b: a * b,
}


@pytest.mark.parametrize(
    "name",
    [
        *(f"{op}.{kind}" for op in ("add", "sub") for kind in ("s16", "s32", "s64", "u32", "u64")),
        *(f"{op}.{kind}" for op in ("min", "max") for kind in ("s32", "s64", "u32", "u64")),
        *(f"{op}.{kind}" for op in ("and", "or", "xor") for kind in ("b16", "b32", "b64")),
        *(f"mul.lo.{kind}" for kind in ("s16", "u16", "s32", "u32", "s64")),
    ],
)
def test_two_operands(name: str) -> None:
    op, kind = name.rsplit(".", 1)
    _check(f"{name} $r, $0, $1;", [kind, kind], kind, TWO[op])


@pytest.mark.parametrize("name", ["add.s16x2", "sub.s16x2", "max.s16x2", "min.u16x2"])
def test_pairs_of_16_bits(name: str) -> None:
    op, kind = name.split(".")
    half = "i2" if kind[0] == "s" else "u2"
    a, b = integers("u4"), integers("u4")
    found = compute(f"{name} $r, $0, $1;", [a, b], "u4")
    pairs = zip(a.view(half).tolist(), b.view(half).tolist(), strict=True)
    assert found.view(half).tolist() == [_wrap(TWO[op](x, y), half) for x, y in pairs]


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32"])
def test_products(kind: str) -> None:
    bits = int(kind[1:])
    wide = f"{kind[0]}{2 * bits}"
    _check(f"mul.wide.{kind} $r, $0, $1;", [kind, kind], wide, lambda a, b: a * b)
    _check(f"mul.hi.{kind} $r, $0, $1;", [kind, kind], kind, lambda a, b: (a * b) >> bits)
    _check(f"mad.lo.{kind} $r, $0, $1, $2;", [kind] * 3, kind, lambda a, b, c: a * b + c)
    _check(f"mad.wide.{kind} $r, $0, $1, $2;", [kind, kind, wide], wide, lambda a, b, c: a * b + c)


def test_product_and_sum_of_64_bits():
    _check("mad.lo.s64 $r, $0, $1, $2;", ["s64"] * 3, "s64", lambda a, b, c: a * b + c)


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_quotients(kind: str) -> None:
    divisor = integers(_type(kind))
    divisor[divisor == 0] = 7  # of no quotient by zero does PTX say anything
    _check(f"div.{kind} $r, $0, $1;", [kind, kind], kind, _truncated, operand1=divisor)
    remainder = lambda a, b: a - b * _truncated(a, b)  # noqa: E731
    _check(f"rem.{kind} $r, $0, $1;", [kind, kind], kind, remainder, operand1=divisor)


@pytest.mark.parametrize("kind", ["s16", "s32", "s64"])
def test_one_operand(kind: str) -> None:
    _check(f"neg.{kind} $r, $0;", [kind], kind, lambda a: -a)
    _check(f"not.b{kind[1:]} $r, $0;", [kind], kind, lambda a: ~a)
    if kind != "s16":
        _check(f"abs.{kind} $r, $0;", [kind], kind, lambda a: abs(a))


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64"])
def test_shifts(kind: str) -> None:
    bits = int(kind[1:])
    amounts = np.random.randint(0, bits + 3, LANES).astype("u4")
    if kind[0] == "b":
        _check(
            f"shl.{kind} $r, $0, $1;", [kind, "u32"], kind, lambda a, n: a << n, operand1=amounts
        )
    _check(f"shr.{kind} $r, $0, $1;", [kind, "u32"], kind, lambda a, n: a >> n, operand1=amounts)
    for amount in (0, 1, bits - 1, bits):
        _check(f"shr.{kind} $r, $0, {amount};", [kind], kind, lambda a, n=amount: a >> n)


@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_bit_fields(kind: str) -> None:
    begin = np.random.randint(0, 34, LANES).astype("u4")
    length = np.random.randint(0, 34, LANES).astype("u4")

    def formula(a: int, at: int, count: int) -> int:
        if count == 0:
            return 0
        # The ISA's pseudocode: bits beyond the word repeat the sign, or are 0.
        word = a & 0xFFFFFFFF
        last = min(at + count - 1, 31)
        sign = kind == "s32" and bool(word >> last & 1)
        field = [(word >> at + i & 1) if i < count and at + i <= 31 else sign for i in range(32)]
        return sum(bit << i for i, bit in enumerate(field))

    _check(
        f"bfe.{kind} $r, $0, $1, $2;",
        [kind, "u32", "u32"],
        kind,
        formula,
        operand1=begin,
        operand2=length,
    )


@pytest.mark.parametrize("kind", ["b32", "b64"])
def test_counts_of_bits(kind: str) -> None:
    _check(f"popc.{kind} $r, $0;", [kind], "b32", lambda a: a.bit_count())


@pytest.mark.parametrize("table", [0xEA, 0x96, 0x00, 0xFF, 0x3C, 0xE8, 0x01])
def test_logic_of_three(table: int) -> None:
    def formula(a: int, b: int, c: int) -> int:
        each = [(a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1) for i in range(32)]
        return sum((table >> place & 1) << i for i, place in enumerate(each))

    _check(f"lop3.b32 $r, $0, $1, $2, {table:#x};", ["b32"] * 3, "b32", formula)


def _permuted(a: int, b: int, selector: int) -> int:
    pool, total = (b << 32 | a).to_bytes(8, "little"), 0
    for place in range(4):
        choice = selector >> 4 * place & 15
        byte = pool[choice & 7]
        total |= (byte if choice < 8 else 255 * (byte >> 7)) << 8 * place
    return total


def test_permutation_of_bytes():
    _check("prmt.b32 $r, $0, $1, $2;", ["b32"] * 3, "b32", _permuted)


@pytest.mark.parametrize(
    "selector", [0x2301, 0x3210, 0x5410, 0x7632, 0x3334, 0x0000, 0x7770, 0xBA98]
)
def test_fixed_permutation_of_bytes(selector: int) -> None:
    text = f"prmt.b32 $r, $0, $1, {selector:#x}U;"
    _check(text, ["b32", "b32"], "b32", lambda a, b: _permuted(a, b, selector))


COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(kind: str, name: str) -> None:
    a, b = integers(_type(kind)), integers(_type(kind))
    equal = np.random.rand(LANES) < 0.3
    b[equal] = a[equal]
    found = compute(f"setp.{name}.{kind} $r, $0, $1;", [a, b], "bool")
    wanted = [COMPARISONS[name](x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert found.tolist() == wanted


@pytest.mark.parametrize("kind", ["b16", "b32", "b64"])
def test_selection(kind: str) -> None:
    a, b = integers(_type(kind)), integers(_type(kind))
    chosen = np.random.rand(LANES) < 0.5
    found = compute(f"selp.{kind} $r, $0, $1, $2;", [a, b, chosen], _type(kind))
    assert found.tolist() == np.where(chosen, a, b).tolist()


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("and.pred $r, $0, $1;", np.logical_and),
        ("or.pred $r, $0, $1;", np.logical_or),
        ("xor.pred $r, $0, $1;", np.logical_xor),
        ("not.pred $r, $0;", lambda a, b: ~a),
        ("mov.pred $r, $1;", lambda a, b: b),
        ("mov.pred $r, -1;", lambda a, b: a | True),
        ("mov.pred $r, 0;", lambda a, b: a & False),
    ],
)
def test_predicates(text: str, formula: Any) -> None:
    a, b = np.random.rand(2, LANES) < 0.5
    assert compute(text, [a, b], "bool").tolist() == formula(a, b).tolist()


@pytest.mark.parametrize("sign", ["", "!"])
def test_guards(sign: str) -> None:
    a, b = integers("u4"), integers("u4")
    guard = np.random.rand(LANES) < 0.5
    found = compute(f"mov.b32 $r, $0; @{sign}$2 mov.b32 $r, $1;", [a, b, guard], "u4")
    assert found.tolist() == np.where(guard ^ (sign == "!"), b, a).tolist()


def test_moves_take_numbers_and_pack():
    a, b = integers("u4"), integers("u4")
    halves = "mov.b32 {%h5, %h6}, $0; mov.b32 {_, %h7}, $1; mov.b32 $r, {%h6, %h7};"
    assert compute(halves, [a, b], "u4").tolist() == ((a >> 16) | (b >> 16 << 16)).tolist()
    wide = "mov.b64 %d5, {$0, $1}; mov.b64 {%r7, _}, %d5; mov.b64 {_, %r8}, %d5;"
    swapped = compute(wide + "mov.b64 $r, {%r8, %r7};", [a, b], "u8")
    assert swapped.view("u4").reshape(-1, 2).T.tolist() == [b.tolist(), a.tolist()]
    numbers = {"-128": 0xFF80, "0x7fU": 0x7F}
    for text, value in numbers.items():
        assert set(compute(f"mov.b16 $r, {text};", [], "u2").tolist()) == {value}
    assert set(compute("mov.b32 $r, 0f3F800000;", [], "f4").tolist()) == {1.0}
    assert set(compute("mov.b64 $r, 0d3FF8000000000000;", [], "f8").tolist()) == {1.5}
