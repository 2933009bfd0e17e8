"""The program as users start it: help, wrong usage, errors, exit codes."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import TINY, halfbyte, run_here
from computing_time import assert_computed

from halfbyte import __version__
from halfbyte.cli import main as cli_main
from halfbyte.errors import CheckpointError

COMMANDS = (
    *("run", "chat", "generate", "serve", "batch", "pull", "list", "show", "rm", "inspect", "plan"),
    *("explain", "tune", "doctor", "accuracy", "perplexity", "bench", "help"),
)


def test_help_is_quick_and_complete():
    times, done = [], None
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = halfbyte("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0 and done.stderr == ""
    assert done is not None
    for command in COMMANDS:
        assert f" {command} " in done.stdout
    # The promise is 0.5 s of a quiet machine. Nothing here waits, so processor time tells it where
    # other work holds the machine; the best of five, because that slows caches, too.
    assert_computed(min(times), 0.5)


@pytest.mark.parametrize("command", [*COMMANDS, "bench engine"])
def test_every_command_explains_itself_in_80_columns(command, capsys):
    code = run_here(*command.split(), "--help")
    out, err = capsys.readouterr()
    assert code == 0 and err == ""
    assert f"Usage: halfbyte {command}" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    assert "<bool>" not in out, "a flag takes no value"


def test_help_imports_neither_torch_nor_triton():
    code = (
        "import sys\nfrom halfbyte.cli.main import main\n"
        "try:\n    main(['generate', '--help'])\n"
        "finally:\n    print([m for m in ('torch', 'triton', 'fastapi') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_version_and_module_entry():
    assert halfbyte("--version").stdout == f"halfbyte {__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "halfbyte", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"halfbyte {__version__}\n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["generat", "x"], "did you mean 'generate'?"),
        (["bench", "engin"], "did you mean 'engine'?"),
        (["frobnicate"], "no command 'frobnicate'"),
        (["generate", "x", "--temprature", "1"], "--temprature"),
        (["generate", "x", "--device", "tpu"], "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        (["generate", "x", "-n", "many"], "--max-tokens"),
        (["generate", "-", "-f", "y"], "not both"),
        (["run", "--raw", "-p", "x", "y", "-m", "z"], "give one prompt"),
        (["ls"], "did you mean 'list'?"),
        (["serve", "--port", "70000"], "--port"),
        (["bench", "engine", "-b", "1,x"], "'1,x' is not a list of numbers"),
        (["pull"], "NAME"),
        (["--debug"], "Missing command"),
    ],
)
def test_wrong_usage_exits_2_with_one_line_and_a_hint(args, says, capsys):
    code = run_here(*args)
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    assert code == 2 and out == ""
    assert len(lines) == 2, err
    assert lines[0].startswith("error: ") and says in lines[0]
    assert lines[1].startswith("hint: see `halfbyte") and lines[1].endswith("--help`")


def test_no_command_shows_the_help():
    done = halfbyte()
    assert done.returncode == 2 and "Usage: halfbyte" in done.stdout + done.stderr


@pytest.fixture
def broken(tmp_path) -> dict[str, str]:
    files = {
        "cut": TINY.read_bytes()[:400],
        "text": b"hello",
        "empty": b"",
        "count": b"GGUF\x03\0\0\0" + b"\xff" * 16,
    }
    for name, data in files.items():
        (tmp_path / f"{name}.gguf").write_bytes(data)
    (tmp_path / "folder").mkdir()
    return {p.stem: str(p) for p in tmp_path.iterdir()}


def check_broken(path: str, code: int, out: str, err: str) -> None:
    lines = err.strip().splitlines()
    assert code == 1 and out == ""
    assert lines[0].startswith("error: ") and Path(path).name in lines[0], err
    assert 1 <= len(lines) <= 2 and "Traceback" not in err and "internal error" not in err


@pytest.mark.parametrize(("command", "kind"), [("inspect", "cut"), ("generate", "text")])
def test_broken_files_exit_1_without_a_traceback(broken, command, kind):
    path = broken[kind]
    done = halfbyte(*([command, path] if command == "inspect" else [command, "x", "-m", path]))
    check_broken(path, done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("kind", ["cut", "text", "empty", "count", "folder"])
@pytest.mark.parametrize("command", ["inspect", "generate", "bench"])
def test_broken_files_in_every_command(broken, kind, command, capsys):
    path = broken[kind]
    args = {"inspect": [path], "generate": ["x", "-m", path], "bench": ["engine", "-m", path]}
    code = run_here(command, *args[command])
    check_broken(path, code, *capsys.readouterr())


@pytest.mark.parametrize(
    ("args", "says", "hints"),
    [
        (["generate", "x", "-m", "/nowhere/m.gguf"], "no model at '/nowhere/m.gguf'", "GGUF file"),
        (["generate", "x", "-m", "smolm2"], "no model at 'smolm2'", "did you mean smollm2?"),
        (["generate", "smolm2"], "no model 'smolm2'; did you mean smollm2?", "-p smolm2"),
        (["run", "hello", "world"], "no model 'hello'", '"hello world"'),
        (["inspect", "owner/name"], "owner/name", "halfbyte pull owner/name"),
        (["generate", "-f", "/nowhere/p.txt"], "cannot read prompt file /nowhere/p.txt", ""),
        (["generate", ""], "the prompt is empty", "give some text"),
        (["generate", "x", "--temperature", "-1"], "--temperature is -1.0", ""),
        (["generate", "x", "--top-p", "2"], "--top-p is 2.0", ""),
        (["generate", "x", "-n", "0"], "--max-tokens is 0; expected 1 or more, or -1", ""),
        (["run", "x", "-n", "-2"], "--max-tokens is -2; expected 1 or more, or -1", ""),
        (["generate", "x", "--threads", "-3"], "--threads is -3", ""),
        (["bench", "engine", "-r", "0"], "repetitions is 0", ""),
        (["bench", "engine", "--json", "/nowhere/x.json"], "cannot write --json", ""),
        (["pull", "file:///etc/passwd"], "file:// address", "plain path"),
    ],
)
def test_errors_exit_1_and_name_the_remedy(args, says, hints, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HALFBYTE_HOME", str(tmp_path))
    code = run_here(*args)
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    assert code == 1 and out == ""
    assert lines[0].startswith("error: ") and says in lines[0]
    assert hints in (lines[1] if len(lines) > 1 else "")
    assert list(tmp_path.iterdir()) == []


def test_tracebacks_only_when_asked_for():
    plain = halfbyte("inspect", "/nowhere")
    for done in (
        halfbyte("--debug", "inspect", "/nowhere"),
        halfbyte("inspect", "/nowhere", env={"HALFBYTE_DEBUG": "1"}),
    ):
        assert "Traceback" in done.stderr and done.stderr.endswith(plain.stderr)
        assert done.returncode == plain.returncode == 1


def run_main(monkeypatch, problem: BaseException, *args: str) -> int:
    """Run a command that raises; the exit code."""

    def fail(*args: object, **kwargs: object) -> None:
        raise problem

    monkeypatch.setattr("halfbyte.loaders.store.model_store.resolve_model", fail)
    return run_here(*args, "inspect", "x")


def test_unexpected_errors_are_one_line(monkeypatch, capsys):
    problem = ZeroDivisionError("a\nb\x1b[31m")
    assert run_main(monkeypatch, problem) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: internal error: ZeroDivisionError: a b\ufffd[31m"
    assert "--debug" in second
    assert run_main(monkeypatch, problem, "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_control_characters_of_a_file_do_not_reach_the_terminal(monkeypatch, capsys):
    problem = CheckpointError("tensor 'a\x1b]0;x\x07\nb' is bad", hint="\x1b[2J")
    assert run_main(monkeypatch, problem) == 1
    assert "\x1b" not in capsys.readouterr().err


def test_exit_codes_of_interrupts(monkeypatch, capsys):
    assert run_main(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert run_main(monkeypatch, cli_main.Terminated()) == 143
    assert capsys.readouterr().err == ""


def test_an_interrupt_that_a_library_turns_into_an_error_is_one(monkeypatch, capsys):
    def fail(*args: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise SystemError("import failed") from None

    monkeypatch.setattr("halfbyte.loaders.store.model_store.resolve_model", fail)
    assert run_here("inspect", "x") == 130
    assert capsys.readouterr().err == "interrupted\n"


START = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
sys.argv = ["halfbyte", "inspect", "smollm2"]
from halfbyte.__main__ import main
main()
"""


@pytest.mark.parametrize("name", ["halfbyte.cli", "typer", "halfbyte.cli.main", "halfbyte.loaders"])
def test_ctrl_c_while_the_program_starts_is_one_line(name):
    """The interrupt comes with the import of a module, whenever that is."""
    code = START.format(name=name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_program_in_the_background_keeps_ignoring_ctrl_c():
    code = START.format(name="typer").replace('"inspect", "smollm2"', '"--version"')
    done = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$0" -c "$1"', sys.executable, code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and "interrupted" not in done.stderr


@pytest.mark.parametrize("command", [["help"], ["help", "bench", "engine"], ["help", "run"]])
def test_help_is_that_of_the_option(command, capsys):
    assert run_here(*command) == 0
    shown = capsys.readouterr().out
    assert run_here(*command[1:], "--help") == 0
    assert shown.strip() == capsys.readouterr().out.strip()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_is_quiet(unbuffered):
    program = str(Path(sys.executable).parent / "halfbyte")
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [program, "--version"],
            stdout=write,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            check=False,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("closed", "args", "code"),
    [
        ("<&-", "generate", 1),
        ("<&-", "chat {model}", 0),
        (">&-", "--version", 0),
        ("2>&-", "generate --nonsense", 2),
    ],
)
def test_closed_streams_are_no_surprise(closed, args, code):
    command = f"{sys.executable} -m halfbyte {args.format(model=TINY)} {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert "internal error" not in done.stderr and "Traceback" not in done.stderr
