"""Forms of the C kernels, their compilation, and the cache in which libraries are found again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cpu_support import library, needs_compiler

import halfbyte.kernels.cpu.build as build
import halfbyte.kernels.cpu.forms as forms
from halfbyte.kernels.cpu.build import BuildError, find_compiler, open_library
from halfbyte.kernels.cpu.forms import available_forms, chosen_forms
from halfbyte.kernels.cpu.library import Library
from halfbyte.kernels.cpu.ops import RECORDS, Argmax

FORM = available_forms()[-1]


# --- compilers -----------------------------------------------------------------------------


@pytest.fixture
def said() -> list[str]:
    return []


def fake_compiler(folder: Path, script: str) -> Path:
    path = folder / "cc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


COPYING = """[ "$1" = --version ] && {{ echo copying; exit; }}
case "$*" in *-mnew*) echo bad flag >&2; exit 1;; esac
echo $$ >> {log}
sleep {seconds}
while [ $# -gt 1 ]; do [ "$1" = -o ] && {{ cp {library} "$2"; exit; }}; shift; done
"""


def copying_compiler(folder: Path, seconds: float = 0) -> Path:
    """Takes so long, hands over the library that is compiled already, and keeps a log."""
    made = library()._lib._name
    return fake_compiler(folder, COPYING.format(library=made, log=folder / "log", seconds=seconds))


def works(made: Library) -> bool:
    x, out = torch.arange(12.0).view(3, 4), torch.zeros(3, dtype=torch.int64)
    op = Argmax(logits=x, out=out, tokens=3, width=4, stride=4)
    made.run(RECORDS.pack(op)[0], 1)
    return out.tolist() == [3, 3, 3]


def test_every_c_file_is_named() -> None:
    """One that is not has no part in the library's name: a change of it would not be compiled."""
    folder = Path(build.__file__).parent
    files = {path.name for path in folder.iterdir() if path.suffix in (".c", ".h")}
    assert files == {*build.SOURCES, *build.C_HEADERS}


def test_what_cc_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cc = fake_compiler(tmp_path, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "")
    assert find_compiler() == (str(cc),)
    monkeypatch.setenv("CC", f"'{cc}' -m64 -DX='a b'")
    assert find_compiler() == (str(cc), "-m64", "-DX=a b")
    for wrong, says in (("icc -fast", "no program 'icc'"), ("cc '", "no command")):
        monkeypatch.setenv("CC", wrong)
        with pytest.raises(BuildError, match=says):
            find_compiler()
    monkeypatch.delenv("CC")
    cc.unlink()
    assert find_compiler() is None


def test_no_compiler_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(BuildError, match="no C compiler found"):
        open_library(tmp_path / "cache", [FORM], 1)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ('[ "$1" = --version ] && exit 0\necho no such flag >&2; exit 3', "code 3: no such flag"),
        ("exit 1", "does not tell its version"),
        ("exit 0", "made no library"),
        ("kill -9 $$", "SIGKILL"),
        ('[ "$1" = --version ] || kill -9 $$', "code -9"),
    ],
)
def test_a_broken_compiler_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, says: str
) -> None:
    monkeypatch.setenv("CC", str(fake_compiler(tmp_path, script)))
    cache = tmp_path / "cache"
    with pytest.raises(BuildError, match=says):
        open_library(cache, [FORM], 1)
    assert [p.name for p in cache.glob("*")] in ([], [build.LOCK])


@needs_compiler
def test_a_form_that_the_compiler_does_not_know(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An old compiler, or one that refuses a flag: the next form is taken."""
    monkeypatch.setenv("CC", str(copying_compiler(tmp_path)))
    made = open_library(tmp_path / "cache", [forms.Form("better", frozenset(), ("new",)), FORM], 1)
    assert made.form == FORM.name and works(made)


# --- the cache -----------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A cache with the library of the best form that is compiled already."""
    folder = tmp_path / "cache"
    folder.mkdir()
    shutil.copy2(library()._lib._name, folder)
    yield folder


def only(cache: Path) -> Path:
    (path,) = cache.glob("*.so")
    return path


def best() -> list[forms.Form]:
    return chosen_forms()[:1]


@needs_compiler
def test_the_library_is_compiled_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: list[str]
) -> None:
    # Sooner done than with the real flags.
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))
    cache = tmp_path / "cache"
    assert works(open_library(cache, [FORM], 2, said.append))
    assert len(said) == 1 and said[0].startswith("compiling kernels, once")
    first = only(cache)
    assert first.stat().st_mode & 0o055 == 0o055, "other users of the cache can load it"
    stamp = first.stat().st_mtime_ns
    made = open_library(cache, [FORM], 2, said.append)
    assert made.form == FORM.name and len(said) == 1
    assert only(cache).stat().st_mtime_ns == stamp
    assert {p.name for p in cache.iterdir()} == {first.name, build.LOCK}, "nothing half-done"


@needs_compiler
def test_a_library_serves_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, cache: Path, said: list[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    assert works(open_library(cache, best(), 1, said.append)) and said == []
    # And with a folder that cannot be written.
    cache.chmod(0o555)
    assert works(open_library(cache, best(), 1, said.append)) and said == []
    cache.chmod(0o755)
    # Not one for more than this processor has, nor one of other sources.
    more = forms.Form("amx", frozenset(), ("never_seen",))
    for name in (
        only(cache).name.replace(best()[0].name, "amx"),
        only(cache).name.replace(build.library_key(best()[0]), "0" * 16),
    ):
        only(cache).rename(cache / name)
        with pytest.raises(BuildError, match="no C compiler"):
            open_library(cache, best(), 1)
    with pytest.raises(BuildError, match="no C compiler"):
        open_library(cache, [more], 1)


@needs_compiler
def test_another_compiler_is_obeyed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    monkeypatch.setenv(
        "CC", str(fake_compiler(tmp_path, '[ "$1" = --version ] && echo 9 || exit 7'))
    )
    with pytest.raises(BuildError, match="code 7"):
        open_library(cache, best(), 1)


@needs_compiler
@pytest.mark.parametrize("damage", ["empty", "cut", "one bit"])
def test_a_damaged_library_is_never_loaded(
    monkeypatch: pytest.MonkeyPatch, cache: Path, damage: str
) -> None:
    """Even one that the loader would take: mapped past its end it kills the process."""
    path = only(cache)
    whole = path.read_bytes()
    cut = {"empty": b"", "cut": whole[: len(whole) // 2]}
    path.write_bytes(cut.get(damage) or whole[:-1] + bytes([whole[-1] ^ 1]))
    good = cache.parent / "good"
    good.write_bytes(whole)

    def compile_again(folder: Path, form: forms.Form, compiler: build.Compiler) -> Path:
        return good.replace(folder / path.name)

    monkeypatch.setattr(build, "build_library", compile_again)
    assert works(open_library(cache, best(), 1))
    assert only(cache).read_bytes() == whole


@needs_compiler
def test_a_library_that_others_could_have_written_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    path, me = only(cache), os.getuid()
    path.chmod(0o757)
    with pytest.raises(BuildError, match="no C compiler"):
        open_library(cache, best(), 1)
    path.chmod(0o755)
    assert works(open_library(cache, best(), 1))
    # Another user's file: in a folder of his it is welcome, in one for everybody it is not.
    monkeypatch.setattr(build.os, "getuid", lambda: me + 1)
    found = Path.stat

    def of_a_third(self: Path, **options: bool) -> os.stat_result:
        values = list(found(self, **options))
        values[stat.ST_UID] = me + 2
        return os.stat_result(values)

    monkeypatch.setattr(Path, "stat", of_a_third)
    assert works(open_library(cache, best(), 1))
    cache.chmod(0o777)
    with pytest.raises(BuildError, match="no C compiler"):
        open_library(cache, best(), 1)


@needs_compiler
def test_a_cache_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: list[str]
) -> None:
    """A private folder serves: nobody else could have put anything there, and nothing stays."""
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("CC", str(copying_compiler(tmp_path)))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    modes = []
    real = build.build_library

    def spy(folder: Path, form: forms.Form, compiler: build.Compiler) -> Path:
        modes.append(stat.S_IMODE(folder.stat().st_mode))
        return real(folder, form, compiler)

    monkeypatch.setattr(build, "build_library", spy)
    made = open_library(tmp_path / "file" / "cache", [FORM], 2, said.append)
    assert works(made) and modes == [0o700]
    assert list((tmp_path / "tmp").iterdir()) == []
    assert len(said) == 1 and "cannot be used (Not a directory)" in said[0]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(OSError):
        tempfile.mkdtemp()
    with pytest.raises(BuildError, match=r"neither .*cache .*nor a temporary folder"):
        open_library(tmp_path / "file" / "cache", [FORM], 2)


# --- several processes ---------------------------------------------------------------------

PROGRAM = """
import sys
from pathlib import Path
from halfbyte.kernels.cpu.build import open_library
from halfbyte.kernels.cpu.forms import chosen_forms
open_library(Path(sys.argv[1]), chosen_forms()[:1], 1, lambda text: print(text, flush=True))
"""


@pytest.fixture
def start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[float], subprocess.Popen[str]]]:
    """Starts a process that opens a library with a compiler that takes so many seconds."""
    running: list[subprocess.Popen[str]] = []
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def begin(seconds: float) -> subprocess.Popen[str]:
        monkeypatch.setenv("CC", str(copying_compiler(tmp_path, seconds)))
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "cache")]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def compiled(tmp_path: Path) -> list[int]:
    """Process numbers of the compilers that were started."""
    with contextlib.suppress(FileNotFoundError):
        return [int(line) for line in (tmp_path / "log").read_text().split()]
    return []


def alive(group: int) -> bool:
    """Whether any process of the group still runs; one that nobody waited for does not."""
    done = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    return any(int(found) == group and not state.startswith("Z") for found, state in lines)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


@needs_compiler
def test_processes_at_once_compile_once(
    start: Callable[[float], subprocess.Popen[str]], tmp_path: Path
) -> None:
    outputs = [p.communicate() for p in [start(0.5) for _ in range(3)]]
    assert [err for _, err in outputs] == ["", "", ""]
    assert len(compiled(tmp_path)) == len(build.SOURCES) + 1, "and one link"
    said = "".join(out for out, _ in outputs)
    assert said.count("compiling kernels, once") == 1


@needs_compiler
def test_the_lock_of_a_killed_process_is_free(
    start: Callable[[float], subprocess.Popen[str]], tmp_path: Path
) -> None:
    first = start(30)
    wait_for(lambda: len(compiled(tmp_path)) == len(build.SOURCES))
    first.kill()
    # Its compilers go on for a while and must not matter.
    second = start(0)
    out, err = second.communicate(timeout=60)
    assert (second.returncode, err) == (0, "") and out.startswith("compiling kernels, once")
    (left,) = (tmp_path / "cache").glob(".build-*")
    for number in compiled(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(number, signal.SIGKILL)
    os.utime(left, (0, 0))
    only(tmp_path / "cache").unlink()
    assert start(0).wait(60) == 0
    assert not left.exists(), "what it left is removed in time"


@needs_compiler
def test_an_interrupt_while_compiling_leaves_nothing(
    start: Callable[[float], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start(30)
    wait_for(lambda: len(compiled(tmp_path)) == len(build.SOURCES))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and "KeyboardInterrupt" in err
    assert {p.name for p in (tmp_path / "cache").iterdir()} == {build.LOCK}
    assert {p.name for p in tmp_path.iterdir()} == {"cache", "cc", "log"}
    wait_for(lambda: not any(map(alive, compiled(tmp_path))))
