"""The process that renders one chat template, as its owner sees it.

What runs inside is :mod:`template_worker`. It is started at the first rendering, and again after
it ended.
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halfbyte.errors import RequestError, TemplateProcessError

MAX_OUTPUT_CHARS = 4 << 20
MAX_INPUT_BYTES = 32 << 20
CPU_SECONDS = 0.4
MEMORY_BYTES = 320 << 20
# Waiting time is longer than computing time only on a machine that is busy with other things.
# Where the system cannot limit computing time, waiting time has to do.
_HAS_TIMER = hasattr(signal, "setitimer")
WALL_SECONDS = 30.0 if _HAS_TIMER else 2.0
START_SECONDS = 30.0
# A character of JSON text takes at most two escapes of six bytes.
_ANSWERS = {"ready", "text", "raised", "failed", "exceeded", "stopped"}
_MAX_ANSWER_BYTES = 12 * MAX_OUTPUT_CHARS + 4096


def compile_seconds(characters: int) -> float:
    """Computing time that compiling may take.

    The templates of real models take 4 to 7 microseconds a character on a server.
    """
    return min(CPU_SECONDS + 50e-6 * characters, 3.0)


class TemplateProcess:
    """Renders one template. Safe to use from several threads, which take turns.

    Args:
        source: the template's Jinja source.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._defect: dict[str, str] | None = None

    def render(self, context: Mapping[str, Any]) -> dict[str, str]:
        """Render once.

        Args:
            context: the template's variables, plain data.

        Returns:
            ``{"text": ...}``, ``{"raised": message}`` when the template refused the context,
            ``{"failed": message}`` when it fails, or ``{"exceeded": message}`` when it goes past
            a limit. A template that does not compile is not tried again.

        Raises:
            RequestError: the context is too large.
            TemplateProcessError: the process cannot start, or ended for a reason that is not the
                template's.
        """
        request = json.dumps(context).encode() + b"\n"
        if len(request) > MAX_INPUT_BYTES:
            raise RequestError(
                f"the conversation has {len(request)} bytes; at most {MAX_INPUT_BYTES} are allowed",
                param="messages",
            )
        with self._lock:
            usable = self._running is not None and self._running.usable()
            if self._defect is None and not usable:
                self._running = self._start()
            if self._running is None:
                return self._defect or {}
            return self._running.ask(request, CPU_SECONDS, WALL_SECONDS)

    def _start(self) -> _Running | None:
        """A process that has compiled the template; None when it cannot be compiled."""
        seconds = compile_seconds(len(self._source))
        set_up = {
            "template": self._source,
            "compile_seconds": seconds,
            "render_seconds": CPU_SECONDS,
            "memory_bytes": MEMORY_BYTES,
            "output_chars": MAX_OUTPUT_CHARS,
        }
        running = _Running()
        answer = running.ask(json.dumps(set_up).encode() + b"\n", seconds, START_SECONDS)
        if "ready" in answer:
            return running
        self._defect = answer
        return None


class _Running:
    """One life of the process. Not thread-safe."""

    def __init__(self) -> None:
        # Isolated (-I) and without site (-S): nothing from the working folder or the user's
        # settings is imported. The environment may hold secrets, and only dates depend on it.
        script = Path(__file__).with_name("template_worker.py")
        command = [sys.executable or "python3", "-I", "-S", str(script)]
        kept = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TZ")
        try:
            self._process = subprocess.Popen(
                command + [_folder(name) for name in ("markupsafe", "jinja2")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in kept if name in os.environ},
            )
        except OSError as error:
            raise TemplateProcessError(
                f"the process that renders chat templates cannot start: {error.strerror}"
            ) from error
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _stop, self._process, self._owner)

    def usable(self) -> bool:
        """Whether the process lives and belongs to this process, not to one it was forked from."""
        return self._owner == os.getpid() and self._finalizer.alive and self._process.poll() is None

    def ask(self, request: bytes, cpu_seconds: float, wall_seconds: float) -> dict[str, str]:
        """Send one line and return the answer.

        Args:
            request: the line.
            cpu_seconds: what the process may use, as it was told; for the text of an error.
            wall_seconds: when it has not answered then, it is ended.

        Raises:
            TemplateProcessError: the process ended, and the template is not the cause.
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
            line = stdout.readline(_MAX_ANSWER_BYTES)
        except OSError:
            line = b""
        finally:
            timer.cancel()
        answer = _parsed(line)
        if answer is None or "stopped" in answer:
            # Either it ends by itself now, or it says what it must not: it is not used again.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=1)
            code = self._process.poll()
            self._finalizer()
            if answer is not None:
                event = answer["stopped"]
                return {"exceeded": f"it tried what no chat template may do ({event:.40})"}
            if late.is_set() and not _HAS_TIMER:
                return {"exceeded": f"it needs more than {wall_seconds} s"}
            answer = {"exceeded": _cause(code, cpu_seconds)}
        return answer


def _folder(package: str) -> str:
    """Where a package lies, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise TemplateProcessError(
            f"the Python package {package} is missing; chat templates need it",
            hint="pip install jinja2",
        )
    return spec.submodule_search_locations[0]


def _parsed(line: bytes) -> dict[str, str] | None:
    """The answer, or None when it is none. A broken process may say anything."""
    try:
        answer = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or not answer.keys() & _ANSWERS:
        return None
    return answer if all(isinstance(value, str) for value in answer.values()) else None


def _cause(code: int | None, cpu_seconds: float) -> str:
    """Why a process ended that its template ended.

    Raises TemplateProcessError when something else did.
    """
    causes = {
        "SIGPROF": f"it needs more than {cpu_seconds:.1f} s of computing time",
        "SIGABRT": f"it needs more than {MEMORY_BYTES >> 20} MiB of memory",
        "SIGSEGV": "it crashed the template engine",
    }
    for name, cause in causes.items():
        if code == -getattr(signal, name, 0):
            return cause
    raise TemplateProcessError(
        f"the process that renders chat templates ended (code {code}) while it was at work",
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
