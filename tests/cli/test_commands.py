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
from halfbyte.server.names import AskedModel
from halfbyte.server.quota import QuotaLimits
from halfbyte.server.settings import (
    AccessSettings,
    ListenSettings,
    ServerSettings,
    WatchSettings,
)
from halfbyte.server.tls import TlsFiles


def run(*args: str) -> int:
    return app(list(args), standalone_mode=False) or 0


@pytest.fixture
def served(monkeypatch) -> list[SimpleNamespace]:
    """``serve`` without a server: what was asked of it."""
    calls: list[SimpleNamespace] = []
    server = ModuleType("halfbyte.server.run")

    def record(models: list[AskedModel], **asked: Any) -> None:
        calls.append(SimpleNamespace(models=models, **asked))

    server.serve = record  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "halfbyte.server.run", server)
    monkeypatch.setattr("halfbyte.server.run", server, raising=False)
    return calls


def test_serve_passes_everything_on(served, tmp_path):
    run("serve", str(TINY))
    first = served[0]
    assert first.models == [AskedModel(str(TINY))] and first.settings == ServerSettings()
    assert first.options["device"] == "auto" and callable(first.report.progress)
    cert, key = tmp_path / "c", tmp_path / "k"
    run(
        *("serve", str(TINY), "--host", "::1", "--port", "0", "--api-key", "k", "--drain", "2"),
        *("--served-name", "n", "--max-waiting", "3", "--max-batch", "4", "--threads", "1"),
        *("--max-step-ms", "70", "--priority-key", "p,q", "--max-wait", "7"),
        *("--kv-tokens", "4096", "--max-batch-tokens", "64", "--max-connections", "9"),
        *("--allowed-hosts", "a,b", "--cors-origin", "http://x", "--metrics-prefix", "vllm"),
        *("--ssl-certfile", str(cert), "--ssl-keyfile", str(key), "--otlp-endpoint", "http://o"),
        *(
            "--key-requests",
            "5",
            "--key-tokens",
            "6",
            "--admin-key",
            "r",
            "--model",
            f"other={TINY}",
            "--models-memory",
            "0.5",
        ),
    )
    assert served[1].models == [
        AskedModel(str(TINY), "n"),
        AskedModel(str(TINY), "other", at_start=False),
    ]
    assert served[1].settings == ServerSettings(
        ListenSettings("::1", 0, 9, TlsFiles(cert, key)),
        AccessSettings(("k",), ("p", "q"), ("r",), QuotaLimits(5, 6), ("a", "b"), ("http://x",)),
        QueueLimits(3, wait_s=7.0),
        WatchSettings("text", "vllm", "http://o"),
        models_bytes=1 << 29,
        drain_s=2.0,
    )
    engine = served[1].options
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
