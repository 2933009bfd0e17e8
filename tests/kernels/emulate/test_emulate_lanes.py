"""Instructions across the lanes of a warp, and lanes that branch apart."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from emulate_support import LANES, buffer, compute, floats, integers, launch

from halfbyte.kernels.codegen.emulate import (
    BarrierFault,
    DeadlockFault,
    OutOfBoundsFault,
    UnsupportedFault,
)


def _source(mode: str, lane: int, amount: int, clamp: int) -> tuple[int, bool]:
    """The ISA's pseudocode of shfl: (source lane, whether it was in range)."""
    mask, value = clamp >> 8 & 31, clamp & 31
    most, least = (lane & mask) | (value & ~mask & 31), lane & mask
    if mode == "up":
        source, inside = lane - amount, lane - amount >= most
    elif mode == "down":
        source, inside = lane + amount, lane + amount <= most
    elif mode == "bfly":
        source, inside = lane ^ amount, lane ^ amount <= most
    else:
        source = least | (amount & ~mask & 31)
        inside = source <= most
    return (source, inside) if inside else (lane, False)


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize(
    ("mode", "clamp"),
    [
        *((mode, 31) for mode in ("down", "bfly", "idx")),
        ("up", 0),
        *((mode, 0x181F) for mode in ("down", "bfly", "idx")),  # segments of 8 lanes
        ("up", 0x1800),
    ],
)
def test_shuffles(mode: str, clamp: int, fixed: bool) -> None:
    a = integers("u4")
    amount = np.full(LANES, np.random.randint(0, 32), "u4")
    if not fixed:
        amount = np.random.randint(0, 32, LANES).astype("u4")
    operand = str(amount[0]) if fixed else "$1"
    text = f"shfl.sync.{mode}.b32 $r, $0, {operand}, {clamp}, -1;"
    found = compute(text, [a, amount], "u4")
    text = f"shfl.sync.{mode}.b32 %r9|$r, $0, {operand}, {clamp}, -1;"
    ranges = compute(text, [a, amount], "bool")
    for thread in range(LANES):
        source, inside = _source(mode, thread % 32, int(amount[thread]), clamp)
        assert found[thread] == a[thread // 32 * 32 + source]
        assert ranges[thread] == inside


@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("add.s32", sum),
        ("min.s32", min),
        ("max.s32", max),
        ("min.u32", min),
        ("max.u32", max),
    ],
)
def test_reductions(name: str, work: Callable[[list[int]], int]) -> None:
    a = integers("i4" if name.endswith("s32") else "u4")
    found = compute(f"redux.sync.{name} $r, $0, -1;", [a], a.dtype.str)
    for warp in range(LANES // 32):
        row = a[32 * warp : 32 * warp + 32].tolist()
        wanted = np.array(work(row) & 0xFFFFFFFF, "u4").view(a.dtype)
        assert (found[32 * warp : 32 * warp + 32] == wanted).all()


def test_votes():
    a = np.random.choice([True, False], LANES, p=[0.9, 0.1])
    a[:32] = True
    rows = a.reshape(-1, 32)
    ballots = compute("vote.sync.ballot.b32 $r, $0, -1;", [a], "u4").reshape(-1, 32)
    wanted = [sum(int(bit) << i for i, bit in enumerate(row)) for row in rows]
    assert (ballots == np.array(wanted, "u4")[:, None]).all()
    every = compute("vote.sync.all.pred $r, $0, -1;", [a], "bool").reshape(-1, 32)
    assert (every == np.all(rows, axis=1, keepdims=True)).all()
    some = compute("vote.sync.any.pred $r, $0, -1;", [~a], "bool").reshape(-1, 32)
    assert (some == np.any(~rows, axis=1, keepdims=True)).all()


def test_a_part_of_the_lanes_is_refused():
    with pytest.raises(UnsupportedFault, match="not all lanes"):
        compute("shfl.sync.bfly.b32 $r, $0, 1, 31, 15;", [integers("u4")], "u4")


DIVERGING = """
mov.b32 $r, 0;
mov.b32 %r9, 0;
$LOOP:
setp.ge.u32 %p9, %r9, $0;
@%p9 bra $DONE;
add.s32 $r, $r, %r9;
and.b32 %r10, $r, 1;
setp.eq.b32 %p10, %r10, 0;
@%p10 bra $EVEN;
add.s32 $r, $r, 5;
bra.uni $NEXT;
$EVEN:
shl.b32 $r, $r, 1;
$NEXT:
add.s32 %r9, %r9, 1;
bra.uni $LOOP;
$DONE:
"""


@pytest.mark.parametrize("seed", range(3))
def test_lanes_branch_apart_and_meet_again(seed: int) -> None:
    """A loop whose length and path each lane has of its own, then an instruction of whole warps."""
    counts = np.random.randint(0, 12, LANES).astype("u4")
    text = DIVERGING + "shfl.sync.bfly.b32 $r, $r, 0, 31, -1;"
    found = compute(re.sub(r"\$(?=[A-Z])", "$L", text), [counts], "u4")
    for count, value in zip(counts.tolist(), found.tolist(), strict=True):
        total = 0
        for step in range(count):
            total += step
            total = total + 5 if total % 2 else total * 2
        assert value == total & 0xFFFFFFFF


def test_an_instruction_of_whole_warps_in_a_part_of_one_is_a_fault():
    text = "setp.gt.u32 %p9, $0, 3; @%p9 bra $L1; shfl.sync.bfly.b32 $r, $0, 1, 31, -1; $L1:"
    with pytest.raises(BarrierFault, match="elsewhere"):
        compute(text, [np.arange(LANES, dtype="u4")], "u4")


def test_a_loop_without_end_is_a_fault():
    with pytest.raises(DeadlockFault, match="no end after"):
        launch("$L1: bar.sync 0; bra.uni $L1;", limit=50, longest=5)


@pytest.mark.parametrize("seed", range(6))
def test_a_barrier_that_others_never_reach_is_a_fault(seed: int) -> None:
    text = "mov.u32 %r1, %tid.x; setp.gt.u32 %p1, %r1, 31; @%p1 bra $L1; bar.sync 0; $L1:"
    with pytest.raises(BarrierFault, match="have ended"):
        launch(text, seed=seed)


@pytest.mark.parametrize("seed", range(3))
def test_many_ctas_and_their_numbers(seed: int) -> None:
    """More CTAs than there are slots: each writes its coordinates and those of its thread."""
    grid = (3, 5, 7)
    out = buffer("out", np.zeros(3 * 5 * 7 * 64 * 2, "u4"), written=False)
    text = """
mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ctaid.y; mov.u32 %r3, %ctaid.z; mov.u32 %r4, %tid.x;
mov.u32 %r5, %nctaid.x; mov.u32 %r6, %nctaid.y; mov.u32 %r7, %ntid.x;
mad.lo.s32 %r8, %r3, %r6, %r2; mad.lo.s32 %r8, %r8, %r5, %r1; mad.lo.s32 %r8, %r8, %r7, %r4;
ld.param.b64 %d1, [p0]; mad.wide.u32 %d1, %r8, 8, %d1;
mad.lo.s32 %r9, %r2, 100, %r1; mad.lo.s32 %r9, %r3, 10000, %r9;
st.global.v2.b32 [%d1], {%r9, %r4};
"""
    launch(text, out, grid=grid, threads=64, seed=seed, resident=4, narrow=0.7, longest=3)
    found = out.data.view("u4").reshape(7, 5, 3, 64, 2)
    z, y, x, thread = np.indices((7, 5, 3, 64))
    assert np.array_equal(found[..., 0], x + 100 * y + 10000 * z)
    assert np.array_equal(found[..., 1], thread)


def test_parameters_have_their_types():
    """A float and integers of both signs, by their bits; ld.param.s32 extends the sign."""
    values = floats("f4", special=False)
    assert np.array_equal(compute("mov.b32 $r, $0;", [values], "f4"), values)
    out = buffer("out", np.zeros(LANES, "i8"), written=False)
    text = """
ld.param.s32 %d1, [p0]; ld.param.b64 %d2, [p1]; mov.u32 %r1, %tid.x;
mad.wide.u32 %d3, %r1, 8, %d2; st.global.b64 [%d3], %d1;
"""
    launch(text, -5, out)
    assert set(out.data.view("i8").tolist()) == {-5}


def test_a_parameter_is_chosen_by_its_address():
    out = buffer("out", np.zeros(LANES, "i8"), written=False)
    text = """
mov.u32 %r1, %tid.x; mov.b32 %r2, p0; mov.b32 %r3, p1; and.b32 %r4, %r1, 1;
setp.eq.b32 %p1, %r4, 0; selp.b32 %r5, %r2, %r3, %p1; ld.param.s32 %d1, [%r5{offset}];
ld.param.b64 %d2, [p2]; mad.wide.u32 %d3, %r1, 8, %d2; st.global.b64 [%d3], %d1;
"""
    launch(text.replace("{offset}", ""), -5, 7, out)
    assert out.data.view("i8").tolist() == [-5, 7] * (LANES // 2)
    with pytest.raises(OutOfBoundsFault, match="no parameter"):
        launch(text.replace("{offset}", "+4"), -5, 7, out)
