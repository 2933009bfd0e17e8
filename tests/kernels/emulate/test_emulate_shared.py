"""Shared memory: what the detector of races finds, and what it lets pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from emulate_support import LANES, buffer, launch

from halfbyte.kernels.codegen.emulate import (
    EarlyReadFault,
    EmulatedFault,
    MisalignedFault,
    MissingFenceFault,
    OutOfBoundsFault,
    RaceFault,
    UnwrittenFault,
)

SEEDS = range(4)

# %r1 is the thread, %r2 its word, %r3 the word of the thread opposite in the CTA.
_HEAD = """
mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 2;
xor.b32 %r3, %r2, 508; mov.b32 %r9, 7;
"""


def _shared(text: str, seed: int = 0, **options: Any) -> None:
    launch(_HEAD + text, seed=seed, grid=(3, 1, 1), longest=3, narrow=0.6, **options)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("st.shared.b32 [%r2], %r1;", "ld.shared.b32 %r4, [%r3];"),
        (
            "st.shared.b32 [%r2], %r9; bar.sync 0; ld.shared.b32 %r4, [%r2];",
            "st.shared.b32 [%r3], %r1;",
        ),
        ("st.shared.b32 [%r2], %r1;", "st.shared.b32 [%r3], %r1;"),
        (
            "st.shared.b32 [%r2], %r9; bar.sync 0; atom.shared.add.u32 %r4, [%r2], 1;",
            "ld.shared.b32 %r4, [%r3];",
        ),
        (
            "st.shared.b32 [%r2], %r9; bar.sync 0; ld.shared.b32 %r4, [%r2];",
            "atom.shared.add.u32 %r4, [%r3], 1;",
        ),
        (
            "st.shared.b32 [%r2], %r9; bar.sync 0; st.shared.b32 [%r2], %r1;",
            "red.shared.add.u32 [%r3], 1;",
        ),
        (
            "st.shared.b32 [%r2], %r9; red.shared.add.u32 [%r2], 1;",
            "red.shared.add.u32 [%r3], 1;",
        ),
    ],
    ids=[
        "read after write",
        "write after read",
        "write after write",
        "read of atomic",
        "atomic after read",
        "atomic after write",
        "atomic after write and atomic",
    ],
)
def test_races_are_found_whatever_the_order(first: str, second: str, seed: int) -> None:
    _shared(f"{first} bar.sync 0; {second}", seed)
    with pytest.raises(RaceFault, match="since the last barrier"):
        _shared(f"{first} {second}", seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "text",
    [
        "st.shared.b32 [%r2], %r1; ld.shared.b32 %r4, [%r2];",
        "st.shared.b32 [global_smem], %r9; bar.sync 0; ld.shared.b32 %r4, [global_smem];",
        "st.shared.b32 [%r2], %r9; bar.sync 0; ld.shared.b32 %r4, [%r2]; ld.shared.b32 %r4, [%r3];",
        "st.shared.b32 [%r2], %r9; bar.sync 0;"
        "red.shared.add.u32 [%r2], 1; red.shared.add.u32 [%r3], 1;",
        "st.shared.b32 [%r2], %r1; bar.sync 0; ld.shared.b32 %r4, [%r2]; st.shared.b32 [%r2], %r9;",
        # Within a warp lanes run in step.
        "xor.b32 %r3, %r2, 124; st.shared.b32 [%r2], %r1; ld.shared.b32 %r4, [%r3];",
    ],
    ids=["own", "equal values", "readers", "atomics", "own write after read", "own warp"],
)
def test_what_is_no_race(text: str, seed: int) -> None:
    _shared(text, seed)


def test_one_warp_has_no_races():
    text = """
mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 2; xor.b32 %r3, %r2, 4;
st.shared.b32 [%r2], %r1; red.shared.add.u32 [%r3], 1; ld.shared.b32 %r4, [%r2];
"""
    launch(text, threads=32, grid=(3, 1, 1))


@pytest.mark.parametrize(("narrow", "seed"), [(0.0, 0), (1.0, 1), (1.0, 2), (1.0, 3)])
@pytest.mark.parametrize("warp", range(4))
def test_all_readers_count(warp: int, narrow: float, seed: int) -> None:
    """All warps read a word, at once or one after the other, and then one of them stores to it."""
    text = f"""
mov.u32 %r1, %tid.x; st.shared.b32 [global_smem], 7; bar.sync 0;
ld.shared.b32 %r4, [global_smem];
setp.eq.u32 %p1, %r1, {32 * warp}; @%p1 st.shared.b32 [global_smem], %r1;
"""
    with pytest.raises(RaceFault, match="since the last barrier"):
        launch(text, narrow=narrow, longest=1, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("reader", [0, 1])
def test_warps_that_are_at_different_places(reader: int, seed: int) -> None:
    text = f"""
mov.u32 %r1, %tid.x; shr.u32 %r2, %r1, 5; st.shared.b32 [global_smem], 7; bar.sync 0;
setp.eq.u32 %p1, %r2, {reader}; @%p1 bra $LREAD;
st.shared.b32 [global_smem], 9; bra.uni $LEND;
$LREAD: ld.shared.b32 %r4, [global_smem]; $LEND:
"""
    with pytest.raises(RaceFault, match="since the last barrier"):
        launch(text, threads=64, seed=seed)


def test_lanes_that_store_different_values_to_one_place():
    with pytest.raises(RaceFault, match="different values"):
        _shared("st.shared.b32 [global_smem], %r1;")


def test_a_race_of_neighbouring_halves_of_a_word_is_none():
    text = """
and.b32 %r4, %r1, 31; shl.b32 %r4, %r4, 2; shr.u32 %r5, %r1, 5; shl.b32 %r5, %r5, 1;
and.b32 %r5, %r5, 2; add.s32 %r4, %r4, %r5; cvt.u16.u32 %h1, %r1;
setp.lt.u32 %p1, %r1, 64; @%p1 st.shared.b16 [%r4], %h1; @%p1 ld.shared.b16 %h2, [%r4];
"""
    _shared(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("st.shared.b32 [%r2+32768], %r1;", OutOfBoundsFault),
        ("st.shared.b32 [%r2+-4], %r1;", OutOfBoundsFault),
        ("add.s32 %r4, %r2, 2; st.shared.b32 [%r4], %r1;", MisalignedFault),
        ("st.shared.v2.b32 [%r2], {%r1, %r1};", MisalignedFault),
        ("ld.shared.b32 %r4, [%r2];", UnwrittenFault),
    ],
)
def test_bounds_alignment_and_first_use(text: str, fault: type[EmulatedFault]) -> None:
    with pytest.raises(fault, match=r"kernel, line \d+: .*CTA \(\d,0,0\), warp \d, lane \d"):
        _shared(text)


def test_shared_memory_of_an_earlier_cta_is_not_there():
    with pytest.raises(UnwrittenFault):
        launch(
            "mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.b32 [global_smem], %r1;"
            "bar.sync 0; ld.shared.b32 %r2, [global_smem];",
            grid=(2, 1, 1),
            resident=1,
        )


# Each thread copies 16 bytes, of which it reads its own or the opposite thread's.
_COPY = """
mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 4; xor.b32 %r3, %r2, 2032;
ld.param.b64 %d1, [p0]; cvt.u64.u32 %d2, %r2; add.s64 %d1, %d1, %d2;
ld.param.b64 %d3, [p1]; add.s64 %d3, %d3, %d2;
cp.async.cg.shared.global [%r2], [%d1], 0x10;
cp.async.commit_group;
cp.async.ca.shared.global [%r2+2048], [%d1], 0x10, %r0;
cp.async.commit_group;
{between}
ld.shared.v4.b32 {{%r4, %r5, %r6, %r7}}, [{place}];
st.global.v4.b32 [%d3], {{%r4, %r5, %r6, %r7}};
"""


def _copy(between: str, place: str, seed: int) -> np.ndarray:
    data = np.random.randint(0, 256, LANES * 16).astype("u1")
    out = buffer("out", np.zeros(LANES * 16, "u1"), written=False)
    text = _COPY.format(between=between, place=place)
    launch(text, buffer("data", data), out, seed=seed, longest=3, narrow=0.6)
    return np.stack([data.reshape(-1, 16), out.data.reshape(-1, 16)])


@pytest.mark.parametrize("seed", SEEDS)
def test_copies_arrive_with_their_wait_and_a_barrier(seed: int) -> None:
    data, out = _copy("cp.async.wait_group 1;", "%r2", seed)
    assert np.array_equal(out, data)
    data, out = _copy("cp.async.wait_group 1; bar.sync 0;", "%r3", seed)
    assert np.array_equal(out, data[::-1])
    data, out = _copy("cp.async.wait_all; bar.sync 0;", "%r3+2048", seed)
    assert (out == 0).all()  # a source of no bytes


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("between", "place", "fault"),
    [
        ("", "%r2", EarlyReadFault),
        ("bar.sync 0;", "%r3", EarlyReadFault),
        ("cp.async.wait_group 2;", "%r2", EarlyReadFault),
        ("cp.async.wait_group 1;", "%r2+2048", EarlyReadFault),
        ("cp.async.wait_group 1;", "%r3", RaceFault),
        ("bar.sync 0; cp.async.wait_group 1;", "%r3", RaceFault),
    ],
)
def test_copies_without_their_wait(
    between: str, place: str, fault: type[EmulatedFault], seed: int
) -> None:
    with pytest.raises(EmulatedFault) as found:
        _copy(between, place, seed)
    # Whether the opposite warp has waited yet is up to the order; both are faults of the kernel.
    assert isinstance(found.value, (fault, EarlyReadFault))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_copy_over_what_others_still_read(seed: int) -> None:
    copy = "cp.async.cg.shared.global [%r2], [%d1], 16;"
    again = "cp.async.wait_all; bar.sync 0; {read} {barrier}" + copy
    read = "ld.shared.b32 %r4, [%r3];"
    rest = "cp.async.wait_all; "
    _copy(again.format(read=read, barrier="bar.sync 0;") + rest, "%r2", seed)
    with pytest.raises((RaceFault, EarlyReadFault)):
        _copy(again.format(read=read, barrier="") + rest, "%r2", seed)
    for value in ("%r1", "-1"):  # -1 is what new shared memory holds here
        with pytest.raises(RaceFault, match="under way"):
            _copy(f"st.shared.b32 [%r2], {value}; cp.async.wait_all;", "%r2", seed)


def test_copies_that_a_cta_leaves_behind_do_not_reach_the_next():
    """CTAs with an even number only issue a copy, the others only wait, one after the other."""
    text = """
mov.u32 %r1, %ctaid.x; and.b32 %r1, %r1, 1; setp.eq.u32 %p1, %r1, 1; mov.b32 %r9, 5;
ld.param.b64 %d1, [p0]; @%p1 bra $LWAIT;
cp.async.ca.shared.global [global_smem], [%d1], 4; cp.async.commit_group; bra.uni $LEND;
$LWAIT: st.shared.b32 [global_smem], %r9; cp.async.wait_all; ld.shared.b32 %r4, [global_smem];
$LEND:
"""
    for seed in SEEDS:
        data = buffer("data", np.zeros(4, "u1"))
        launch(text, data, grid=(8, 1, 1), threads=32, resident=1, seed=seed)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_parts_of_a_copy_are_filled_with_zeros(size: int) -> None:
    data = np.random.randint(1, 256, LANES * 16).astype("u1")
    taken = np.random.randint(0, size + 1, LANES).astype("u4")
    out = buffer("out", np.zeros((LANES, 4), "u4"), written=False)
    text = f"""
mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 4;
ld.param.b64 %d1, [p0]; cvt.u64.u32 %d2, %r2; add.s64 %d1, %d1, %d2;
ld.param.b64 %d3, [p1]; add.s64 %d3, %d3, %d2;
ld.param.b64 %d4, [p2]; mad.wide.u32 %d4, %r1, 4, %d4; ld.global.b32 %r3, [%d4];
mov.b32 %r9, -1; st.shared.v4.b32 [%r2], {{%r9, %r9, %r9, %r9}};
cp.async.ca.shared.global [%r2], [%d1], {size}, %r3;
cp.async.wait_all;
ld.shared.v4.b32 {{%r4, %r5, %r6, %r7}}, [%r2];
st.global.v4.b32 [%d3], {{%r4, %r5, %r6, %r7}};
"""
    launch(text, buffer("data", data), out, buffer("taken", taken))
    for row, found, count in zip(
        data.reshape(-1, 16), out.data.reshape(-1, 16), taken.tolist(), strict=True
    ):
        wanted = [*row[:count].tolist(), *[0] * (size - count), *[255] * (16 - size)]
        assert found.tolist() == wanted


# A product whose B is what the threads have stored, with some of its order left out.
_GROUP = """
mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 4; mov.b32 %r3, 0;
st.shared.v4.b32 [%r2], {{%r3, %r3, %r3, %r3}};
st.shared.v4.b32 [%r2+2048], {{%r3, %r3, %r3, %r3}};
{after_store}
mov.b64 %d10, 4611686293305294848; mov.b64 %d11, {again};
mov.b32 %r40, 0; mov.b32 %r41, 0; mov.b32 %r42, 0; mov.b32 %r43, 0;
mov.b32 %r50, 0; mov.b32 %r51, 0; mov.b32 %r52, 0; mov.b32 %r53, 0;
mov.b32 %r54, 0; mov.b32 %r55, 0; mov.b32 %r56, 0; mov.b32 %r57, 0;
{before}
wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16
 {{%r50, %r51, %r52, %r53, %r54, %r55, %r56, %r57}},
 {{%r40, %r41, %r42, %r43}}, %d10, 1, 1, 1, 0;
wgmma.commit_group.sync.aligned;
{between}
wgmma.wait_group.sync.aligned {leave};
{after}
"""
_ORDERED = {
    "after_store": "fence.proxy.async.shared::cta; bar.sync 0;",
    "again": "4611686293305294848",
    "before": "wgmma.fence.sync.aligned;",
    "between": "",
    "leave": "0",
    "after": "add.f32 %r4, %r50, %r51;",
}


def _group(seed: int, **changes: str) -> None:
    text = _GROUP.format(**(_ORDERED | changes))
    launch(text, seed=seed, grid=(2, 1, 1), longest=3, narrow=0.6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"after_store": "bar.sync 0; fence.proxy.async.shared::cta;"},
        # The assembler renames registers that are copied.
        {"before": "mov.b32 %r60, %r50; wgmma.fence.sync.aligned; mov.b32 %r50, %r60;"},
        {"between": "add.f32 %r4, %r40, %r41;"},
        {"after": "bar.sync 0; st.shared.b32 [%r2], %r1;"},
    ],
    ids=["plain", "fence behind the barrier", "copied", "reads A", "writes B later"],
)
def test_products_in_order(changes: dict[str, str], seed: int) -> None:
    _group(seed, **changes)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("changes", "fault", "message"),
    [
        ({"before": ""}, MissingFenceFault, "wgmma.fence"),
        (
            {"before": "wgmma.fence.sync.aligned; mov.b32 %r40, %r1; add.s32 %r40, %r40, 1;"},
            MissingFenceFault,
            "wgmma.fence",
        ),
        (
            {"before": "wgmma.fence.sync.aligned; mov.b32 %r52, 0;"},
            MissingFenceFault,
            "wgmma.fence",
        ),
        ({"after_store": "bar.sync 0;"}, MissingFenceFault, "fence.proxy.async"),
        ({"after_store": "fence.proxy.async.shared::cta;"}, RaceFault, "since the last barrier"),
        ({"leave": "1"}, EarlyReadFault, "before its wait"),
        ({"between": "add.f32 %r4, %r50, %r51;"}, EarlyReadFault, "before its wait"),
        ({"between": "mov.b32 %r57, 0;"}, EarlyReadFault, "before its wait"),
        ({"between": "mov.b32 %r40, 0;"}, EarlyReadFault, "before its wait"),
        ({"between": "mov.b32 %r40, %r1;"}, EarlyReadFault, "before its wait"),
        ({"between": "bar.sync 0; st.shared.b32 [%r2], %r1;"}, RaceFault, "in flight"),
        (
            {"between": "cp.async.ca.shared.global [%r2], [%d10], 4, %r3;"},
            RaceFault,
            "in flight|since",
        ),
        ({"after": "st.shared.b32 [%r2], %r1;"}, RaceFault, "in flight|since the last barrier"),
    ],
)
def test_products_out_of_order(
    changes: dict[str, str], fault: type[EmulatedFault], message: str, seed: int
) -> None:
    with pytest.raises(fault, match=message):
        _group(seed, **changes)


def test_accumulators_of_another_shape_need_a_wait():
    other = """
wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r50, %r51, %r52, %r53},
 {%r40, %r41, %r42, %r43}, %d10, 1, 1, 1, 0;
"""
    with pytest.raises(EarlyReadFault, match="another shape"):
        _group(0, between=other)
    _group(0, after=f"wgmma.fence.sync.aligned; {other} wgmma.commit_group.sync.aligned;")


def test_the_first_product_needs_a_fence_whatever_its_registers():
    body = """
mov.b64 %d10, 4611686293305294848;
{fence}
wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {{%r50, %r51, %r52, %r53}},
 %d10, %d10, 0, 1, 1, 0, 0;
wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;
"""
    fill = """
mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 6; mov.b32 %r3, 0;
st.shared.v4.b32 [%r2], {{%r3, %r3, %r3, %r3}};
st.shared.v4.b32 [%r2+16], {{%r3, %r3, %r3, %r3}};
st.shared.v4.b32 [%r2+32], {{%r3, %r3, %r3, %r3}};
st.shared.v4.b32 [%r2+48], {{%r3, %r3, %r3, %r3}};
fence.proxy.async.shared::cta; bar.sync 0;
"""
    launch((fill + body).format(fence="wgmma.fence.sync.aligned;"))
    with pytest.raises(MissingFenceFault, match=r"no wgmma\.fence"):
        launch((fill + body).format(fence=""))
