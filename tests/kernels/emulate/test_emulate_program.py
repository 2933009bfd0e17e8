"""Reading of PTX, refusals, and what a run counts."""

from __future__ import annotations

import numpy as np
import pytest
from emulate_support import LANES, buffer, launch, program

from halfbyte.kernels.codegen.emulate import PtxProgram, UnsupportedFault
from halfbyte.kernels.codegen.emulate.counts import wavefronts
from halfbyte.kernels.codegen.emulate.faults import EarlyReadFault, OutOfBoundsFault


def test_scopes_labels_comments_and_numbers_of_lines():
    text = """
mov.u32 %r1, %tid.x; // a comment; with a ; and a { brace
{ .reg .b32 a, b; mov.b32 a, 5; { .reg .b32 a; mov.b32 a, 7; mov.b32 b, a; } add.s32 %r2, a, b; }
/* another
   comment */ .loc 1 2 3
.pragma "nounroll";
bra.uni $L$one; mov.b32 %r2, 1; $L$one: add.s32 %r2, %r2, %r1;
ld.param.b64 %d1, [ p0 ]; mad.wide.u32 %d1, %r1, 4, %d1; st.global.b32 [ %d1 + 0 ], { %r2 };
"""
    out = buffer("out", np.zeros(LANES, "u4"), written=False)
    launch(text, out)
    assert np.array_equal(out.data.view("u4"), np.arange(LANES) + 12)
    found = program(text, 1).operations
    lines = [op.instruction.line for op in found]
    whole = program("", 1).operations[0].instruction.line
    assert found[0].instruction.text == "mov.u32 %r1, %tid.x"
    assert lines[0] == whole and lines[1:5] == [whole + 1] * 4 and lines[5] == whole + 5


_WGMMA = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r1, %r2, %r3, %r4}, %d1, %d2"


@pytest.mark.parametrize(
    "text",
    [
        "sin.approx.f32 %r1, %r2;",
        "add.sat.s32 %r1, %r1, %r2;",
        "add.rz.f32 %r1, %r1, %r2;",
        "fma.rn.f64 %d1, %d1, %d1, %d1;",
        "mul.hi.s64 %d1, %d1, %d2;",
        "add.s32 %r1, %d1, %r2;",
        "cvt.rz.f32.f64 %r1, %d1;",
        "ld.b32 %r1, [%d1];",
        "ld.const.b32 %r1, [%d1];",
        "ld.global.mmio.b32 %r1, [%d1];",
        "bar.sync 1;",
        "bar.sync 0, 64;",
        "bar.arrive 0, 64;",
        "atom.global.cas.b32 %r1, [%d1], %r2, %r3;",
        "atom.global.add.f32 %r1, [%d1], %r2;",
        "mbarrier.init.shared.b64 [%r1], 1;",
        "cp.async.bulk.commit_group;",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%r1}, {%r2}, {%r3}, {%r4};",
        f"{_WGMMA}, 1, -1, 1, 0, 0;",
        f"{_WGMMA}, 1, 1, 1, 1, 0;",
        "bra $LNOWHERE;",
        "setp.lt.and.s32 %p1, %r1, %r2, %p2;",
        "mov.u32 %r1, %clock;",
    ],
)
def test_what_is_not_emulated_is_named(text: str) -> None:
    with pytest.raises(UnsupportedFault) as found:
        program(text, 0)
    assert text.rstrip(";") in str(found.value) or "%clock" in str(found.value)


@pytest.mark.parametrize(
    "text", ["", ".visible .entry k() { ret; }", ".visible .entry k() .reqntid 32 { ret;"]
)
def test_texts_that_are_no_kernel(text: str) -> None:
    with pytest.raises(UnsupportedFault):
        PtxProgram.parse(text)


def test_a_program_runs_many_times():
    out = buffer("out", np.zeros(LANES, "u4"), written=False)
    kernel = "mov.u32 %r1, %tid.x; ld.param.b64 %d1, [p0]; mad.wide.u32 %d1, %r1, 4, %d1;"
    first = launch(kernel + "st.global.b32 [%d1], %r1;", out)
    second = launch(kernel + "st.global.b32 [%d1], %r1;", out)
    assert first.total() == second.total()


def _count(step: int, size: int, offset: int = 0) -> tuple[int, int]:
    lanes = np.arange(32)
    return wavefronts(lanes * step + offset, size, lanes)


def test_wavefronts():
    """Against what the rules of banks say for well-known patterns."""
    assert _count(4, 4) == (1, 1)  # a word each
    assert _count(0, 4) == (1, 1)  # one word for all
    assert _count(8, 4) == (2, 1)  # every second bank
    assert _count(128, 4) == (32, 1)  # one bank
    assert _count(132, 4) == (1, 1)  # rows with a word of padding
    assert _count(1, 1) == (1, 1)
    assert _count(8, 8) == (2, 2)  # half warps
    assert _count(16, 16) == (4, 4)  # quarters
    assert _count(128, 16) == (32, 4)  # rows of 128 bytes without swizzling: 8 to a quarter
    assert _count(144, 16) == (4, 4)


def test_counts_of_a_run():
    text = """
mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 7; and.b32 %r2, %r2, 4095; shr.u32 %r3, %r1, 5;
shl.b32 %r3, %r3, 2; or.b32 %r2, %r2, %r3;
st.shared.b32 [%r2], %r1;
ld.param.b64 %d1, [p0];
mad.wide.u32 %d1, %r1, 8, %d1;
ld.global.b32 %r4, [%d1];
setp.lt.u32 %p1, %r1, 40;
@%p1 ld.global.b32 %r4, [%d1];
"""
    counts = launch(text, buffer("data", np.zeros(2 * LANES, "u4")))
    first = program("", 0).operations[0].instruction.line
    by_line = {line - first: count for line, count in counts.by_line.items()}
    store, load, part = by_line[2], by_line[5], by_line[7]
    assert (store.runs, store.wavefronts, store.ideal) == (4, 128, 4)
    assert (load.runs, load.sectors, load.used) == (4, 32, 512)
    assert (part.runs, part.sectors, part.used) == (2, 10, 160)
    total = counts.total()
    assert (total.runs, total.wavefronts, total.sectors) == (10, 128, 42)
    assert launch(text, buffer("data", np.zeros(2 * LANES, "u4")), count=False).by_line == {}


_AWAIT = """
ld.param.b64 %d1, [p0]; mov.u32 %r1, %tid.x; mad.wide.u32 %d1, %r1, 4, %d1;
griddepcontrol.launch_dependents; prefetch.global.L2 [%d1];
"""


@pytest.mark.parametrize(
    "access",
    [
        "ld.global.b32 %r2, [%d1];",
        "st.global.b32 [%d1], %r1;",
        "atom.global.add.u32 %r2, [%d1], 1;",
        "shl.b32 %r3, %r1, 2; cp.async.ca.shared.global [%r3], [%d1], 4; cp.async.wait_all;",
    ],
)
def test_global_memory_is_touched_after_the_wait_for_the_kernel_before(access):
    data = buffer("data", np.zeros(2 * LANES, "u4"))
    launch(_AWAIT + "griddepcontrol.wait;" + access, data)
    with pytest.raises(EarlyReadFault, match="before the wait for the kernel before"):
        launch(_AWAIT + access + "griddepcontrol.wait;", data)


def test_every_warp_waits_for_itself():
    some = "setp.lt.u32 %p1, %r1, 32; @!%p1 bra L1; griddepcontrol.wait; L1: "
    data = buffer("data", np.zeros(2 * LANES, "u4"))
    with pytest.raises(EarlyReadFault):
        launch(_AWAIT + some + "ld.global.b32 %r2, [%d1];", data)


def test_a_prefetch_out_of_bounds():
    text = "mov.u64 %d1, 1048576; prefetch.global.L2 [%d1];"
    with pytest.raises(OutOfBoundsFault):
        launch(text)
