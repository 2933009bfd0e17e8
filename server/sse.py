"""Server-sent events: how the chunks of a stream look on the wire."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
SSE_HEADERS: Mapping[str, str] = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


def frame(payload: Mapping[str, Any]) -> bytes:
    """One event holding one JSON object, UTF-8."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


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


class ChunkFrames(ABC):
    """Frames of one streamed response; a subclass knows the endpoint's chunk format.

    Attributes:
        object_name: value of ``object`` in each chunk.
    """

    object_name = ""

    def __init__(self, head: Head) -> None:
        self._head = head

    @abstractmethod
    def first(self, index: int) -> bytes:
        """What opens the answer ``index``; may be empty."""

    def text(self, index: int, text: str) -> bytes:
        """A piece of the answer ``index``."""
        return self._frame([self._choice(index, text, None)])

    def last(self, index: int, finish_reason: str, stop_reason: str | int | None) -> bytes:
        """The end of the answer ``index``, without text."""
        choice = self._choice(index, "", finish_reason)
        choice["stop_reason"] = stop_reason
        return self._frame([choice])

    def usage(self, usage: Mapping[str, Any]) -> bytes:
        """The usage chunk, which has no choices."""
        return self._frame([], usage)

    @abstractmethod
    def _choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        """One entry of ``choices``."""

    def _frame(
        self, choices: list[dict[str, Any]], usage: Mapping[str, Any] | None = None
    ) -> bytes:
        head = self._head
        chunk: dict[str, Any] = {
            "id": head.id,
            "object": self.object_name,
            "created": head.created,
            "model": head.model,
            "system_fingerprint": head.fingerprint,
            "choices": choices,
        }
        if head.with_usage:
            chunk["usage"] = usage
        return frame(chunk)


class CompletionFrames(ChunkFrames):
    """Chunks of POST /v1/completions."""

    object_name = "text_completion"

    def first(self, index: int) -> bytes:
        """Text completions open with their first text."""
        return b""

    def _choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


class ChatFrames(ChunkFrames):
    """Chunks of POST /v1/chat/completions."""

    object_name = "chat.completion.chunk"

    def first(self, index: int) -> bytes:
        """The chunk that names the role."""
        choice = self._choice(index, "", None)
        choice["delta"] = {"role": "assistant", "content": ""}
        return self._frame([choice])

    def _choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        delta = {"content": text} if finish_reason is None else {}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
