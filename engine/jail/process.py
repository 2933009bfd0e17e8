"""A process with limits that works for this one, as its owner sees it.

What runs inside is :mod:`inside` and then a worker. It speaks JSON, an object a line: each request
is answered with one whose keys and values are text.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from halfbyte.errors import HalfbyteError

# Waiting time is longer than computing time only on a machine that is busy with other things.
# Where the system cannot limit computing time, waiting time has to do.
_HAS_TIMER = hasattr(signal, "setitimer")
WALL_SECONDS = 30.0 if _HAS_TIMER else 2.0
START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Jail:
    """A kind of jailed process.

    Attributes:
        worker: the file of the worker.
        does: what the process does, for errors: "renders chat templates".
        works_on: what strangers wrote: "chat template".
        answers: what an answer may consist of; "stopped" is the last word of a process that a
            hook of its own ended.
        max_answer_bytes: the longest answer.
        memory_bytes: what the process allows itself; for the text of an error.
        failure: the error when the process cannot start, or ends for a reason that is not what
            it worked on.
    """

    worker: Path
    does: str
    works_on: str
    answers: frozenset[str]
    max_answer_bytes: int
    memory_bytes: int
    failure: type[HalfbyteError]


def package_folder(jail: Jail, package: str, needs: str, install: str) -> str:
    """Where a package that a worker imports lies, without importing it.

    Args:
        jail: the worker's.
        package: its name.
        needs: a clause that says what needs it, for the error.
        install: what to install, for the error's hint.

    Raises:
        HalfbyteError: it is not installed; of the jail's kind.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise jail.failure(
            f"the Python package {package} is missing; {needs}", hint=f"pip install {install}"
        )
    return spec.submodule_search_locations[0]


class JailedProcess:
    """One life of a jailed process. Not thread-safe.

    Args:
        jail: what kind it is.
        arguments: those of the worker.

    Raises:
        HalfbyteError: it cannot start; of the jail's kind.
    """

    def __init__(self, jail: Jail, arguments: Sequence[str]) -> None:
        self._jail = jail
        # Isolated (-I) and without site (-S): nothing from the working folder or the user's
        # settings is imported. The environment may hold secrets, and only dates depend on it.
        inside = Path(__file__).with_name("inside.py")
        command = [sys.executable or "python3", "-I", "-S", str(inside), str(jail.worker)]
        kept = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TZ")
        try:
            self._process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in kept if name in os.environ},
            )
        except OSError as error:
            raise jail.failure(
                f"the process that {jail.does} cannot start: {error.strerror}"
            ) from error
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _stop, self._process, self._owner)

    def usable(self) -> bool:
        """Whether the process lives and belongs to this process, not to one it was forked from."""
        return self._owner == os.getpid() and self._finalizer.alive and self._process.poll() is None

    def ask(self, request: bytes, cpu_seconds: float, wall_seconds: float) -> dict[str, str]:
        """Send one line and return the answer; ``{"exceeded": cause}`` when there was none.

        Args:
            request: the line.
            cpu_seconds: what the process may use, as it was told; for the text of an error.
            wall_seconds: when it has not answered then, it is ended.

        Raises:
            HalfbyteError: the process ended, and what it worked on is not the cause; of the
                jail's kind.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        process, late = self._process, threading.Event()

        def end() -> None:  # without self, which would live until the timer's thread ends
            late.set()
            process.kill()

        timer = threading.Timer(wall_seconds, end)
        timer.daemon = True
        timer.start()
        try:
            stdin.write(request)
            stdin.flush()
            line = stdout.readline(self._jail.max_answer_bytes)
        except OSError:
            line = b""
        finally:
            timer.cancel()
        answer = self._parsed(line)
        if answer is None or "stopped" in answer:
            # Either it ends by itself now, or it says what it must not: it is not used again.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=1)
            code = self._process.poll()
            self._finalizer()
            if answer is not None:
                event = answer["stopped"]
                return {"exceeded": f"it tried what no {self._jail.works_on} may do ({event:.40})"}
            if late.is_set() and not _HAS_TIMER:
                return {"exceeded": f"it needs more than {wall_seconds} s"}
            answer = {"exceeded": self._cause(code, cpu_seconds)}
        return answer

    def _parsed(self, line: bytes) -> dict[str, str] | None:
        """The answer, or None when it is none. A broken process may say anything."""
        try:
            answer = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            return None
        if not isinstance(answer, dict) or not answer.keys() & self._jail.answers:
            return None
        return answer if all(isinstance(value, str) for value in answer.values()) else None

    def _cause(self, code: int | None, cpu_seconds: float) -> str:
        """Why a process ended when what it worked on ended it; raises when something else did."""
        jail = self._jail
        causes = {
            "SIGPROF": f"it needs more than {cpu_seconds:.1f} s of computing time",
            "SIGABRT": f"it needs more than {jail.memory_bytes >> 20} MiB of memory",
            "SIGSEGV": f"it crashed the process that {jail.does}",
        }
        for name, cause in causes.items():
            if code == -getattr(signal, name, 0):
                return cause
        raise jail.failure(
            f"the process that {jail.does} ended (code {code}) while it was at work",
            hint="try again: the next request starts it anew",
        )


def _stop(process: subprocess.Popen[bytes], owner: int) -> None:
    """End the process and collect it; a forked copy of its owner only closes the pipes."""
    if os.getpid() == owner:
        process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    if os.getpid() == owner:
        process.wait()
