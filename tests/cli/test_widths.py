"""Every table and text fits terminals of 40 to 200 columns."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest
from cli_support import ROOT, TINY, FakeEngine

from halfbyte.bench.engine import EngineCase, EngineRow, ModelFacts, Report
from halfbyte.bench.table import compact, markdown
from halfbyte.cli import console, models
from halfbyte.cli.answers import speed_line
from halfbyte.cli.main import app
from halfbyte.cli.session import ChatSession, help_text
from halfbyte.engine.params import SamplingParams
from halfbyte.engine.request import Completion, FinishReason, Timings, Usage

WIDTHS = (40, 60, 80, 120, 200)
FIXTURES = ROOT / "tests" / "fixtures"
MANY_FORMATS = str(FIXTURES / "ct-w8a8-dyn-smoothquant-gptq-qwen2")


@pytest.fixture(params=WIDTHS)
def width(request, monkeypatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def check(text: str, width: int) -> None:
    assert text.strip()
    assert [line for line in text.splitlines() if len(line) > width] == []


@pytest.mark.parametrize(
    "args",
    [
        ("inspect", MANY_FORMATS),
        ("inspect", MANY_FORMATS, "-v"),
        ("show", str(TINY)),
        ("plan", str(TINY), "--gpu", "RTX 4090"),
        (
            "plan",
            MANY_FORMATS,
            "--gpu",
            "H100",
            "--ctx",
            "64",
            "--batch",
            "16",
            "--kv-dtype",
            "int8",
        ),
        ("explain", str(FIXTURES / "gptq-v1-4b-g128-sym-llama"), "--device", "sm_90"),
        ("bench", "kernels", "--dry-run", "--gpu", "H100"),
    ],
    ids=lambda args: " ".join(a for a in args if "/" not in a),
)
def test_commands(args, width, monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    assert not app(list(args), standalone_mode=False)
    check(screen.getvalue(), width)


def test_the_list_of_models(width, monkeypatch, capsys):
    names = ("smollm2", "owner/A-Model-With-A-Long-Name-1.5B-Instruct-GGUF:Q4_K_M")
    found = [SimpleNamespace(name=n, bytes=10**9, licence="x" * 46, complete=True) for n in names]
    monkeypatch.setattr("halfbyte.loaders.store.model_store.pulled", lambda: found)
    models.list_models()
    out = capsys.readouterr().out
    check(out, width)
    assert all(name in out for name in names[:1]) and "953.67 MiB" in out


def test_the_doctor(width, monkeypatch, capsys):
    def check_python():
        return SimpleNamespace(
            status="warn",
            name="python headers",
            detail="a sentence with /a/long/path/to/some/library/that/is/named/in/it.so " * 2,
            remedy="install " + "x" * 30,
        )

    monkeypatch.setattr("halfbyte.engine.advise.doctor.CHECKS", (check_python,))
    app(["doctor"], standalone_mode=False)
    check(capsys.readouterr().out, width)


def test_bench_tables(width, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Screen())
    facts = ModelFacts("Name", "m.gguf", "llama", "Q4_1", 1 << 30, 10**9)
    rows = tuple(EngineRow(EngineCase("tg", n, 32, 16384), (1e4, 2e4), 0.5) for n in (16, 1024))
    report = Report({"cpu": "x"}, facts, "cpu_c", 16, {}, 2e9, 1, {}, rows)
    for table in (markdown(report), compact(report)):
        check(console.fit_markdown(table), width)


def test_chat_texts(width, capsys):
    engine = FakeEngine()
    session = ChatSession(engine, SamplingParams(), lambda text: None, console.note_block)  # type: ignore[arg-type]
    session.answer("one two")
    check(help_text(), width)
    check(session.stats(), width)
    usage, times = Usage(12345, 1234, 12300), Timings(0.1, 12.34, 99.0, 12345.6, 123.4)
    check(speed_line(Completion("", [], FinishReason.CANCELLED, usage, times)), width)


@pytest.mark.parametrize("count", [1, 3])
def test_columns_lose_nothing(width, count):
    heads = ("name", "tensors", "weights", "size", "bits each")
    rows = [("a name " * n, str(n), "134.52 M", "92.10 MiB", "5.74") for n in range(1, 4 * count)]
    rows += [("x" * 210, "1", "2", "3", "4")]
    text = console.columns(heads, rows)
    check(text, width)
    for row in rows:
        assert all(cell.strip() in text for cell in row[1:])
    assert "x" * 210 in "".join(text.split())
