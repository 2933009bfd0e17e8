"""The process that renders one chat template, as its owner sees it.

What runs inside is :mod:`template_worker`. It is started at the first rendering, and again after
it ended.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halfbyte.errors import RequestError, TemplateProcessError

from ..jail.process import START_SECONDS, WALL_SECONDS, Jail, JailedProcess, package_folder

MAX_OUTPUT_CHARS = 4 << 20
MAX_INPUT_BYTES = 32 << 20
CPU_SECONDS = 0.4
MEMORY_BYTES = 320 << 20
_JAIL = Jail(
    worker=Path(__file__).with_name("template_worker.py"),
    does="renders chat templates",
    works_on="chat template",
    answers=frozenset({"ready", "text", "raised", "failed", "exceeded", "stopped"}),
    # A character of JSON text takes at most two escapes of six bytes.
    max_answer_bytes=12 * MAX_OUTPUT_CHARS + 4096,
    memory_bytes=MEMORY_BYTES,
    failure=TemplateProcessError,
)


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
        self._running: JailedProcess | None = None
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

    def _start(self) -> JailedProcess | None:
        """A process that has compiled the template; None when it cannot be compiled."""
        seconds = compile_seconds(len(self._source))
        set_up = {
            "template": self._source,
            "compile_seconds": seconds,
            "render_seconds": CPU_SECONDS,
            "memory_bytes": MEMORY_BYTES,
            "output_chars": MAX_OUTPUT_CHARS,
        }
        running = JailedProcess(_JAIL, [_folder(name) for name in ("markupsafe", "jinja2")])
        answer = running.ask(json.dumps(set_up).encode() + b"\n", seconds, START_SECONDS)
        if "ready" in answer:
            return running
        self._defect = answer
        return None


def _folder(package: str) -> str:
    return package_folder(_JAIL, package, "chat templates need it", "jinja2")
