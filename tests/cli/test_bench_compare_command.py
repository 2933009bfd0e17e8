"""``halfbyte bench compare``: its table, its notes and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import run_here

FRAME = {"schema": 1, "kind": "startup", "machine": {"cpu": "A"}, "model": {"name": "m"}}


def write(path: Path, seconds: float, **more: object) -> str:
    runs = [{"import": seconds + 0.001 * n, "load": 1.0} for n in range(5)]
    path.write_text(json.dumps({**FRAME, "flags": {}, "runs": runs, **more}))
    return str(path)


def test_a_regression_is_exit_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a.json", 1.0), write(tmp_path / "b.json", 1.2, model={"name": "n"})
    assert run_here("bench", "compare", a, b) == 1
    out, err = capsys.readouterr()
    assert "| import s |" in out and "| worse" in out and "| same" in out
    assert "differs: model.name is m and n" in err
    assert "error: worse beyond noise: import s" in err
    assert run_here("bench", "compare", b, a, "--json", str(tmp_path / "c.json")) == 0
    assert json.loads((tmp_path / "c.json").read_text())["regressions"] == []
    assert "better" in capsys.readouterr().out
    assert run_here("bench", "compare", a, b, "--tolerance", "30") == 0


def test_other_machines_and_damaged_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a.json", 1.0)
    b = write(tmp_path / "b.json", 1.0, machine={"cpu": "B"})
    assert run_here("bench", "compare", a, b) == 1
    assert "different machines: cpu is A and B" in capsys.readouterr().err
    assert run_here("bench", "compare", a, b, "--across-machines") == 0
    assert "differs: cpu is A and B" in capsys.readouterr().err
    (tmp_path / "c.json").write_text('{"kind": "startup", "schema": 1, "mach')
    assert run_here("bench", "compare", a, str(tmp_path / "c.json")) == 1
    err = capsys.readouterr().err
    assert "c.json: not valid JSON" in err and "hint: the file is damaged" in err
    assert run_here("bench", "compare", a) == 2
