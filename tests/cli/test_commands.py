"""``serve`` and ``bench engine``: that options arrive where they are meant to."""

from __future__ import annotations

import contextlib
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from cli_support import TINY

from halfbyte.bench.engine import BenchPlan, EngineCase, EngineRow, ModelFacts, Report
from halfbyte.cli import bench
from halfbyte.cli.main import app
from halfbyte.server.admission import QueueLimits


def run(*args: str) -> int:
    return app(list(args), standalone_mode=False) or 0


def test_serve_passes_everything_on(monkeypatch):
    calls: list[Any] = []
    server = ModuleType("halfbyte.server.run")
    server.serve = lambda model, **options: calls.append((model, options))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "halfbyte.server.run", server)
    monkeypatch.setattr("halfbyte.server.run", server, raising=False)
    run("serve", str(TINY))
    model, options = calls[0]
    assert model == str(TINY)
    assert (options["host"], options["port"], options["api_key"]) == ("127.0.0.1", 8000, None)
    assert options["options"]["device"] == "auto" and callable(options["options"]["progress"])
    run(
        *("serve", str(TINY), "--host", "::1", "--port", "0", "--api-key", "k", "--drain", "2"),
        *("--served-name", "n", "--max-waiting", "3", "--max-batch", "4", "--threads", "1"),
        *("--max-step-ms", "70"),
        *("--kv-tokens", "4096", "--max-batch-tokens", "64", "--max-connections", "9"),
        *("--allowed-hosts", "a,b", "--cors-origin", "http://x"),
    )
    _, options = calls[1]
    engine = options.pop("options")
    assert options == {
        **{"host": "::1", "port": 0, "api_key": "k", "served_name": "n"},
        **{"priority_key": None, "queue": QueueLimits(3), "max_connections": 9, "drain_s": 2.0},
        **{"allowed_hosts": ["a", "b"], "cors_origins": ["http://x"]},
    }
    assert engine["max_step_ms"] == 70
    assert (engine["kv_tokens"], engine["max_batch_tokens"]) == (4096, 64)
    assert engine["max_batch"] == 4 and engine["threads"] == 1 and engine["backend"] == "auto"


@pytest.fixture
def measured(monkeypatch):
    """``bench engine`` with a report that is already there; the plans and engine options."""
    seen = SimpleNamespace(plans=[], options=[])
    facts = ModelFacts("Name", "m.gguf", "llama", "Q4_1", 1 << 20, 10**6)
    rows = (EngineRow(EngineCase("tg", 16, 8, 0), (10.0, 20.0), 0.5),)
    report = Report({"cpu": "x"}, facts, "reference", 2, {}, 2e9, 1, {}, rows)

    def fake_run(engine: object, path: object, plan: BenchPlan, say: object) -> Report:
        seen.plans.append(plan)
        return report

    @contextlib.contextmanager
    def fake_open(model: str, options: dict[str, Any]):
        seen.options.append(options)
        yield None

    monkeypatch.setattr("halfbyte.bench.engine.run_bench", fake_run)
    monkeypatch.setattr(bench, "open_engine", fake_open)
    return seen


def test_bench_table_and_json(measured, tmp_path, capsys):
    file = tmp_path / "r.json"
    run(
        *("bench", "engine", "-m", str(TINY), "-p", "64,0", "-n", "16", "-b", "1,8"),
        *("-d", "0,32", "-r", "2", "--seed", "9", "--json", str(file), "--backend", "reference"),
    )
    assert measured.plans == [BenchPlan((64,), (16,), (1, 8), (0, 32), 2, 9)]
    assert measured.options[0]["max_batch"] == 8 and measured.options[0]["prefix_cache"] is True
    assert measured.options[0]["backend"] == "reference"
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith("| model ") and "tg16 b8 | 15.00 ± 7.07" in out
    assert "read bandwidth 2.0 GB/s" in err
    assert json.loads(file.read_text())["rows"][0]["samples"] == [10.0, 20.0]


def test_bench_json_to_stdout_is_nothing_but_json(measured, capsys):
    run("bench", "engine", "-m", str(TINY), "-p", "0", "--json", "-")
    assert measured.plans[0].prompt == ()
    assert json.loads(capsys.readouterr().out)["rows"][0]["test"] == "tg16"


def test_a_narrow_terminal_gets_the_narrow_table(measured, monkeypatch, capsys):
    monkeypatch.setattr(bench, "is_terminal", lambda stream: True)
    monkeypatch.setenv("COLUMNS", "80")
    run("bench", "engine", "-m", str(TINY))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and "| tg16 b8 |" in out
    monkeypatch.setenv("COLUMNS", "200")
    run("bench", "engine", "-m", str(TINY))
    assert "| llama Q4_1 |" in capsys.readouterr().out
