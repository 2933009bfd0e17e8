"""The suite for GPU machines, its plumbing: parts, time limits, failures, reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from halfbyte.bench import gpu_suite
from halfbyte.bench.gpu import suite
from halfbyte.bench.gpu.correctness import FAMILIES
from halfbyte.bench.gpu.part import Part, read
from halfbyte.bench.gpu.parts import PARTS

# "cold" compiles in a fresh process, twice.
SLOW = {"cold": pytest.mark.slow}


@pytest.mark.parametrize("name", [pytest.param(n, marks=SLOW.get(n, ())) for n in PARTS])
def test_every_part_runs(name, tmp_path):
    part = Part(name, tmp_path, 60.0, smoke=True)
    PARTS[name](part)
    part.finish()
    found = read(tmp_path, name)
    assert found["state"] == "done"
    assert found["rows"] or found["facts"]
    for row in found["rows"]:
        assert "failure" not in row, row
        assert "error" not in row, row


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_check_passes_in_the_interpreter(family, tmp_path):
    part = Part(f"check-{family}", tmp_path, 60.0, smoke=True)
    FAMILIES[family](part)
    assert part.rows
    for row in part.rows:
        assert row["ok"], row


def test_stages_hold_every_part_once():
    wanted = [*PARTS, *(f"check-{family}" for family in FAMILIES)]
    assert sorted(suite.SUITE_PARTS) == sorted(wanted)


def test_a_failing_check_is_a_row(tmp_path):
    part = Part("check-x", tmp_path, 9.0, smoke=True)
    part.check("breaks", lambda: (1 / 0, 0.0))
    part.check("is wrong", lambda: (2.0, 1.0))
    part.check("is not finite", lambda: (float("nan"), 1.0))
    part.check("is right", lambda: (0.5, 1.0))
    assert [row["ok"] for row in read(tmp_path, "check-x")["rows"]] == [False, False, False, True]
    shown = suite.text({"parts": {"check-x": read(tmp_path, "check-x")}})
    assert "1 of 4 passed" in shown
    assert "ZeroDivisionError" in shown


FAKE = """
import json, pathlib, sys, time
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
name, folder = words["--part"], pathlib.Path(words["--out"])
row = {"kind": "w4a16", "name": "8B o", "m": 1, "us": 6.0, "floor_us": 3.0, "gap": 2.0}
row |= {"bound": "m", "gbps": 1.0, "copy_share": 0.5, "tflops": 1.0, "graph": True, "note": ""}
row |= {"peers": {}, "ratios": {}, "absent": {}}
told = {"part": name, "state": "running", "seconds": 1, "facts": {}, "rows": [row]}
(folder / f"{name}.json").write_text(json.dumps(told))
if name == "w4a16":
    time.sleep(60)
if name == "w8a8":
    raise SystemExit("illegal memory access")
"""


def test_parts_that_hang_or_crash_leave_their_rows(tmp_path, monkeypatch):
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    stages = [suite.Stage(("w4a16",), 3.0), suite.Stage(("w8a8",), 20.0)]
    monkeypatch.setattr(suite, "STAGES", stages)
    begin = time.monotonic()
    found = suite.run_suite(tmp_path / "out", script, smoke=True)
    assert time.monotonic() - begin < 20
    parts = json.loads((tmp_path / "out" / "results.json").read_text())["parts"]
    assert parts == found["parts"]
    assert "stopped after 3 s" in parts["w4a16"]["note"]
    assert "illegal memory access" in parts["w8a8"]["note"]
    assert all(len(part["rows"]) == 1 for part in parts.values())
    written = (tmp_path / "out" / "results.md").read_text()
    assert "The 2 worst gaps:" in written.split("## Worst gaps")[1]


def test_nothing_starts_when_time_is_out(tmp_path):
    found = suite.run_suite(tmp_path, Path("none.py"), limit=5.0, only=("probe",))
    assert found["parts"]["probe"]["note"] == "not started: out of time"


def test_unknown_parts_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu_suite.main(["--out", str(tmp_path), "--only", "prob"])
    assert "no part is called prob" in capsys.readouterr().err


THIRD_PARTY = """
import runpy, sys
sys.argv = [sys.argv[1], *sys.argv[2:]]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
ours = {"tokenizers", "orjson", "typer", "fastapi", "pydantic", "sentencepiece"}
assert not ours & set(sys.modules), ours & set(sys.modules)
assert not [m for m in sys.modules if m.startswith("halfbyte.engine")]
"""


def test_it_runs_from_a_bare_checkout(tmp_path):
    """By its path, from another folder, without what the engine needs."""
    words = [str(gpu_suite.SCRIPT), "--part", "probe", "--smoke", "--out", str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", THIRD_PARTY, *words],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read(tmp_path, "probe")["state"] == "done"
