"""POST /completion and /infill: llama.cpp's events and body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from ...engine.request import Completion, Delta, FinishReason, Sampled
from ..errors import ApiError
from ..responses import FreeResponse, UsageInfo
from ..sse import frame
from .base import Head, ResponseWriter
from .token_text import TokenText, finite


class LlamaCppFields(BaseModel):
    """What is in a response of POST /completion."""

    index: int
    content: str
    tokens: list[int]
    stop: bool
    id_slot: int
    tokens_predicted: int
    tokens_evaluated: int
    model: str
    generation_settings: dict[str, Any]
    prompt: str
    has_new_line: bool
    truncated: Literal[False]
    stop_type: Literal["limit", "word", "eos"]
    stopping_word: str
    tokens_cached: int
    timings: dict[str, float]
    completion_probabilities: list[dict[str, Any]] = []


class LlamaCppCompletion(FreeResponse):
    """Response of POST /completion, and the last event of its stream."""

    shape = LlamaCppFields


class LlamaCppWriter(ResponseWriter):
    """One answer to one prompt.

    Args:
        head: what is said of the response.
        tokens: how tokens read.
        prompt: its text.
        prompt_tokens: how many it has.
        settings: what was asked, for ``generation_settings``.
        rated: log-probabilities are shown.
        with_tokens: the ids of the answer are shown.
    """

    def __init__(
        self,
        head: Head,
        tokens: TokenText,
        prompt: str,
        prompt_tokens: int,
        settings: Mapping[str, Any],
        *,
        rated: bool,
        with_tokens: bool,
    ) -> None:
        self._head = head
        self._tokens = tokens
        self._prompt = prompt
        self._prompt_tokens = prompt_tokens
        self._settings = settings
        self._rated = rated
        self._with_tokens = with_tokens
        self._count = 0
        self._unsaid: list[int] = []  # tokens whose text is not there yet
        self._done: Completion | None = None

    def opening(self, prompts: int) -> bytes:
        """A stream begins with its first text."""
        return b""

    def delta(self, prompt: int, delta: Delta) -> bytes:
        """A piece of the text; how it ended is told at the close."""
        self._count += len(delta.token_ids)
        self._unsaid += delta.token_ids if self._with_tokens else ()
        if delta.completion is not None:
            self._done = delta.completion
        rated = self._rated and delta.logprobs
        if not (delta.text or rated):
            return b""
        ids, self._unsaid = self._unsaid, []
        event = self._event(delta.text, ids, stop=False, count=self._count)
        if rated:
            event["completion_probabilities"] = self._probabilities(delta.logprobs)
        return frame(event)

    def closing(self, usage: UsageInfo) -> bytes:
        """The last event: how it ended, counts and times."""
        assert self._done is not None
        return frame(self._last("", self._unsaid, self._done, usage))

    def failure(self, error: ApiError) -> bytes:
        """One event with the error."""
        return frame(error.body())

    def body(self, done: Sequence[Completion], usage: UsageInfo) -> LlamaCppCompletion:
        """The whole response."""
        (answer,) = done
        ids = list(answer.token_ids) if self._with_tokens else []
        fields = self._last(answer.text, ids, answer, usage)
        if self._rated:
            fields["completion_probabilities"] = self._probabilities(answer.logprobs or ())
        return LlamaCppCompletion(fields=fields)

    def _last(
        self, text: str, ids: list[int], answer: Completion, usage: UsageInfo
    ) -> dict[str, Any]:
        cached = usage.prompt_tokens_details.cached_tokens
        word = answer.stop_reason if isinstance(answer.stop_reason, str) else ""
        cut = answer.finish_reason is FinishReason.LENGTH
        return {
            **self._event(text, ids, stop=True, count=usage.completion_tokens),
            "model": self._head.model,
            "generation_settings": dict(self._settings),
            "prompt": self._prompt,
            "has_new_line": "\n" in answer.text,
            "truncated": False,
            "stop_type": "limit" if cut else "word" if word else "eos",
            "stopping_word": word,
            "tokens_cached": cached,
            "timings": _timings(answer, usage),
        }

    def _event(self, text: str, ids: list[int], *, stop: bool, count: int) -> dict[str, Any]:
        return {
            "index": 0,
            "content": text,
            "tokens": ids,
            "stop": stop,
            "id_slot": -1,
            "tokens_predicted": count,
            "tokens_evaluated": self._prompt_tokens,
        }

    def _probabilities(self, drawn: Sequence[Sampled]) -> list[dict[str, Any]]:
        return [
            {
                **self._rating(item.token, item.logprob),
                "top_logprobs": [self._rating(token, logprob) for token, logprob in item.top],
            }
            for item in drawn
        ]

    def _rating(self, token: int, logprob: float | None) -> dict[str, Any]:
        data = self._tokens.bytes(token)
        text = data.decode("utf-8", "replace")
        return {"id": token, "token": text, "bytes": [*data], "logprob": finite(logprob)}


def _timings(answer: Completion, usage: UsageInfo) -> dict[str, Any]:
    """Counts and times of the prompt that was computed, and of the answer."""
    times, cached = answer.timings, usage.prompt_tokens_details.cached_tokens
    out: dict[str, Any] = {"cache_n": cached}
    for name, count, seconds in (
        ("prompt", usage.prompt_tokens - cached, times.ttft_s - times.queue_s),
        ("predicted", usage.completion_tokens, times.total_s - times.ttft_s),
    ):
        seconds = max(seconds, 0.0)
        out |= {
            f"{name}_n": count,
            f"{name}_ms": seconds * 1e3,
            f"{name}_per_token_ms": seconds * 1e3 / count if count else 0.0,
            f"{name}_per_second": count / seconds if seconds else 0.0,
        }
    return out
