"""A jailed process of any kind: what it is given, and how its end is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from halfbyte.engine.jail.process import Jail, JailedProcess
from halfbyte.errors import HalfbyteError

WORKER = """
import json, os, sys, time
def main(load, limit, arguments):
    other = load("other", __import__("pathlib").Path(arguments[0]))
    limit(1 << 30)
    for line in sys.stdin.buffer:
        work = json.loads(line)["do"]
        try:
            said = str(eval(work))
        except BaseException as error:
            said = type(error).__name__
        sys.stdout.write(json.dumps({"said": said}) + "\\n")
        sys.stdout.flush()
"""


class JailTestError(HalfbyteError):
    """The failure of this jail."""


@pytest.fixture
def jail(tmp_path: Path) -> Jail:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    (tmp_path / "other.py").write_text("VALUE = 7\n")
    return Jail(worker, "does sums", "sum", frozenset({"said"}), 200, 1 << 30, JailTestError)


def started(jail: Jail) -> JailedProcess:
    return JailedProcess(jail, [str(jail.worker.with_name("other.py"))])


def ask(process: JailedProcess, work: str, wall: float = 30) -> str:
    answer = process.ask(json.dumps({"do": work}).encode() + b"\n", 0.5, wall)
    return answer.get("said") or answer["exceeded"]


def test_a_worker_is_loaded_with_its_arguments_and_serves(jail: Jail) -> None:
    process = started(jail)
    assert process.usable() and ask(process, "6 * other.VALUE") == "42"
    assert ask(process, "sys.flags.isolated, sys.flags.no_site") == "(1, 1)"
    assert ask(process, "sorted(os.environ.keys() - {'LC_CTYPE', 'LD_LIBRARY_PATH', 'TZ'})") == "[]"
    assert process.usable()


@pytest.mark.parametrize(
    ("work", "error"),
    [
        ("open('/etc/hostname')", "OSError"),
        ("os.fork()", "BlockingIOError"),
        ("bytearray(2 << 30)", "MemoryError"),
        ("__import__('numpy')", "ModuleNotFoundError"),
    ],
)
def test_limits_hold(jail: Jail, work: str, error: str) -> None:
    process = started(jail)
    if ask(process, "__import__('resource').getrlimit(7)") != "(3, 3)":
        pytest.skip("the system has other limits")
    if error == "BlockingIOError" and ask(process, "os.getuid()") == "0":
        pytest.skip("root may start processes")
    assert ask(process, work) == error


@pytest.mark.parametrize(
    ("work", "cause"),
    [
        ("os.kill(os.getpid(), 27)", "it needs more than 0.5 s of computing time"),
        ("os.abort()", "it needs more than 1024 MiB of memory"),
        ("os.kill(os.getpid(), 11)", "it crashed the process that does sums"),
    ],
)
def test_an_end_that_the_work_caused_is_told(jail: Jail, work: str, cause: str) -> None:
    process = started(jail)
    assert ask(process, work) == cause
    assert not process.usable()


@pytest.mark.parametrize("work", ["os._exit(3)", "'x' * 300", "time.sleep(60)"])
def test_any_other_end_is_a_failure_of_the_jails_kind(jail: Jail, work: str) -> None:
    process = started(jail)
    with pytest.raises(JailTestError, match="the process that does sums ended"):
        ask(process, work, wall=0.5 if "sleep" in work else 30)
    assert not process.usable()


def test_a_last_word_is_told(jail: Jail) -> None:
    process = started(replace(jail, answers=frozenset({"said", "stopped"})))
    said = ask(process, """print('{"stopped": "open"}', flush=True)""")
    assert said == "it tried what no sum may do (open)" and not process.usable()


def test_a_process_that_cannot_start_is_a_failure(
    jail: Jail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    with pytest.raises(JailTestError, match="the process that does sums cannot start"):
        started(jail)
