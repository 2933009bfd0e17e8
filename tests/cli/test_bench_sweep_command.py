"""``halfbyte bench sweep`` against a small server."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from cli_support import run_here
from fake_openai import FakeOpenAI

from halfbyte.bench.compare import compare_results
from halfbyte.bench.result import read_result


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.json"
    with FakeOpenAI(pause_s=0.005) as fake:
        code = run_here(
            *("bench", "sweep", "--url", fake.url, "--num-prompts", "4", "--input-len", "40"),
            *("--max-concurrency", "1,2", "--goodput", "e2el:60000", "--json", str(path)),
        )
        out, err = capsys.readouterr()
        assert code == 0, err
        assert "median TPOT" not in out  # no terminal, no plot
        screen = Terminal()
        monkeypatch.setattr(sys, "stdout", screen)
        words = ("bench", "sweep", "--url", fake.url, "--num-prompts", "2", "--request-rate")
        assert run_here(*words, "100,inf") == 0
    assert "100/s" in screen.getvalue() and "median TPOT ms" in screen.getvalue()
    assert max(map(len, [*out.splitlines(), *screen.getvalue().splitlines()])) <= 80
    found = read_result(path)
    assert [point["point"] for point in found["points"]] == ["1 at once", "2 at once"]
    assert [point["max_concurrent_requests"] for point in found["points"]] == [1, 2]
    assert all(len(point["ttfts"]) == 4 and point["completed"] == 4 for point in found["points"])
    assert found["points"][0]["request_goodput"] == found["points"][0]["request_throughput"]
    prompts = [body["prompt"] for body in fake.bodies if body["max_tokens"] > 1]
    assert len(prompts) == len(set(prompts)) == 12
    assert compare_results(path, path).regressions == []
    assert "1 at once: 4 requests" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max-concurrency", "1", "--request-rate", "2"), "expected one of the two"),
        (("--request-rate", "0,1"), "--request-rate is '0,1'; expected rates such as"),
        (("--request-rate", "nan"), "--request-rate is 'nan'"),
        (("--max-concurrency", "x"), "'x' is not a list of numbers"),
        (("--max-concurrency", "0"), "--max-concurrency is 0; expected 1 or more"),
        (("--metric-percentiles", "50"), "99 in --metric-percentiles"),
    ],
)
def test_wrong_sweeps(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("bench", "sweep", "m", *words) in (1, 2)
    assert said in capsys.readouterr().err


def test_ctrl_c_keeps_the_points_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.json"
    # The probes of the second point are answered, and its requests are not.
    with FakeOpenAI([*["good"] * 5, *["slow"] * 9]) as fake:
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        words = ("bench", "sweep", "--url", fake.url, "--num-prompts", "3", "--json", str(path))
        assert run_here(*words, "--max-concurrency", "2,1", "--input-len", "40") == 130
    found = read_result(path)
    assert [point["completed"] for point in found["points"]] == [3, 0]
    assert [point["interrupted"] for point in found["points"]] == [False, True]
    assert "interrupted" in capsys.readouterr().err
