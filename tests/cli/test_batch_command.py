"""``halfbyte batch`` as users start it: what it refuses, says and leaves, and how it goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_support import ROOT, TINY, run_here

from halfbyte.cli import batch as module

OTHER = ROOT / "tests" / "fixtures" / "gguf-q5_k-q3_k-gemma2"
OPTIONS = ("--threads", "1", "--max-batch", "4", "--kv-tokens", "2048", "--max-context", "256")


def line(name: str, **body: Any) -> str:
    body = {"prompt": "Hello", "max_tokens": 4, "temperature": 0, **body}
    asked = {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": body}
    return json.dumps(asked) + "\n"


def results(out: Path) -> list[dict[str, Any]]:
    found = [json.loads(text) for text in out.read_bytes().splitlines()]
    for answer in found:
        answer["response"]["body"].pop("created", None)
    return found


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    source = tmp_path / "in.jsonl"
    source.write_text(line("a") + "nothing\n" + line("b", model="tiny"))
    return source, tmp_path / "out.jsonl"


def command(source: Path, out: Path, *args: str) -> list[str]:
    return ["batch", str(source), str(out), "-m", str(TINY), *OPTIONS, *args]


def test_a_batch_with_failed_lines_is_a_success(files, capsys, monkeypatch):
    source, out = files
    assert run_here(*command(source, out, "--served-name", "tiny")) == 0
    said, err = capsys.readouterr()
    assert said == "" and "warning: the first failure, line 2: The body is not usable" in err
    assert f"3 lines in {out}, 1 failed; 8 tokens in " in err
    found = results(out)
    assert [answer["custom_id"] for answer in found] == ["a", None, "b"]
    assert [answer["response"]["status_code"] for answer in found] == [200, 400, 200]
    assert found[0]["response"]["body"]["model"] == "tiny"
    # Once more: nothing is left to do, so no weights are read.
    monkeypatch.setattr(module, "open_engine", None)
    assert run_here(*command(source, out)) == 0
    assert capsys.readouterr()[1] == f"3 lines in {out}, 1 failed\n"
    assert results(out) == found
    # Nor for what is refused.
    assert run_here("batch", str(source), str(out), "-m", str(OTHER)) == 1
    assert "was begun with another model" in capsys.readouterr()[1]
    assert run_here(*command(source, out, "--quantize", "w8a8")) == 1
    source.write_text(line("c"))
    assert run_here(*command(source, out)) == 1
    assert "was begun with another input" in capsys.readouterr()[1]
    assert results(out) == found


def test_ctrl_c_says_how_to_go_on(files, capsys, monkeypatch):
    source, out = files
    source.write_text("".join(line(f"c{i}", max_tokens=20, ignore_eos=True) for i in range(40)))
    show, sent = module._show, []

    def interrupted(bar: Any, run: Any) -> None:
        show(bar, run)
        if run.record.answered >= 3 and not sent:
            sent.append(run.record.answered)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(module, "_show", interrupted)
    assert run_here(*command(source, out)) == 130
    err = capsys.readouterr()[1]
    assert "of 40 lines are answered; the same command goes on with the others\n" in err
    assert err.endswith("interrupted\n") and "Traceback" not in err
    assert run_here(*command(source, out)) == 0
    err = capsys.readouterr()[1]
    assert "lines are answered already; going on" in err and "40 lines in" in err
    assert [answer["custom_id"] for answer in results(out)] == [f"c{i}" for i in range(40)]


@pytest.mark.parametrize(
    ("source", "out", "says"),
    [
        ("-", "out", "neither can be a pipe"),
        ("in.jsonl", "-", "neither can be a pipe"),
        ("nothing", "out", "cannot read nothing: No such file"),
        (".", "out", ". is no regular file"),
        ("zipped", "out", "zipped is compressed"),
        ("in.jsonl", "in.jsonl", "both IN and OUT"),
        ("in.jsonl", "./in.jsonl", "both IN and OUT"),
        ("in.jsonl", "nowhere/out", "no folder nowhere"),
        ("in.jsonl", "zipped", "zipped is there already and was not written by halfbyte batch"),
        ("in.jsonl", ".", "cannot write .: Is a directory"),
        ("in.jsonl", "/dev/null", "no regular file"),
    ],
)
def test_refusals_come_before_the_weights(files, monkeypatch, capsys, source, out, says):
    folder = files[0].parent
    (folder / "zipped").write_bytes(b"\x1f\x8b\x08\x00rest")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(module, "open_engine", None)
    before = sorted(path.name for path in folder.iterdir())
    assert run_here("batch", source, out, "-m", str(TINY)) == 1
    said, err = capsys.readouterr()
    assert said == "" and says in err.splitlines()[0] and err.startswith("error: ")
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.slow
def test_kills_at_random_moments_lose_and_double_nothing(tmp_path):
    source, out, whole = tmp_path / "in", tmp_path / "out", tmp_path / "whole"
    count, kills = 400, 5
    source.write_text(
        "".join(
            line(
                f"c{i}",
                prompt=f"{'once upon a time ' * (i % 3)}{i}",
                max_tokens=random.randint(1, 60),
                ignore_eos=True,
                seed=i,
                temperature=1,
            )
            for i in range(count)
        )
    )
    program = [str(Path(sys.executable).parent / "halfbyte")]
    subprocess.run(program + command(source, whole, "--exact"), check=True)
    size, before = whole.stat().st_size, b""
    for number in range(kills):
        process = subprocess.Popen(program + command(source, out, "--exact"))
        at = len(before) + random.randint(0, (size - len(before)) // (kills - number + 1))
        while process.poll() is None and (not out.exists() or out.stat().st_size <= at):
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.02))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        now = out.read_bytes()
        assert now.startswith(before[: before.rfind(b"\n") + 1])
        before = now
    subprocess.run(program + command(source, out, "--exact"), check=True)
    assert [answer["custom_id"] for answer in results(out)] == [f"c{i}" for i in range(count)]
    for found, expected in zip(results(out), results(whole), strict=True):
        for answer in (found, expected):  # a prefix cache begins empty after a kill
            answer["response"]["body"]["usage"].pop("prompt_tokens_details")
        assert found == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "whole"]
