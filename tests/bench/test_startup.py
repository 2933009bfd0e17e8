"""Cold starts: a real one, one that fails, and what is left of an interrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from halfbyte.bench import startup
from halfbyte.bench.startup import PHASES, StartupRuns, measure_startup, startup_table
from halfbyte.errors import EngineDeadError


def test_an_interrupt_keeps_the_runs_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [1.0, 2.0]

    def run(model: Path, options: Any) -> tuple[dict[str, float], dict[str, float]]:
        if not left:
            raise KeyboardInterrupt
        return dict.fromkeys(PHASES, left.pop(0)), {"weights": 0.5}

    monkeypatch.setattr(startup, "_run", run)
    done: list[int] = []
    found = measure_startup(Path("m"), {}, 5, progress=done.append)
    assert found.interrupted and len(found.runs) == len(found.details) == 2 and done == [1, 2]
    lines = startup_table(found).splitlines()
    assert len(lines) == 2 + len(PHASES) and "1.500 |  1.000 |   2.000" in lines[2]
    assert not StartupRuns().interrupted


def test_a_start_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho not a model >&2\nexit 3\n")
    program.chmod(0o700)
    monkeypatch.setattr(startup.sys, "executable", str(program))
    with pytest.raises(
        EngineDeadError, match="starting m ended with status 3: not a model"
    ) as caught:
        measure_startup(Path("m"), {}, 1)
    assert "halfbyte generate -m m hello" in caught.value.hint
    program.write_text("#!/bin/sh\necho nothing of use\n")
    with pytest.raises(EngineDeadError, match="ended with status 0"):
        measure_startup(Path("m"), {}, 1)
