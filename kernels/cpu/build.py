"""Compile the C kernels, once, into a cache folder, and find them there again.

A library's name is ``halfbyte-cpu-FORM-KEY-COMPILER-CONTENT.so``. KEY is a hash of sources, flags,
operating system and C library; CONTENT one of the file itself, so that a damaged file is never
loaded. COMPILER is a hash of the compiler's version: another compiler builds anew, but where
there is none whatever has the right form and key serves. Nothing in it names a processor: the
form says what a processor must have (see :mod:`.forms`), so machines may share the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import ops
from .forms import Form
from .library import Library

log = logging.getLogger(__name__)

# The one that takes longest first: all are compiled side by side.
SOURCES = (
    "linear.c",
    "integer.c",
    "attention.c",
    "unpack.c",
    "gemm.c",
    "pack.c",
    "words.c",
    "blocks.c",
    "fit.c",
    "uniform.c",
    "columns.c",
    "moments.c",
    "elementwise.c",
    "recurrence.c",
    "draw.c",
    "inputs.c",
    "pool.c",
)
C_HEADERS = (
    "halfbyte.h",
    "amx.h",
    "weight.h",
    "floats.h",
    "fit.h",
    "dot.h",
    "product.h",
    "rounded.h",
    "tile.h",
    "rows.h",
    "attention_type.h",
)  # and ops.h, which is made for each build
FLAGS = (
    "-O3",
    # Multiply-adds are fused where the source says so (vf_fma in halfbyte.h), nowhere else.
    "-ffp-contract=off",
    "-fno-math-errno",
    # gcc would compute all products of a block before it adds the first: more than registers hold.
    "-fno-tree-ter",
    "-Wno-psabi",
    "-std=gnu11",
    "-fPIC",
)
LINK = ("-shared", "-lpthread", "-lm")
PREFIX = "halfbyte-cpu-"
LOCK = "build.lock"
COMPILE_S = 600.0
_STALE_S = 3600.0
_POLL_S = 0.05

Notice = Callable[[str], None]


class BuildError(Exception):
    """The kernels cannot be built here; the text says why."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler.

    Attributes:
        command: the program and the arguments that CC gives it.
        version: what it calls itself.
    """

    command: tuple[str, ...]
    version: str


def find_compiler() -> tuple[str, ...] | None:
    """``$CC`` with its arguments, or cc, gcc or clang, whichever is on the path first.

    None without any. Raises BuildError when CC names a program that is not there.
    """
    text = os.environ.get("CC", "")
    try:
        wanted = shlex.split(text)
    except ValueError as error:
        raise BuildError(f"CC is {text!r}, which is no command: {error}") from error
    if wanted:
        path = shutil.which(wanted[0])
        if path is None:
            raise BuildError(f"CC is {text!r}, but there is no program {wanted[0]!r}")
        return (path, *wanted[1:])
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return (path,)
    return None


def open_library(
    cache: Path, forms: Sequence[Form], threads: int, notice: Notice = log.info
) -> Library:
    """The kernels in the first of ``forms`` that can be had, with a pool of ``threads``.

    Args:
        cache: folder to look in and to compile into. When it cannot be written, or no library can
            be loaded from it, a private temporary folder is used and removed at once.
        forms: what this processor has, best first.
        threads: threads of the pool.
        notice: told, in one line, before anything that takes seconds.

    Raises:
        BuildError: no compiler and nothing compiled before, or the compiler failed.
        ConfigError: the threads cannot be started.
    """
    problem: BuildError | None = None
    for form in forms:
        try:
            return _open(cache, form, threads, notice)
        except BuildError as error:
            # A compiler that is too old for the best form may know the next one.
            problem = problem or error
    raise problem or BuildError("no form of the kernels was asked for")


def _open(cache: Path, form: Form, threads: int, notice: Notice) -> Library:
    compiler = missing = None
    try:
        compiler = _compiler()
    except BuildError as error:
        missing = error
    found = _load(cache, form, compiler, threads)
    if found is not None:
        return found
    if compiler is None:
        raise missing or BuildError("no C compiler found (cc, gcc or clang)")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache, notice):
            # Another process may have compiled it in the meantime.
            found = _load(cache, form, compiler, threads)
            if found is None:
                _sweep(cache)
                notice(f"compiling kernels, once (form {form.name}, {compiler.command[0]})")
                build_library(cache, form, compiler)
                found = _load(cache, form, compiler, threads)
        if found is not None:
            return found
        why = "what lies there cannot be loaded"
    except OSError as error:
        why = error.strerror or str(error)
    return _open_private(cache, why, form, compiler, threads, notice)


def _open_private(
    cache: Path, why: str, form: Form, compiler: Compiler, threads: int, notice: Notice
) -> Library:
    """Compile into a folder that only this user can open, and that goes once it is loaded."""
    notice(f"compiling kernels for this process alone: {cache} cannot be used ({why})")
    try:
        with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
            return Library(build_library(Path(folder), form, compiler), threads, form.name)
    except OSError as error:
        raise BuildError(f"neither {cache} ({why}) nor a temporary folder: {error}") from error


def _load(cache: Path, form: Form, compiler: Compiler | None, threads: int) -> Library | None:
    """A library of the cache that is whole and that this system can load, or None."""
    version = "*" if compiler is None else _hash(compiler)
    name = f"{PREFIX}{form.name}-{library_key(form)}-{version}-*.so"
    for path in sorted(cache.glob(name)):
        try:
            if not trusted(path):
                log.warning("%s is not loaded: other users could have written it", path)
                continue
            if path.stem.rpartition("-")[2] != _digest(path.read_bytes()):
                log.warning("%s is damaged and is compiled anew", path)
                path.unlink()
                continue
            return Library(path, threads, form.name)
        except OSError as error:
            log.warning("%s cannot be loaded: %s", path, error)
    return None


def trusted(path: Path) -> bool:
    """Whether only this user, the system's or the folder's owner can have written a file.

    A library runs as whoever loads it, and its name is no proof: anybody can compute one. Packed
    weights are read without looking at every code.
    """
    file, folder = path.stat(), path.parent.stat()
    owners = {os.getuid(), 0}
    if not folder.st_mode & stat.S_IWOTH:
        owners.add(folder.st_uid)  # who was trusted with the folder is trusted with its files
    return file.st_uid in owners and not file.st_mode & stat.S_IWOTH


def library_key(form: Form) -> str:
    """Hash of all that a library depends on but the compiler."""
    system = (platform.system(), platform.machine(), platform.libc_ver()[0])
    digest = hashlib.sha256(repr((form.name, form.flags, FLAGS, LINK, system)).encode())
    folder = Path(__file__).parent
    for name in (*SOURCES, *C_HEADERS):
        digest.update((folder / name).read_bytes())
    digest.update(ops.header().encode())
    return digest.hexdigest()[:16]


def build_library(folder: Path, form: Form, compiler: Compiler) -> Path:
    """Compile the kernels into ``folder``; the file is moved into place whole.

    Raises:
        BuildError: the compiler failed (the first lines of its output are in the text).
        OSError: the folder cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as raw:
        work = Path(raw)
        sources = Path(__file__).parent
        objects = [str(work / f"{name}.o") for name in SOURCES]
        (work / "ops.h").write_text(ops.header())
        command = (*compiler.command, *FLAGS, *form.flags, f"-I{work}")
        _run_all(
            [
                [*command, "-c", "-o", to, str(sources / name)]
                for name, to in zip(SOURCES, objects, strict=True)
            ],
            work,
        )
        made = work / "kernels.so"
        _run_all([[*command, "-o", str(made), *objects, *LINK]], work)
        try:
            content = _digest(made.read_bytes())
        except FileNotFoundError as error:
            raise BuildError(f"{compiler.command[0]} made no library") from error
        # Others may share the cache, and what is made in a temporary folder is private.
        made.chmod(0o755)
        name = f"{PREFIX}{form.name}-{library_key(form)}-{_hash(compiler)}-{content}.so"
        return made.replace(folder / name)


def _compiler() -> Compiler | None:
    command = find_compiler()
    if command is None:
        return None
    try:
        done = subprocess.run(
            [*command, "--version"], capture_output=True, errors="replace", timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{command[0]} does not tell its version: {error}") from error
    return Compiler(command, (done.stdout.splitlines() or [""])[0])


def _run_all(commands: Sequence[list[str]], work: Path) -> None:
    """Run programs side by side, all their files in ``work``.

    None of them outlives the call, whatever interrupts it. Raises BuildError when one fails.
    """
    environment = {**os.environ, "TMPDIR": str(work)}
    running: list[subprocess.Popen[bytes]] = []
    outputs = [work / f"{number}.txt" for number in range(len(commands))]
    deadline = time.monotonic() + COMPILE_S
    try:
        for command, output in zip(commands, outputs, strict=True):
            with output.open("wb") as file:
                # In a separate group: a compiler is several processes.
                running.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=file,
                        env=environment,
                        start_new_session=True,
                    )
                )
        for number, process in enumerate(running):
            code = process.wait(max(0.0, deadline - time.monotonic()))
            if code:
                text = outputs[number].read_text(errors="replace").strip()
                first = "\n".join(text.splitlines()[:5])
                raise BuildError(f"{commands[number][0]} failed with code {code}: {first}")
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{commands[0][0]} took more than {COMPILE_S:g} s") from error
    finally:
        for process in running:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextlib.contextmanager
def _lock(cache: Path, notice: Notice) -> Iterator[None]:
    """One process at a time; a dead one's lock is the system's to release.

    On file systems without locks, or when somebody holds it for longer than any compiler takes,
    the block runs all the same: two compilations do no harm. Raises OSError when the cache
    cannot be written.
    """
    import fcntl

    with (cache / LOCK).open("ab") as file:
        told, deadline = False, time.monotonic() + COMPILE_S
        held = False
        while not held and time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                if not told:
                    notice("another process is compiling the kernels; waiting for it")
                told = True
                time.sleep(_POLL_S)
            except OSError:
                break
        try:
            yield
        finally:
            if held:
                # Said outright: a child forked meanwhile has the open file, too.
                fcntl.flock(file, fcntl.LOCK_UN)


def _sweep(cache: Path) -> None:
    """Remove what processes left behind that were killed while they compiled."""
    for path in cache.glob(".build-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_S:
                shutil.rmtree(path)


def _hash(compiler: Compiler) -> str:
    return hashlib.sha256(repr((compiler.version, compiler.command[1:])).encode()).hexdigest()[:8]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
