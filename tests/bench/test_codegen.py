"""``bench codegen``: choosing what to compile, the table, and the budget's files."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from halfbyte.bench import codegen, codegen_budget
from halfbyte.bench.codegen import CodegenPlan, CodegenReport, failures, find_jobs, table
from halfbyte.errors import ConfigError
from halfbyte.kernels.codegen.report import VariantRow

FOLDER = codegen_budget.FOLDER


def row(kernel="w8a8.gemm", config="small", arch="sm_80", **figures) -> VariantRow:
    known = {"registers": 64, "spill_bytes": 0, "shared_bytes": 2048, "loop_instructions": 100}
    known |= {"instructions_per_weight": 1.25, "i2f": 0, "sts": 0, "ldgsts": 4, "bar": 1}
    known |= {"wgmma_waits": 0, "fences": 0, "membars": 1}
    values = {**known, "tensor_core": "IMMA:8", "conversions": 0, "warps": 4, **figures}
    return VariantRow(kernel=kernel, config=config, arch=arch, triton="9.8.7", **values)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(codegen_budget, "FOLDER", tmp_path)
    codegen_budget._load.cache_clear()
    yield tmp_path
    codegen_budget._load.cache_clear()


def test_budget_is_one_line_a_variant_and_reads_back(folder):
    rows = [row(arch=arch) for arch in ("sm_90", "sm_80")] + [row("rope.neox", "d128")]
    paths = codegen_budget.save(rows, (), ())
    assert [p.relative_to(folder).as_posix() for p in paths] == [
        "triton-9.8/rope.json",
        "triton-9.8/w8a8.json",
    ]
    lines = paths[1].read_text().splitlines()
    assert len(lines) == 4 and '"arch": "sm_80"' in lines[1]
    assert json.loads(paths[1].read_text())["rows"][0]["registers"] == 64
    assert all(codegen_budget.check(r) == [] for r in rows)


def test_update_of_a_part_keeps_the_rest_and_drops_what_is_gone(folder):
    old = [row(config="old"), row(config="old", arch="sm_90"), row("w8a8.quantize", "old")]
    codegen_budget.save(old, (), ())
    codegen_budget.save([row(config="new")], ("w8a8.gemm",), ("sm_80",))
    assert codegen_budget.check(row(config="new")) == []
    assert "no budget" in codegen_budget.check(row(config="old"))[0]
    assert codegen_budget.check(row(config="old", arch="sm_90")) == []
    assert codegen_budget.check(row("w8a8.quantize", "old")) == []


def test_a_missing_entry_names_the_command_and_an_unknown_triton_has_no_budget(folder):
    other = row("w8a8.quantize")
    assert codegen_budget.check(row()) == [] and not codegen_budget.has_budget(row())
    codegen_budget.save([row("rope.neox"), row(arch="sm_90")], (), ())
    assert codegen_budget.check(row()) == [] and not codegen_budget.has_budget(row())
    codegen_budget.save([other], ("w8a8.quantize",), ())
    assert codegen_budget.has_budget(row())
    (message,) = codegen_budget.check(row())
    assert message == (
        "no budget for triton 9.8; write the budget with: "
        "python -m halfbyte.bench.codegen --update --kernel w8a8"
    )


def test_failures_are_one_line_each(folder):
    codegen_budget.save([row()], (), ())
    worse = row(loop_instructions=104, spill_bytes=16)
    report = CodegenReport((worse,), ("w8a8.gemm | x | sm_80: CompilationError: no",))
    assert failures(report, with_budget=True) == [
        "w8a8.gemm | x | sm_80: CompilationError: no",
        "w8a8.gemm | small | sm_80: spills 16 bytes of registers",
        "w8a8.gemm | small | sm_80: loop_instructions 104, budget 100",
    ]
    assert len(failures(report, with_budget=False)) == 2


def test_a_known_spill_of_a_budget_is_granted_and_no_more(folder):
    codegen_budget.save([row(spill_bytes=24), row("w8a8.other")], (), ())
    (text,) = [p.read_text() for p in folder.rglob("w8a8.json")]
    assert text.count("spill_bytes") == 1
    for spilled, problems in ((24, []), (28, ["spills 28 bytes of registers"])):
        report = CodegenReport((row(spill_bytes=spilled),), ())
        found = [f.split(": ")[1] for f in failures(report, with_budget=True)]
        assert found == problems
        assert len(failures(report, with_budget=False)) == 1


def test_the_newest_budget_is_of_every_family_and_target_and_grants_no_spills():
    folders = {tuple(map(int, p.name.split("-")[1].split("."))): p for p in FOLDER.iterdir()}
    newest = folders[max(folders)]
    known = {(j.family, j.arch, j.kernel, j.config) for j in find_jobs(CodegenPlan())}
    read = [e for p in newest.glob("*.json") for e in json.loads(p.read_text())["rows"]]
    rows = {(e["kernel"].split(".")[0], e["arch"], e["kernel"], e["config"]) for e in read}
    assert rows == known
    assert not [e for e in read if e.get("spill_bytes")]


def test_table():
    lines = table([row(), row(instructions_per_weight=0.0)]).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    cells = [c.strip() for c in lines[2].strip("|").split("|")]
    expected = ["w8a8.gemm", "small", "sm_80", "64", "0", "2.0", "100", "1.25", "0", "0", "4", "1"]
    assert cells == [*expected, "IMMA:8", "0", "0", "1"]


def test_jobs_by_name():
    jobs = find_jobs(CodegenPlan(("sm_90",), ("w8a8.quantize",)))
    assert (
        jobs
        and {j.kernel for j in jobs} == {"w8a8.quantize"}
        and {j.arch for j in jobs} == {"sm_90"}
    )
    with pytest.raises(ConfigError, match=r"no kernel is called 'w8a'; known: .*w8a8"):
        find_jobs(CodegenPlan(kernels=("w8a",)))
    with pytest.raises(ConfigError, match="unknown architecture 'sm_1'"):
        find_jobs(CodegenPlan(("sm_1",)))


def test_a_sample_reaches_every_kernel_and_every_target():
    jobs = find_jobs(CodegenPlan())
    some = find_jobs(CodegenPlan(limit=60))
    assert len(some) == min(60, len(jobs)) == len(set(some))
    assert {j.kernel for j in some} == {j.kernel for j in jobs}
    assert {j.arch for j in some} == {j.arch for j in jobs}
    assert len(find_jobs(CodegenPlan(limit=10**6))) == len(jobs)


def test_unlisted_families_are_an_error(monkeypatch):
    monkeypatch.setattr(codegen, "unlisted", lambda: ["rope"])
    with pytest.raises(ConfigError, match=r"rope have variants but are not listed \(add them"):
        find_jobs(CodegenPlan())


@pytest.mark.slow  # the gate itself runs in tests/kernels/triton/test_triton_codegen.py
def test_command_line_writes_table_and_json_although_kernels_are_interpreted(tmp_path):
    out = tmp_path / "rows.json"
    command = ["bench", "codegen", "--arch", "sm_90", "--kernel", "w8a16.gather"]
    done = subprocess.run(
        [sys.executable, "-m", "halfbyte", *command, "--json", str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 2 and all(r["arch"] == "sm_90" and r["registers"] > 0 for r in rows)
    required = {"kernel", "config", "arch", "triton", "registers", "spill_bytes", "shared_bytes"}
    required |= {"loop_instructions", "instructions_per_weight", "i2f", "sts"}
    assert required <= set(rows[0])
    assert done.stdout.count("\n") == 2 + len(rows)


def test_a_sample_cannot_become_the_budget(capsys, monkeypatch):
    monkeypatch.setattr(codegen, "run_codegen", lambda plan: CodegenReport((), ()))
    assert codegen.main(["--limit", "3", "--update"]) == 1
    assert "a sample cannot be a budget" in capsys.readouterr().err
