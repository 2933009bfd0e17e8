"""``halfbyte bench report``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import run_here


def test_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("bench", "report", str(tmp_path)) == 1
    assert "has no results of `halfbyte bench`" in capsys.readouterr().err
    frame = {"schema": 1, "kind": "startup", "machine": {}, "model": {}, "flags": {}}
    (tmp_path / "a.json").write_text(json.dumps(frame | {"runs": [{"import": 1.0}]}))
    (tmp_path / "b.json").write_text("damaged")
    assert run_here("bench", "report", str(tmp_path)) == 0
    out, err = capsys.readouterr()
    assert "warning: b.json is left out: not valid JSON" in err and not out
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!doctype html>") and "a.json" in page and "b.json" in page
    assert run_here("bench", "report", str(tmp_path), "--html", "no/such/x") == 1
    assert run_here("bench", "report", str(tmp_path / "none")) == 1
    assert "error: " in capsys.readouterr().err
