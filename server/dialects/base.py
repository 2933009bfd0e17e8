"""What the dialects share: the head of a response, and the frames of a stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...engine.request import Completion, Delta, FinishReason
from ..errors import ApiError
from ..responses import ResponseModel, UsageInfo
from ..sse import DONE, KEEP_ALIVE, SSE_HEADERS, frame
from .token_text import TokenText


@dataclass(frozen=True, slots=True)
class Head:
    """What all chunks of a response share.

    Attributes:
        id: response id, ``chatcmpl-…`` or ``cmpl-…``.
        created: Unix time, seconds.
        model: name of the model that answers.
        fingerprint: value of ``system_fingerprint``.
        with_usage: the stream ends with a usage chunk, so the others say ``usage: null``.
    """

    id: str
    created: int
    model: str
    fingerprint: str
    with_usage: bool


class ResponseWriter(ABC):
    """Writes the answers to one request; a subclass knows the endpoint's format.

    Attributes:
        headers: of a streamed response.
    """

    headers: Mapping[str, str] = SSE_HEADERS

    @abstractmethod
    def opening(self, prompts: int) -> bytes:
        """What a stream begins with, before anything is known."""

    @abstractmethod
    def delta(self, prompt: int, delta: Delta) -> bytes:
        """A piece of an answer, or its end, or both; may be empty."""

    def idle(self) -> bytes:
        """What a stream says after a long silence."""
        return KEEP_ALIVE

    @abstractmethod
    def closing(self, usage: UsageInfo) -> bytes:
        """What a stream ends with, when all answers have."""

    def reasoning_tokens(self, completion: Completion) -> int:
        """How many tokens of an answer, or of all answers to a prompt, are reasoning."""
        return 0

    @abstractmethod
    def failure(self, error: ApiError) -> bytes:
        """What a stream ends with when an answer failed."""

    @abstractmethod
    def body(self, done: Sequence[Completion], usage: UsageInfo) -> ResponseModel:
        """The whole response, of the completion of each prompt in order."""


class Dialect(ResponseWriter):
    """What OpenAI's two endpoints share: chunks with choices.

    An answer's index is that of its prompt times the answers to a prompt, plus its own.

    Args:
        head: what all chunks share.
        tokens: how tokens read.
        n: answers to a prompt.
        rated: the log-probabilities of an answer's tokens are shown.
        with_ids: the ids of an answer's tokens are shown.

    Attributes:
        object_name: value of ``object`` in each chunk.
    """

    object_name = ""

    def __init__(
        self, head: Head, tokens: TokenText, n: int, *, rated: bool, with_ids: bool = False
    ) -> None:
        self.head = head
        self._tokens = tokens
        self._n = n
        self._rated = rated
        self._with_ids = with_ids

    def opening(self, prompts: int) -> bytes:
        """What a stream begins with, before anything is known."""
        return b"".join(self.first(index) for index in range(prompts * self._n))

    @abstractmethod
    def first(self, index: int) -> bytes:
        """What opens the answer ``index``; may be empty."""

    def delta(self, prompt: int, delta: Delta) -> bytes:
        """A piece of an answer, or its end, or both; may be empty."""
        index = prompt * self._n + delta.index
        choices = self._pieces(index, delta)
        told = (self._rated and delta.logprobs) or (self._with_ids and delta.token_ids)
        if told and not choices:
            choices.append(self._choice(index, "", None))
        if self._with_ids and choices:
            choices[0]["token_ids"] = list(delta.token_ids)
        if self._rated and choices:
            choices[0]["logprobs"] = self._logprobs(delta.logprobs, delta.text_offsets)
        if delta.finish is not None:
            choice = self._choice(index, "", self._finish(index, delta.finish))
            choice["stop_reason"] = delta.stop_reason
            choices.append(choice)
        return b"".join(self._frame([choice]) for choice in choices)

    def _pieces(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """An entry of ``choices`` for each piece of an answer's new text."""
        return [self._choice(index, delta.text, None)] if delta.text else []

    def _finish(self, index: int, reason: FinishReason) -> str:
        """The finish reason of the answer ``index`` in a stream."""
        return reason.value

    def closing(self, usage: UsageInfo) -> bytes:
        """The usage chunk, which has no choices, where it is wanted, and the end mark."""
        return self.usage_frame(usage) + DONE

    def usage_frame(self, usage: UsageInfo) -> bytes:
        """The usage chunk; empty where it is not wanted."""
        return self._frame([], usage.model_dump()) if self.head.with_usage else b""

    def failure(self, error: ApiError) -> bytes:
        """One event with the error, and no end mark."""
        return frame(error.body())

    @abstractmethod
    def _choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        """One entry of ``choices`` in a chunk."""

    @abstractmethod
    def _logprobs(self, drawn: Sequence[Any], offsets: Sequence[int]) -> Any:
        """The log-probabilities of drawn tokens."""

    def _answers(self, done: Sequence[Completion]) -> list[tuple[int, int, Completion]]:
        """Index, prompt and completion of every answer."""
        return [
            (prompt * self._n + answer.index, prompt, answer)
            for prompt, completion in enumerate(done)
            for answer in completion.choices or (completion,)
        ]

    def _frame(
        self,
        choices: list[dict[str, Any]],
        usage: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> bytes:
        head = self.head
        chunk: dict[str, Any] = {
            "id": head.id,
            "object": self.object_name,
            "created": head.created,
            "model": head.model,
            "system_fingerprint": head.fingerprint,
            "choices": choices,
            **more,
        }
        if head.with_usage:
            chunk["usage"] = usage
        return frame(chunk)


def failed(completion: Completion) -> Completion | None:
    """The answer to a prompt that did not end by itself, or None."""
    bad = (FinishReason.ERROR, FinishReason.CANCELLED)
    every = completion.choices or (completion,)
    return next((answer for answer in every if answer.finish_reason in bad), None)
