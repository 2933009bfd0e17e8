"""Global memory: accesses, what other CTAs see of stores, atomic operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulate_support import LANES, buffer, compute, integers, launch, program

from halfbyte.kernels.codegen.emulate import (
    Buffer,
    EmulatedFault,
    MisalignedFault,
    OutOfBoundsFault,
    RaceFault,
    UnwrittenFault,
    run,
)

_VECTORS = [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4), (2, 2), (2, 4), (4, 2), (4, 4), (8, 2)]


def _addresses(*sizes: int) -> str:
    """%d1, %d2, ... are each thread's places in the parameters, of that many bytes."""
    lines = ["mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x;"]
    for number, size in enumerate(sizes):
        lines.append(f"ld.param.b64 %d{number + 1}, [p{number}];")
        lines.append(f"mad.wide.u32 %d{number + 1}, %r1, {size}, %d{number + 1};")
    return "\n".join(lines)


def _names(size: int, count: int) -> str:
    names = [f"{ {1: '%h', 2: '%h', 4: '%r', 8: '%d'}[size] }{10 + i}" for i in range(count)]
    return "{" + ", ".join(names) + "}"


@pytest.mark.parametrize("hints", ["", ".cg", ".L1::evict_first.L2::cache_hint"])
@pytest.mark.parametrize(("size", "count"), _VECTORS)
def test_loads_and_stores_of_all_widths(size: int, count: int, hints: str) -> None:
    each = size * count
    data = np.random.randint(0, 256, LANES * each).astype("u1")
    out = buffer("out", np.zeros(LANES * each, "u1"), written=False)
    vector = f".v{count}" if count > 1 else ""
    policy = ", %d9" if "cache_hint" in hints else ""
    store_hints = "" if policy else hints
    place = f"shl.b32 %r3, %r1, {each.bit_length() - 1};"
    text = f"""
{_addresses(each, each)}
createpolicy.fractional.L2::evict_first.b64 %d9, 1.0;
ld.global{hints}{vector}.b{8 * size} {_names(size, count)}, [%d1]{policy};
{place}
st.shared{vector}.b{8 * size} [%r3+16], {_names(size, count)};
ld.shared{vector}.b{8 * size} {_names(size, count)}, [%r3+16];
st.global{store_hints}{vector}.b{8 * size} [%d2], {_names(size, count)};
"""
    launch(text, buffer("data", data), out)
    assert np.array_equal(out.data, data)


@pytest.mark.parametrize("space", ["global", "shared"])
def test_narrow_data_in_wider_registers(space: str) -> None:
    """Loads extend by the sign of their type; stores take the lower bits."""
    a = integers("i2")
    load = "ld.global.s16 %d10, [%d1];"
    if space == "shared":
        load = "shl.b32 %r3, %r1, 1; st.shared.b16 [%r3], $0; ld.shared.s16 %d10, [%r3];"
    wide = compute(
        f"ld.param.b64 %d1, [p0]; mad.wide.u32 %d1, %r0, 2, %d1; mov.u32 %r1, %r0;"
        f"{load} mov.b64 $r, %d10;",
        [a],
        "i8",
    )
    assert wide.tolist() == a.tolist()
    unsigned = compute("cvt.u64.u16 $r, $0;", [a], "u8")
    assert unsigned.tolist() == a.view("u2").tolist()
    out = buffer("out", np.zeros(LANES, "u1"), written=False)
    launch(
        _addresses(2, 1) + "ld.global.b16 %h1, [%d1]; st.global.b8 [%d2], %h1;", buffer("a", a), out
    )
    assert out.data.tolist() == (a & 255).tolist()


def test_guarded_accesses_leave_the_others_alone():
    chosen, a, b = np.random.rand(LANES) < 0.5, integers("u4"), integers("u4")
    text = "mov.b32 $r, $1; ld.param.b64 %d1, [p0]; mad.wide.u32 %d1, %r0, 4, %d1;"
    # Where the guard is false the address may be anything.
    wild = "selp.b64 %d1, %d1, 12345, $2; @$2 ld.global.b32 $r, [%d1];"
    assert compute(text + wild, [a, b, chosen], "u4").tolist() == np.where(chosen, a, b).tolist()


@pytest.mark.parametrize(
    ("text", "fault", "message"),
    [
        ("ld.global.b32 %r3, [%d1+4];", OutOfBoundsFault, r"data \+ 512, which has 512 bytes"),
        ("ld.global.b32 %r3, [%d1+-4];", OutOfBoundsFault, r"data \+ -4, which has 512 bytes"),
        ("st.global.b32 [%d1+4], %r1;", OutOfBoundsFault, r"data \+ 512"),
        ("ld.global.v2.b32 {%r3, %r4}, [%d1];", OutOfBoundsFault, r"data \+ 508"),
        ("add.s64 %d1, %d1, 2; ld.global.b32 %r3, [%d1+-4];", OutOfBoundsFault, r"data \+ -2"),
        ("ld.global.b32 %r3, [%d1+1048576];", OutOfBoundsFault, "which has 512 bytes"),
        ("mov.b64 %d1, 0; ld.global.b32 %r3, [%d1];", OutOfBoundsFault, "address 0x0"),
        ("atom.global.add.u32 %r3, [%d1+4], 1;", OutOfBoundsFault, r"data \+ 512"),
        ("cp.async.cg.shared.global [global_smem], [%d1+4], 16;", OutOfBoundsFault, "data"),
        ("ld.global.v2.b32 {%r3, %r4}, [%d1+-4];", MisalignedFault, "no multiple of 8|-4"),
        ("and.b64 %d1, %d1, -8; ld.global.b32 %r3, [%d1+2];", MisalignedFault, "no multiple of 4"),
        (
            "ld.global.b32 %r3, [%d2];",
            UnwrittenFault,
            r"reads fresh \+ 0, which nothing has written",
        ),
        ("atom.global.add.u32 %r3, [%d2], 1;", UnwrittenFault, "fresh"),
    ],
)
def test_bounds_alignment_and_first_use_of_buffers(
    text: str, fault: type[EmulatedFault], message: str
) -> None:
    data = buffer("data", np.zeros(LANES, "u4"))
    fresh = buffer("fresh", np.zeros(LANES, "u4"), written=False)
    with pytest.raises(EmulatedFault, match=message) as found:
        launch(_addresses(4, 4) + text, data, fresh)
    assert isinstance(found.value, (fault, OutOfBoundsFault if "v2" in text else fault))
    assert "line" in str(found.value) and "warp" in str(found.value)


ATOMS: dict[str, tuple[Callable[[int, int], int], str]] = {
    "add.u32": (lambda a, b: a + b, "u4"),
    "add.u64": (lambda a, b: a + b, "u8"),
    "min.s32": (min, "i4"),
    "max.s32": (max, "i4"),
    "max.u32": (max, "u4"),
    "and.b32": (lambda a, b: a & b, "u4"),
    "or.b32": (lambda a, b: a | b, "u4"),
    "xor.b32": (lambda a, b: a ^ b, "u4"),
}


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("form", ["atom", "red"])
@pytest.mark.parametrize("name", ATOMS)
def test_atomic_operations(name: str, form: str, space: str) -> None:
    """All lanes change one of four words: the sum of all, whatever their order."""
    work, kind = ATOMS[name]
    size = np.dtype(kind).itemsize
    a, start = integers(kind), integers(kind)[:4]
    register = "%d" if size == 8 else "%r"
    old = f"{register}20, " if form == "atom" else ""
    where, before, after = "[%d4]", "", ""
    if space == "shared":
        where = "[%r5]"
        move, kept = f"b{8 * size}", f"{register}21"
        before = f"ld.global.{move} {kept}, [%d4]; st.shared.{move} [%r5], {kept}; bar.sync 0;"
        after = f"bar.sync 0; ld.shared.{move} {kept}, [%r5]; st.global.{move} [%d4], {kept};"
    text = f"""
{_addresses(size, size)}
and.b32 %r4, %r1, 3; mul.lo.u32 %r5, %r4, {size}; ld.param.b64 %d4, [p1];
mad.wide.u32 %d4, %r4, {size}, %d4;
ld.global.b{8 * size} {register}10, [%d1];
{before}
{form}.{"relaxed.gpu.global" if space == "global" else "shared"}.{name} {old}{where}, {register}10;
{after}
"""
    memory = buffer("memory", start)
    launch(text, buffer("a", a), memory, seed=int(a[0]) & 0xFFFF)
    for place in range(4):
        total = int(start[place])
        for value in a[place::4].tolist():
            total = work(total, value)
        bits = 8 * size
        assert memory.data.view(f"u{size}")[place] == total & ((1 << bits) - 1)


def test_an_atomic_operation_gives_the_old_value():
    counter = buffer("counter", np.zeros(1, "u4"))
    out = buffer("out", np.zeros(4 * LANES, "u4"), written=False)
    text = """
mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; ld.param.b64 %d1, [p0]; ld.param.b64 %d2, [p1];
mad.lo.s32 %r3, %r2, 128, %r1; mad.wide.u32 %d2, %r3, 4, %d2;
atom.global.gpu.relaxed.add.u32 %r4, [%d1], 1; st.global.b32 [%d2], %r4;
"""
    launch(text, counter, out, grid=(4, 1, 1))
    assert sorted(out.data.view("u4").tolist()) == list(range(4 * LANES))
    exchange = "ld.param.b64 %d1, [p0]; atom.global.exch.b32 %r4, [%d1], 7;"
    launch(exchange, counter)
    assert counter.data.view("u4")[0] == 7


# Every CTA stores a row, arrives at a counter, and the last one adds all rows up.
_SPLIT = """
{head}
mul.lo.s32 %r3, %r2, 512; cvt.u64.u32 %d4, %r3; add.s64 %d5, %d1, %d4;
add.s32 %r4, %r1, %r2;
st.global.b32 [%d5], %r4;
{barrier}
mov.b32 %r6, 0;
setp.eq.b32 %p1, %r1, 0;
@%p1 {arrive} %r6, [%d2], 1;
@%p1 st.shared.b32 [global_smem], %r6;
bar.sync 0;
ld.shared.b32 %r6, [global_smem];
setp.ne.b32 %p2, %r6, 3;
@%p2 bra $LEND;
{load} %r10, [%d1];
{load} %r11, [%d1+512];
{load} %r12, [%d1+1024];
{load} %r13, [%d1+1536];
add.s32 %r10, %r10, %r11; add.s32 %r12, %r12, %r13; add.s32 %r10, %r10, %r12;
st.global.b32 [%d3], %r10;
{reset}
$LEND:
"""
_RIGHT = {
    "barrier": "bar.sync 0;",
    "arrive": "atom.global.gpu.acq_rel.add.u32",
    "load": "ld.global.b32",
    "reset": "@%p1 st.global.b32 [%d2], 0;",
}


def _split(seed: int, **changes: str) -> tuple[bool, int]:
    """(whether the sum is right, what is left in the counter)."""
    head = _addresses(4, 0, 4)
    work = buffer("work", np.full(4 * LANES, 0xFF, "u4"), written=False)
    counter, out = buffer("counter", np.zeros(1, "u4")), buffer("out", np.zeros(LANES, "u4"), False)
    text = _SPLIT.format(head=head, **(_RIGHT | changes))
    launch(text, work, counter, out, grid=(4, 1, 1), seed=seed, longest=2, narrow=0.6)
    right = np.array_equal(out.data.view("u4"), 4 * np.arange(LANES) + 6)
    return right, int(counter.data.view("u4")[0])


@pytest.mark.parametrize("seed", range(8))
def test_the_last_program_adds_up(seed: int) -> None:
    assert _split(seed) == (True, 0)


def _is_wrong(seed: int, **changes: str) -> bool:
    try:
        return _split(seed, **changes) != (True, 0)
    except (UnwrittenFault, RaceFault):
        return True


@pytest.mark.parametrize(
    "changes",
    [
        {"barrier": ""},
        {"arrive": "atom.global.gpu.relaxed.add.u32"},
        {"arrive": "atom.global.gpu.acquire.add.u32"},
        {"reset": ""},
    ],
    ids=["no barrier", "relaxed", "no release", "counter not reset"],
)
def test_mistakes_of_the_last_program_are_seen(changes: dict[str, str]) -> None:
    """Each is seen in most orders: of 12 at least one shows it, or the emulator is too kind."""
    assert any(_is_wrong(seed, **changes) for seed in range(12))


# Each lane of CTA 0 polls a flag and then reads what its partner in CTA 1 stored before; it has
# read the place once before.
_MESSAGE = """
{head}
setp.ne.b32 %p1, %r2, 0;
@%p1 bra $LSEND;
ld.global.b32 %r3, [%d1];
$LWAIT:
{poll} %r4, [%d2]{operand};
setp.eq.b32 %p2, %r4, 0;
@%p2 bra $LWAIT;
{fence}
{read} %r3, [%d1];
st.global.b32 [%d3], %r3;
bra.uni $LEND;
$LSEND:
st.global.b32 [%d1], %r1;
{release}
$LEND:
"""
_PASSED = {
    "poll": "ld.acquire.gpu.global.b32",
    "operand": "",
    "fence": "",
    "read": "ld.global.b32",
    "release": "st.release.gpu.global.b32 [%d2], 1;",
}


def _message(seed: int, **changes: str) -> Any:
    data, flags = buffer("data", np.full(LANES, 777, "u4")), buffer("flags", np.zeros(LANES, "u4"))
    out = buffer("out", np.zeros(LANES, "u4"), written=False)
    text = _MESSAGE.format(head=_addresses(4, 4, 4), **(_PASSED | changes))
    launch(text, data, flags, out, grid=(2, 1, 1), threads=32, seed=seed, longest=2)
    return out.data.view("u4")[:32].tolist()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"poll": "ld.relaxed.gpu.global.b32", "fence": "fence.acq_rel.gpu;"},
        {"release": "membar.gl; st.volatile.global.b32 [%d2], 1;"},
        {"release": "fence.acq_rel.gpu; st.relaxed.gpu.global.b32 [%d2], 1;"},
        {"poll": "ld.volatile.global.b32", "read": "ld.volatile.global.b32"},
        {"poll": "ld.relaxed.gpu.global.b32", "read": "ld.global.cg.b32"},
        {"poll": "atom.global.gpu.acq_rel.or.b32", "operand": ", 0"},
    ],
    ids=[
        "acquire",
        "fence of the reader",
        "membar",
        "fence of the writer",
        "coherent read",
        "read past the cache",
        "atomic",
    ],
)
def test_messages_that_are_passed_on(changes: dict[str, str], seed: int) -> None:
    assert _message(seed, **changes) == list(range(32))


@pytest.mark.parametrize(
    "changes",
    [
        {"poll": "ld.relaxed.gpu.global.b32"},
        {"poll": "atom.global.gpu.release.or.b32", "operand": ", 0"},
        {"release": "st.relaxed.gpu.global.b32 [%d2], 1;"},
        {"release": "st.volatile.global.b32 [%d2], 1;"},
    ],
    ids=["no acquire", "no acquire of an atomic", "no release", "volatile only"],
)
def test_messages_that_may_be_lost(changes: dict[str, str]) -> None:
    assert any(_message(seed, **changes) != list(range(32)) for seed in range(12))


# Warp 1 stores and tells warp 0 of its CTA, which tells CTA 0.
_RELAY = """
{head}
setp.ne.b32 %p1, %r2, 0; setp.gt.u32 %p3, %r1, 31; and.b32 %r5, %r1, 31;
mul.wide.u32 %d4, %r5, 4; ld.param.b64 %d1, [p0]; add.s64 %d1, %d1, %d4;
@%p1 bra $LSEND;
@%p3 bra $LEND;
$LWAIT:
ld.acquire.gpu.global.b32 %r4, [%d2+4];
setp.eq.b32 %p2, %r4, 0;
@%p2 bra $LWAIT;
ld.global.b32 %r3, [%d1];
st.global.b32 [%d3], %r3;
bra.uni $LEND;
$LSEND:
@%p3 st.global.b32 [%d1], %r5;
{tell}
@%p3 bra $LEND;
$LHEAR:
ld.relaxed.gpu.global.b32 %r4, [%d2];
setp.eq.b32 %p2, %r4, 0;
@%p2 bra $LHEAR;
st.release.gpu.global.b32 [%d2+4], 1;
$LEND:
"""


def _relay(seed: int, tell: str) -> bool:
    data, flags = buffer("data", np.full(32, 777, "u4")), buffer("flags", np.zeros(2, "u4"))
    out = buffer("out", np.zeros(64, "u4"), written=False)
    text = _RELAY.format(head=_addresses(4, 0, 4), tell=tell)
    launch(text, data, flags, out, grid=(2, 1, 1), threads=64, seed=seed, longest=2)
    return out.data.view("u4")[:32].tolist() == list(range(32))


def test_a_release_covers_other_threads_only_across_a_barrier():
    tell = "@%p3 st.relaxed.gpu.global.b32 [%d2], 1;"
    assert not all(_relay(seed, tell) for seed in range(12))
    assert all(_relay(seed, tell + "bar.sync 0;") for seed in range(6))


def test_a_program_sees_its_own_stores():
    """Also those of other threads, parts of a word, and the last of several."""
    out = buffer("out", np.zeros(LANES, "u4"), written=False)
    work = buffer("work", np.zeros(LANES, "u4"), written=False)
    text = (
        _addresses(4, 4)
        + """
st.global.b32 [%d1], 5; st.global.b32 [%d1], %r1;
cvt.u16.u32 %h1, %r1; add.s16 %h1, %h1, 1; st.global.b8 [%d1+1], %h1;
bar.sync 0;
xor.b32 %r3, %r1, 127; ld.param.b64 %d4, [p0]; mad.wide.u32 %d4, %r3, 4, %d4;
ld.global.b32 %r4, [%d4]; st.global.b32 [%d2], %r4;
"""
    )
    for seed in range(3):
        launch(text, work, out, seed=seed, publish=0.0 if seed == 0 else 0.5, longest=2)
        thread = np.arange(LANES)[::-1]
        assert np.array_equal(out.data.view("u4"), thread | (thread + 1) << 8)


@pytest.mark.parametrize("word", range(4))
def test_a_wide_load_sees_each_word_that_was_stored(word: int) -> None:
    work = buffer("work", np.zeros(4 * LANES, "u4"))
    out = buffer("out", np.zeros(4 * LANES, "u4"), written=False)
    text = f"""
{_addresses(16, 16)}
st.global.b32 [%d1+{4 * word}], %r1;
ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%d1];
st.global.v4.b32 [%d2], {{%r4, %r5, %r6, %r7}};
"""
    launch(text, work, out, publish=0.0)
    wanted = np.zeros((LANES, 4), "u4")
    wanted[:, word] = np.arange(LANES)
    assert np.array_equal(out.data.view("u4").reshape(-1, 4), wanted)


def test_equal_buffers_are_one_and_arguments_are_checked():
    data = buffer("data", np.arange(LANES, dtype="u4"))
    text = (
        _addresses(4, 4)
        + "ld.global.b32 %r3, [%d1]; add.s32 %r3, %r3, 1; st.global.b32 [%d2], %r3;"
    )
    launch(text, data, data)
    assert np.array_equal(data.data.view("u4"), np.arange(LANES) + 1)
    with pytest.raises(ValueError, match="takes 2 arguments"):
        run(program(text, 2), grid=(1, 1, 1), arguments=[data], shared_bytes=0, seed=0)


def test_a_fault_leaves_what_was_done():
    data = Buffer("data", np.zeros(4 * LANES, "u1"))
    text = _addresses(4) + "st.global.b32 [%d1], %r1; membar.gl; ld.global.b32 %r3, [%d1+4096];"
    with pytest.raises(OutOfBoundsFault):
        launch(text, data)
    assert data.data.any()
