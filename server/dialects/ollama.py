"""POST /api/chat and /api/generate: ollama's lines and body."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

from pydantic import BaseModel

from ...engine.request import Completion, Delta, FinishReason, Timings
from ..answers.pieces import (
    AnswerPiece,
    CallArguments,
    CallBegin,
    ContentPiece,
    ReasoningPiece,
    WholeAnswer,
    WholeCall,
)
from ..answers.plan import AnswerPlan
from ..answers.reader import AnswerReader
from ..error_forms import ollama_error
from ..errors import ApiError
from ..json_bytes import json_bytes
from ..responses import FreeResponse, UsageInfo
from .base import ResponseWriter

NDJSON = "application/x-ndjson"
"""Media type of a stream."""


class OllamaFields(BaseModel):
    """What is in an answer of POST /api/chat (``message``) and /api/generate (``response``)."""

    model: str
    created_at: str
    message: dict[str, Any] = {}
    response: str = ""
    thinking: str = ""
    done: bool
    done_reason: str
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0


class OllamaAnswer(FreeResponse):
    """Response of POST /api/chat and /api/generate, and the last line of their streams."""

    shape = OllamaFields


ShowAnswer: TypeAlias = Callable[[WholeAnswer], dict[str, Any]]
"""An answer, or a piece of one -> the fields that show it."""


class OllamaWriter(ResponseWriter):
    """One answer, a JSON object a line; a call is in one line, when it is whole.

    Args:
        model: as the client calls it.
        shown: an answer -> the fields that show it.
        started: `time.perf_counter` when the request came.
        plan: what is looked for in the answer.
    """

    headers: Mapping[str, str] = {
        "Content-Type": NDJSON,
        "Cache-Control": "no-cache",
        "X-Accel-Buffering": "no",
    }

    def __init__(self, model: str, shown: ShowAnswer, started: float, plan: AnswerPlan) -> None:
        self._model = model
        self._reader = AnswerReader(plan)
        self._call: WholeCall | None = None  # the one that is being read
        self._arguments: list[str] = []
        self._shown = shown
        self._started = started
        self._reason = ""
        self._timings = Timings()

    def opening(self, prompts: int) -> bytes:
        """A stream begins with its first text."""
        return b""

    def delta(self, prompt: int, delta: Delta) -> bytes:
        """Pieces of the answer; how it ended is told at the close."""
        if delta.finish is not None:
            self._reason = delta.finish.value
        if delta.completion is not None:
            self._timings = delta.completion.timings
        last = delta.finish is not None
        pieces = self._reader.pieces(delta.text, last=last)
        answers = [answer for piece in pieces for answer in self._taken(piece)]
        answers += self._called() if last else []
        return b"".join(self._line(self._piece(answer)) for answer in answers)

    def idle(self) -> bytes:
        """A piece without text: a line of this kind is all that clients read."""
        return self._line(self._piece(WholeAnswer()))

    def closing(self, usage: UsageInfo) -> bytes:
        """The last line: how it ended, counts and times."""
        return self._line(self._last(WholeAnswer(), usage))

    def failure(self, error: ApiError) -> bytes:
        """A line with the error."""
        return self._line(ollama_error(error))

    def body(self, done: Sequence[Completion], usage: UsageInfo) -> OllamaAnswer:
        """The last line, with the whole text."""
        (answer,) = done
        self._reason, self._timings = answer.finish_reason.value, answer.timings
        whole = WholeAnswer.of(self._reader.pieces(answer.text, last=True))
        return OllamaAnswer(fields=self._last(whole, usage))

    def empty(self) -> OllamaAnswer:
        """The answer to a request that only wants the model to be loaded."""
        return OllamaAnswer(
            fields={**self._piece(WholeAnswer()), "done": True, "done_reason": "load"}
        )

    def _taken(self, piece: AnswerPiece) -> list[WholeAnswer]:
        """What can be shown when another piece has come."""
        match piece:
            case ContentPiece(text):
                return [*self._called(), WholeAnswer(content=text)]
            case ReasoningPiece(text):
                return [*self._called(), WholeAnswer(reasoning=text)]
            case CallBegin(_, id, name):
                before = self._called()
                self._call, self._arguments = WholeCall(id, name), []
                return before
            case CallArguments(_, text):
                self._arguments.append(text)
                return []

    def _called(self) -> list[WholeAnswer]:
        """The call that has been read to its end, if there is one."""
        call, self._call = self._call, None
        if call is None:
            return []
        call.arguments = "".join(self._arguments)
        return [WholeAnswer(calls=[call])]

    def _piece(self, answer: WholeAnswer) -> dict[str, Any]:
        return {
            "model": self._model,
            "created_at": timestamp(time.time()),
            **self._shown(answer),
            "done": False,
        }

    def _last(self, answer: WholeAnswer, usage: UsageInfo) -> dict[str, Any]:
        times = self._timings
        return {
            **self._piece(answer),
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
        return json_bytes(fields) + b"\n"


def nanoseconds(seconds: float) -> int:
    """A duration as ollama writes it; none is negative."""
    return max(0, round(seconds * 1e9))


def timestamp(seconds: float) -> str:
    """A Unix time as RFC 3339 has it, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
