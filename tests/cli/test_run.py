"""``halfbyte run``: an answer when there is a prompt or a pipe, else a chat."""

from __future__ import annotations

import io
import os

import pytest
import typer
from cli_support import TINY, FakeEngine, fake_open

from halfbyte.cli import generate
from halfbyte.cli import run as module
from halfbyte.cli.asking import Asking
from halfbyte.cli.loading import check_room
from halfbyte.cli.main import app
from halfbyte.errors import RequestError


@pytest.fixture
def run(monkeypatch, capsys):
    """Run it with a terminal (None) or piped text as stdin: the engine, the calls of talk, out."""

    def run(*args: str, stdin: bytes | None = None) -> tuple[FakeEngine, list[object], str]:
        engine, talks = FakeEngine(), []
        monkeypatch.setattr(generate, "open_engine", lambda *args: fake_open(engine))
        monkeypatch.setattr(generate, "check_room", lambda *args: None)
        monkeypatch.setattr(module, "talk", lambda *args, **more: talks.append((args, more)))
        for where in (module, module.read_prompts.__globals__):
            if isinstance(where, dict):
                monkeypatch.setitem(where, "is_terminal", lambda stream: stdin is None)
            else:
                monkeypatch.setattr(where, "is_terminal", lambda stream: stdin is None)
        read, write = os.pipe()
        os.write(write, stdin or b"")
        os.close(write)
        with os.fdopen(read, encoding="utf-8") as pipe:
            monkeypatch.setattr("sys.stdin", pipe)
            assert not app(["run", *args], standalone_mode=False)
        return engine, talks, capsys.readouterr().out

    return run


def test_a_prompt_is_answered_to_its_end(run):
    engine, talks, out = run("smollm2", "a b")
    assert (engine.prompts, talks, out) == (["user:a b\n"], [], "b a \n")
    assert engine.params[0].max_tokens is None


def test_without_a_prompt_it_chats(run):
    engine, ((args, more),), _ = run("--system", "s", "--no-history")
    assert args[:3] == ("smollm2", None, "s") and more == {"keep": False}
    assert engine.prompts == []


def test_a_pipe_is_the_prompt_or_follows_it(run):
    assert run(stdin=b"one\n")[0].prompts == ["user:one\n"]
    assert run("sum up:", stdin=b"one\n")[0].prompts == ["user:sum up:\n\none\n"]
    assert run("--raw", "sum up:", stdin=b"one\n")[0].prompts == ["sum up:\n\none"]


def test_raw_needs_a_text(run):
    with pytest.raises(typer.BadParameter, match="--raw needs a PROMPT"):
        run("--raw")


@pytest.fixture
def no_weights(monkeypatch):
    """Loading fails: whatever is refused was refused before."""

    def fail(*args: object, **options: object) -> None:
        raise AssertionError("the weights were to be loaded")

    monkeypatch.setattr("halfbyte.engine.engine.Engine.__init__", fail)


@pytest.mark.parametrize(
    ("command", "stdin", "says"),
    [
        (["run", str(TINY), "word " * 50, "-c", "40"], "", "context holds 40"),
        (["generate", str(TINY), "--raw", "word " * 50, "-c", "40"], "", "context holds 40"),
        (["chat", str(TINY), "-c", "4"], "hi\n", "context holds 4"),
        (["chat", str(TINY), "--system", "word " * 50, "-c", "40"], "hi\n", "context holds 40"),
    ],
)
def test_what_does_not_fit_is_refused_before_loading(no_weights, monkeypatch, command, stdin, says):
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    with pytest.raises(RequestError, match=says) as caught:
        app(command, standalone_mode=False)
    assert "raise max_context, up to" in caught.value.hint


def test_what_fits_is_not_refused():
    check_room(str(TINY), 0, "word " * 3, Asking(False))
    check_room(str(TINY), 40, "word", Asking(False))
