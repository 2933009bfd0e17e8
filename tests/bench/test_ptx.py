"""Shipped kernels as a GPU would run them: their PTX interpreted, with mistakes put in, too."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from left_out import FENCE, FENCED, LEFT_OUT

from halfbyte.bench.ptx import budget
from halfbyte.bench.ptx.__main__ import main
from halfbyte.bench.ptx.budget import over_accesses
from halfbyte.bench.ptx.run import EMULATED_ARCHS, PtxJob, PtxRow, differences_of, ptx_jobs
from halfbyte.bench.ptx.worker import PtxWorker
from halfbyte.kernels.codegen.emulate import PtxProgram
from halfbyte.kernels.codegen.launcher import EmulatedKernel, PtxEdit
from halfbyte.kernels.codegen.shipped import families, family_cases, family_variants
from halfbyte.kernels.codegen.targets import TARGETS


@pytest.fixture(scope="session")
def worker() -> Iterator[PtxWorker]:
    with PtxWorker() as worker:
        yield worker


def run(worker: PtxWorker, job: PtxJob) -> PtxRow:
    """A row of new inputs and another interleaving."""
    return worker.run(replace(job, seed=random.randrange(1 << 30)))


def test_every_shipped_kernel_has_a_case():
    for family in families():
        shipped = {v.kernel for on in TARGETS.values() for v in family_variants(family, on)}
        assert shipped == set(family_cases(family))


EMPTY = ".visible .entry k(\n.param .u64 p0\n)\n.reqntid 32\n{\nret;\n}\n"

# One of each kernel, and on sm_90 one of each family, in the forms that only that target has.
EACH = {
    "sm_80": [
        ("attention.decode", "g4 p64 d128 w2 s3 fp16"),
        ("attention.prefill", "g4 p64 d128 m128 w8 s3 fp16"),
        ("experts.place", "e8 k2"),
        ("codebook.gemm", "m8 g64 fp32 8x128 w2 s4 fp16"),
        ("fused.add_rms_norm", "fp16 4096"),
        ("fused.embed_norm", "fp16 4096"),
        ("fused.gated", "fp16 14336 silu g128"),
        ("fused.rope_write_kv", "fp16 h32 d128 r128"),
        ("sampling.argmax", "fp16"),
        ("sampling.sample", "fp16 penalties"),
        ("w4a16.late", "m8 g128 zero 8x128 w2 s4 fp16"),
        ("w4a16.direct", "m16 g32 zero 16x128 w2 s4 fp16"),
        ("w4a16.dequantize", "g128 zero w4 fp16"),
        ("w8a16.gemm", "m8 g0 fp16 8x128 w2 s4 fp16"),
        ("w8a16.gather", "g16 fp32 w4 fp16"),
        ("w8a8.gemm", "i8 bf16 16x128x256 w4 s3 split4"),
        ("w8a8.quantize", "i8 k4096"),
    ],
    "sm_90": [
        ("attention.prefill", "g4 p64 d64 m128 w8 s3 fp16"),
        ("codebook.gemm", "m64 g64 fp32 64x128 w8 s3 fp16"),
        ("fused.rope_write_kv", "fp16 h32 d128 r128 int8"),
        ("sampling.argmax", "bf16"),
        ("w4a16.late", "m8 g128 zero 8x128 w2 s4 bf16"),
        ("w4a16.direct", "m64 g128 zero 64x128 w8 s3 fp16"),
        ("w8a16.gemm", "m64 g0 fp16 64x128 w8 s3 fp16"),
        ("w8a8.gemm", "fp8e4nv fp16 64x128x128 w4 s4"),
        ("w8a8.quantize", "fp8e4nv k4096"),
    ],
}


@pytest.mark.parametrize(
    ("arch", "kernel", "config"),
    [pytest.param(arch, *names, id=f"{arch} {names[0]}") for arch in EACH for names in EACH[arch]],
)
def test_one_of_each_kernel(worker, arch, kernel, config):
    check_variant(worker, PtxJob(kernel, config, arch, 0))


# Mistakes, each a small change of the compiler's output: what, by what, and words of the problem.
BARRIER = r"bar\.sync\s+0;"
MISTAKES = {
    "no barrier before the arrival is told": (
        rf"(?s)(?:{BARRIER}((?:(?!bar\.sync).){{,900}}))?{BARRIER}((?:(?!bar\.sync).)*?atom\.global)",
        r"\1\2",
        "UnwrittenFault",
    ),
    "arrival told without a release": (
        r"atom\.global\.gpu\.acq_rel",
        "atom.global.gpu.relaxed",
        "UnwrittenFault",
    ),
    "counter not put back": (
        r"@%p\d+ st\.global\.b32 \[[^\]]*\], \{ %r\d+ \};",
        "",
        "CountersLeft",
    ),
    "copies awaited one group too few": (
        r"cp\.async\.wait_group\s+10;",
        "cp.async.wait_group 11;",
        "EarlyReadFault",
    ),
    "no barrier after the copies": (
        rf"(cp\.async\.wait_group\s+10;\s+){BARRIER}",
        r"\1",
        "RaceFault|EarlyReadFault|UnwrittenFault",
    ),
    "a row past the end": (
        r"setp\.lt\.s32(\s+%p1,)",
        r"setp.le.s32\1",
        "OutOfBoundsFault",
    ),
    "halves of an operand swapped": (
        r"(mma\.sync\S+\s+\{[^}]*\},\s*\{\s*(%r\d+),\s(?!\2\b)[^}]*\},\s*\{\s*)"
        r"(%r\d+)(,\s*)(%r\d+)",
        r"\1\5\4\3",
        "y is wrong",
    ),
}
WARP_GROUP_MISTAKES = {
    "products awaited one group too few": (
        r"wgmma\.wait_group\.sync\.aligned 0;",
        "wgmma.wait_group.sync.aligned 1;",
        "EarlyReadFault",
    ),
    "products in no group": (r"wgmma\.commit_group\S*;", "", "RaceFault|EarlyReadFault"),
    "no fence of registers": (r"wgmma\.fence\S*;", "", "MissingFenceFault"),
    "no fence of shared memory": (r"fence\.proxy\.async\S*;", "", "MissingFenceFault"),
}
EARLY_MISTAKES = {
    "no wait for the kernel before": (r"griddepcontrol\.wait\s*;", "", "NeverAwaited"),
    "the wait for it after the first copies": (
        r"(?s)griddepcontrol\.wait\s*;(.*?cp\.async\.commit_group;)",
        r"\1 griddepcontrol.wait;",
        "EarlyReadFault",
    ),
}
LATE = PtxJob("w4a16.late", "m8 g128 zero 8x128 w2 s4 fp16", "sm_80", 0)
WARP_GROUP = PtxJob("w8a8.gemm", "i8 fp16 64x128x128 w4 s4", "sm_90", 0)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_seen(worker, mistake):
    check_mistake(worker, LATE, *MISTAKES[mistake])


@pytest.mark.parametrize("mistake", WARP_GROUP_MISTAKES)
def test_a_mistake_with_warp_groups_is_seen(worker, mistake):
    check_mistake(worker, WARP_GROUP, *WARP_GROUP_MISTAKES[mistake])


@pytest.mark.parametrize("mistake", EARLY_MISTAKES)
def test_a_mistake_of_an_early_start_is_seen(worker, mistake):
    check_mistake(worker, replace(LATE, arch="sm_90"), *EARLY_MISTAKES[mistake])


def check_mistake(worker, job, pattern, replacement, words):
    """The job fails with the edit, in these words, and without it does not."""
    # Stores that need not be visible to others are not.
    job = replace(mended(job), seed=random.randrange(1 << 30), options={"publish": 0.0})
    right = worker.run(job)
    assert right.problem == ""
    mistake = PtxEdit(pattern, replacement, where=(0,))
    row = worker.run(replace(job, edits=[*job.edits, mistake]))
    assert row.edited == right.edited + 1
    assert re.search(words, row.problem)


def mended(job: PtxJob) -> PtxJob:
    """With the fence that older versions of Triton leave out; the rest can be looked at then."""
    return job if FENCED else replace(job, edits=[FENCE])


def jobs() -> list[PtxJob]:
    return ptx_jobs(EMULATED_ARCHS, (), 0)


@pytest.mark.ptx
@pytest.mark.parametrize("job", jobs(), ids=lambda job: f"{job.arch} {job.kernel} {job.config}")
def test_every_shipped_variant(worker, job):
    check_variant(worker, job)


def check_variant(worker, job):
    """It launches what ships, and is right but for what an older Triton leaves out."""
    row = run(worker, job)
    reasons = []
    # What older versions of Triton leave out is put in, and the rest has to be right.
    for words, edit, reason in [] if FENCED else LEFT_OUT * len(LEFT_OUT):
        if re.search(words, row.problem) and reason not in reasons:
            reasons.append(reason)
            job = replace(job, edits=[*job.edits, edit])
            row = run(worker, job)
    assert row.problem == "" and row.covered
    assert over_accesses(row) == []
    if reasons:
        pytest.xfail("; ".join(reasons))


def test_the_command_prints_a_table_and_writes_its_figures(tmp_path, capsys):
    file = tmp_path / "ptx.json"
    options = ["--kernel", "experts.place", "--jobs", "1", "--seed", "5", "--json", str(file)]
    assert main(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines[:6]}) == 1 and lines[2].count(" right ") == 1
    assert lines[6].startswith("4 variants: 4 launched as they ship, 4 right; ")
    written = json.loads(file.read_text())
    assert written["seed"] == 5
    assert {row["arch"] for row in written["rows"]} == {"sm_80", "sm_90"}
    assert main(["--kernel", "experts.pla"]) == 1
    assert "no kernel is called 'experts.pla'" in capsys.readouterr().err


def test_a_launch_of_another_variant_is_told():
    on = TARGETS["sm_80"]
    variant = next(v for v in family_variants("w8a8", on) if v.kernel == "w8a8.quantize")
    # All pointers are read, and an integer; K_OUT, the last one, is not.
    ptx = " ".join(f"_param_{number}, [_param_{number}]" for number in range(5)) + " _param_5"
    launched = EmulatedKernel(
        variant.fn,
        {**variant.signature, **dict.fromkeys(variant.constants, "constexpr")},
        variant.constants,
        frozenset(variant.divisible),
        {
            "num_warps": variant.num_warps,
            "num_stages": 3,
            "maxnreg": None,
            "enable_fp_fusion": True,
        },
        *(ptx, PtxProgram.parse(EMPTY), 0, 0),
    )
    assert differences_of(launched, variant, on) == []
    other = replace(
        launched,
        signature={**launched.signature, "x_ptr": "*fp16", "K_OUT": "i64"},
        constants={**launched.constants, "ONE_PASS": False},
        divisible=launched.divisible - {"K", "K_OUT"},
        options={**launched.options, "num_stages": 2},
    )
    assert differences_of(other, variant, on) == [
        "ONE_PASS is False for True",
        "x_ptr is *fp16 for *bf16",
        "K not divisible by 16",
        "num_stages is 2 for 3",
    ]


def test_an_edit_names_what_it_changed():
    text = "bar.sync 0;\nld a;\nbar.sync 0;\n"
    assert PtxEdit(r"bar\.sync 0;", "").apply(text) == ("\nld a;\n\n", 2)
    assert PtxEdit(r"bar\.sync (\d);", r"bar.sync 1\1;", (1,)).apply(text) == (
        "bar.sync 0;\nld a;\nbar.sync 10;\n",
        1,
    )
    assert PtxEdit("membar", "").apply(text) == (text, 0)


def test_accesses_are_compared_with_their_budget(tmp_path, monkeypatch):
    row = PtxRow(
        *("w8a8.gemm", "small", "sm_80", 0, "", 0.5, True, 0, 1.0, "9.8.7", 1.5, 2.0, 0.75)
    )
    monkeypatch.setattr(budget, "FOLDER", tmp_path)
    assert over_accesses(row) == []
    budget.save_accesses([row])
    assert over_accesses(row) == []
    assert over_accesses(replace(row, conflicts=1.6, worst_conflicts=2.5, sector_use=0.5)) == [
        "conflicts 1.6, budget 1.5",
        "worst_conflicts 2.5, budget 2.0",
        "sector_use 0.5, budget 0.75",
    ]
    assert "no budget of accesses" in over_accesses(replace(row, config="other"))[0]
