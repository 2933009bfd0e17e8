"""Options of other engines: taken where they mean the same, answered where they do not."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from cli_support import FakeEngine, fake_open

from halfbyte.cli import chat, generate
from halfbyte.cli.familiar import USAGE_ERROR
from halfbyte.cli.inspect import inspect
from halfbyte.cli.main import app
from halfbyte.cli.serve import serve
from halfbyte.engine.params import SamplingParams


@pytest.fixture
def run(monkeypatch):
    """Run a command on a fake engine; what it was opened with, and its sampling parameters."""

    def run(*args: str) -> tuple[dict[str, object], list[SamplingParams]]:
        engine, seen = FakeEngine(), SimpleNamespace(options={})

        def opened(model, options):
            seen.options = options
            return fake_open(engine)

        monkeypatch.setattr("sys.stdin", io.StringIO())
        for module in (generate, chat):
            monkeypatch.setattr(module, "open_engine", opened)
            monkeypatch.setattr(module, "check_room", lambda *args: None)
        assert not app(list(args), standalone_mode=False)
        return seen.options, engine.params

    return run


@pytest.mark.parametrize("command", ["generate", "run", "chat"])
def test_names_of_other_engines(run, command):
    for name in ("-c", "--ctx", "--num-ctx", "--ctx-size", "--max-model-len", "--max-context"):
        assert run(command, "-p", "x", name, "77")[0]["max_context"] == 77
    assert run(command, "-p", "x", "--ctx-size=78")[0]["max_context"] == 78
    for name in ("-t", "--threads"):
        assert run(command, "-p", "x", name, "3")[0]["threads"] == 3
    _, (params,) = run(command, "-p", "x", "--n-predict", "9", "--repeat-penalty", "1.5")
    assert (params.max_tokens, params.repetition_penalty) == (9, 1.5)
    _, (params,) = run(command, "-p", "x", "-n", "-1")
    assert params.max_tokens is None


def test_a_value_that_looks_like_an_option_stays_one(run):
    for value in ("--ctx-size", "-ngl", "-temp"):
        _, (params,) = run("generate", "-p", "x", "--stop", value)
        assert params.stop == (value,)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["run", "-ngl", "99"], "'-ngl'; use --device: a model is on one device as a whole"),
        # A later -n does not hide that -ngl would be read as -n gl.
        (["run", "hi", "-ngl", "99", "-n", "2"], "'-ngl'; use --device"),
        (["run", "hi", "-temp=0", "-t", "2"], "did you mean --temp?"),
        (["run", "hi", "--verbose"], "speed is always shown"),
        (["run", "--n-gpu-layers", "9"], "use --device"),
        (["chat", "--gpu-memory-utilization", "0.9"], "use --max-context: the KV cache is sized"),
        (["rm", "x", "--gpu-memory-utilization", "0.9"], "this command has nothing like it"),
        (["generate", "--quantization", "awq"], "the format is found out from the files"),
        (["run", "-tp", "2"], "one device as a whole"),
        (["run", "--trust-remote-code"], "never run"),
        (["serve", "--no-native"], "'--no-native'; use --backend with the value cpu_torch"),
        (["run", "-temp", "1"], "did you mean --temp?"),
        (["run", "--ctxsize", "1"], "did you mean --ctx-size?"),
        (["run", "--max_tokens", "1"], "did you mean --max-tokens?"),
        (["plan", "--context", "1"], "did you mean --ctx"),
        (["list", "--xyzzy"], "no option '--xyzzy'$"),
    ],
)
def test_a_wrong_option_is_told_the_right_one(args, says):
    with pytest.raises(USAGE_ERROR) as caught:
        app(args, standalone_mode=False)
    message = caught.value.format_message()
    assert message.startswith("no option ")
    assert message.endswith(says[:-1]) if says.endswith("$") else says in message


def test_the_server_takes_the_names_of_vllm(monkeypatch):
    seen: list[dict[str, object]] = []
    command = next(c for c in app.registered_commands if c.callback is serve)
    monkeypatch.setattr(command, "callback", _recorded(command.callback, seen))
    names = ("--max-num-seqs", "4", "--served-model-name", "n", "--max-model-len", "64")
    app(["serve", "smollm2", *names], standalone_mode=False)
    assert {"max_batch": 4, "served_name": "n", "max_context": 64}.items() <= seen[0].items()


@pytest.mark.parametrize("named", [["-m", "other"], ["--model", "other"], ["--model=other"]])
def test_an_argument_for_the_model_has_the_name_of_the_option(monkeypatch, named):
    seen: list[dict[str, object]] = []
    command = next(c for c in app.registered_commands if c.callback is inspect)
    monkeypatch.setattr(command, "callback", _recorded(command.callback, seen))
    app(["inspect", *named, "--json"], standalone_mode=False)
    assert {"path": "other", "as_json": True}.items() <= seen[0].items()
    with pytest.raises(USAGE_ERROR):
        app(["inspect", *named, "another"], standalone_mode=False)


def _recorded(command, seen):
    import functools

    @functools.wraps(command)
    def record(**values):
        seen.append(values)

    return record
