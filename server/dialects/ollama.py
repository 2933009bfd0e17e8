"""POST /api/chat and /api/generate: ollama's lines and body."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from ...engine.request import Completion, Delta, FinishReason, Timings
from ..error_forms import ollama_error
from ..errors import ApiError
from ..responses import FreeResponse, UsageInfo
from .base import ResponseWriter


class OllamaAnswer(FreeResponse):
    """Response of POST /api/chat and /api/generate, and the last line of their streams."""


class OllamaWriter(ResponseWriter):
    """One answer, a JSON object a line.

    Args:
        model: as the client calls it.
        shown: a text -> the fields that show it.
        started: `time.perf_counter` when the request came.
    """

    headers: Mapping[str, str] = {
        "Content-Type": "application/x-ndjson",
        "Cache-Control": "no-cache",
        "X-Accel-Buffering": "no",
    }

    def __init__(self, model: str, shown: Callable[[str], dict[str, Any]], started: float) -> None:
        self._model = model
        self._shown = shown
        self._started = started
        self._reason = ""
        self._timings = Timings()

    def opening(self, prompts: int) -> bytes:
        """A stream begins with its first text."""
        return b""

    def delta(self, prompt: int, delta: Delta) -> bytes:
        """A piece of the text; how it ended is told at the close."""
        if delta.finish is not None:
            self._reason = delta.finish.value
        if delta.completion is not None:
            self._timings = delta.completion.timings
        return self._line(self._piece(delta.text)) if delta.text else b""

    def idle(self) -> bytes:
        """A piece without text: a line of this kind is all that clients read."""
        return self._line(self._piece(""))

    def closing(self, usage: UsageInfo) -> bytes:
        """The last line: how it ended, counts and times."""
        return self._line(self._last("", usage))

    def failure(self, error: ApiError) -> bytes:
        """A line with the error."""
        return self._line(ollama_error(error))

    def body(self, done: Sequence[Completion], usage: UsageInfo) -> OllamaAnswer:
        """The last line, with the whole text."""
        (answer,) = done
        self._reason, self._timings = answer.finish_reason.value, answer.timings
        return OllamaAnswer(fields=self._last(answer.text, usage))

    def empty(self) -> OllamaAnswer:
        """The answer to a request that only wants the model to be loaded."""
        return OllamaAnswer(fields={**self._piece(""), "done": True, "done_reason": "load"})

    def _piece(self, text: str) -> dict[str, Any]:
        return {
            "model": self._model,
            "created_at": timestamp(time.time()),
            **self._shown(text),
            "done": False,
        }

    def _last(self, text: str, usage: UsageInfo) -> dict[str, Any]:
        times = self._timings
        return {
            **self._piece(text),
            "done": True,
            "done_reason": self._reason or FinishReason.STOP.value,
            "total_duration": nanoseconds(time.perf_counter() - self._started),
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": nanoseconds(times.ttft_s - times.queue_s),
            "eval_count": usage.completion_tokens,
            "eval_duration": nanoseconds(times.total_s - times.ttft_s),
        }

    def _line(self, fields: Mapping[str, Any]) -> bytes:
        return orjson.dumps(fields) + b"\n"


def nanoseconds(seconds: float) -> int:
    """A duration as ollama writes it; none is negative."""
    return max(0, round(seconds * 1e9))


def timestamp(seconds: float) -> str:
    """A Unix time as RFC 3339 has it, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
