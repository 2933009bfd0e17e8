"""The process that tries grammars before they are compiled here, as its owner sees it."""

from __future__ import annotations

import importlib
import json
import threading
from pathlib import Path
from typing import Any

from halfbyte.errors import GrammarProcessError, RequestError

from ..jail.process import START_SECONDS, WALL_SECONDS, Jail, JailedProcess
from .vocabulary import GrammarVocabulary

COMPILE_SECONDS = 5.0
"""Computing time that a grammar may take to compile."""
_MEMORY_BYTES = 128 << 20  # of a compiled grammar
STEP_SECONDS = 0.25
"""Computing time that finding out what may follow may take; meanwhile nobody else is served."""
LIMITS: dict[str, Any] = {"max_lexer_states": 20_000, "verbose_errors": False}
"""Limits of llguidance's that differ from its own; a state takes about 2 KiB."""

_JAIL = Jail(
    worker=Path(__file__).with_name("grammar_worker.py"),
    does="checks grammars",
    works_on="grammar",
    answers=frozenset({"ready", "good", "failed"}),
    max_answer_bytes=1 << 20,
    memory_bytes=_MEMORY_BYTES,
    failure=GrammarProcessError,
)


class GrammarChecker:
    """Tries grammars under limits. Safe to use from several threads, which take turns.

    Args:
        vocabulary: the model's.
        seconds: computing time for each.
    """

    def __init__(self, vocabulary: GrammarVocabulary, seconds: float = COMPILE_SECONDS) -> None:
        self._vocabulary = vocabulary
        self._seconds = seconds
        self._lock = threading.Lock()
        self._running: JailedProcess | None = None

    def failure(self, grammar: str) -> str:
        """What is wrong with a grammar; "" when it compiles and its first steps are computed.

        Args:
            grammar: in llguidance's format.

        Raises:
            GrammarProcessError: the process cannot start, or ended for a reason that is not the
                grammar's.
        """
        request = json.dumps({"grammar": grammar}).encode() + b"\n"
        with self._lock:
            if self._running is None or not self._running.usable():
                self._running = self._start()
            answer = self._running.ask(request, self._seconds, WALL_SECONDS)
        return answer.get("failed") or answer.get("exceeded") or ""

    def _start(self) -> JailedProcess:
        words = self._vocabulary
        set_up = {
            "tokens": [text.decode("latin-1") for text in words.tokens],
            "special": words.special_token_ids,
            "ends": words.end_tokens,
            "limits": LIMITS,
            "seconds": self._seconds,
            "step_seconds": STEP_SECONDS,
            "memory_bytes": _MEMORY_BYTES,
        }
        library = importlib.import_module("llguidance._lib")
        running = JailedProcess(_JAIL, [str(library.__file__)])
        answer = running.ask(json.dumps(set_up).encode() + b"\n", START_SECONDS, START_SECONDS)
        if "ready" not in answer:
            raise GrammarProcessError(
                f"the process that checks grammars cannot start: {answer.get('exceeded')}"
            )
        return running


def llguidance() -> Any:
    """The library, an extra.

    Raises:
        RequestError: it is not installed.
    """
    try:
        return importlib.import_module("llguidance")
    except ImportError as error:
        raise RequestError(
            "structured output needs the Python package llguidance, which is not installed",
            param="grammar",
            code="grammar_unavailable",
            hint="pip install 'halfbyte[grammar]'",
        ) from error
