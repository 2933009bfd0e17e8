"""``halfbyte bench startup`` of a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import TINY, run_here

from halfbyte.bench.result import read_result


def test_a_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.json"
    code = run_here(
        *("bench", "startup", str(TINY), "--runs", "1", "--threads", "1", "--cold-files"),
        *("--json", str(path)),
    )
    out, err = capsys.readouterr()
    assert code == 0, err
    (run,) = (found := read_result(path))["runs"]
    parts = ("process", "import", "load", "first token")
    assert run["total"] == pytest.approx(sum(run[name] for name in parts))
    assert all(seconds > 0 for seconds in run.values()) and "| total" in out
    # The engine's own parts make up its loading, all but what is between them.
    assert 0 < sum(found["details"][0].values()) <= run["load"]
    assert found["model"]["format"] == "Q4_0" and found["flags"]["engine"]["threads"] == 1
    assert not found["interrupted"] and found["kind"] == "startup"
