"""POST /v1/messages: Anthropic's events and body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson

from ...engine.request import Completion, Delta, FinishReason
from ..error_forms import anthropic_error
from ..errors import ApiError
from ..responses import ResponseModel, UsageInfo
from .base import Head, ResponseWriter


class MessagesUsage(ResponseModel):
    """Token counts; all of the prompt's are the sum of those read from the cache and the rest."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int


class MessageResponse(ResponseModel):
    """Response of POST /v1/messages."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessagesUsage


class MessagesWriter(ResponseWriter):
    """One message of one text block.

    Args:
        head: id and model of the response.
        prompt_tokens: of the conversation.
    """

    def __init__(self, head: Head, prompt_tokens: int) -> None:
        self._head = head
        self._prompt_tokens = prompt_tokens
        self._end: tuple[str | None, str | None] = (None, None)

    def opening(self, prompts: int) -> bytes:
        """The message without its content, and its one block without its text."""
        usage = MessagesUsage(input_tokens=self._prompt_tokens, output_tokens=0)
        message = dict(self._message([], (None, None), usage))
        block = {"type": "text", "text": ""}
        return (
            _event("message_start", message={**message, "usage": dict(usage)})
            + _event("content_block_start", index=0, content_block=block)
            + self.idle()
        )

    def delta(self, prompt: int, delta: Delta) -> bytes:
        """A piece of the text; how it ended is told at the close."""
        if delta.finish is not None:
            self._end = _end_of(delta.finish, delta.stop_reason)
        if not delta.text:
            return b""
        piece = {"type": "text_delta", "text": delta.text}
        return _event("content_block_delta", index=0, delta=piece)

    def idle(self) -> bytes:
        """Anthropic's ping."""
        return _event("ping")

    def closing(self, usage: UsageInfo) -> bytes:
        """The end of the block, how the message ended, and its end."""
        reason, sequence = self._end
        ended = {"stop_reason": reason, "stop_sequence": sequence}
        return (
            _event("content_block_stop", index=0)
            + _event("message_delta", delta=ended, usage=dict(_usage(usage)))
            + _event("message_stop")
        )

    def failure(self, error: ApiError) -> bytes:
        """One error event."""
        return _frame("error", anthropic_error(error))

    def body(self, done: Sequence[Completion], usage: UsageInfo) -> MessageResponse:
        """The whole message."""
        (answer,) = done
        content = [{"type": "text", "text": answer.text}] if answer.text else []
        end = _end_of(answer.finish_reason, answer.stop_reason)
        return self._message(content, end, _usage(usage))

    def _message(
        self,
        content: list[dict[str, Any]],
        end: tuple[str | None, str | None],
        usage: MessagesUsage,
    ) -> MessageResponse:
        return MessageResponse(
            id=self._head.id,
            model=self._head.model,
            content=content,
            stop_reason=end[0],
            stop_sequence=end[1],
            usage=usage,
        )


def _end_of(finish: FinishReason, stop: str | int | None) -> tuple[str, str | None]:
    """``stop_reason`` and ``stop_sequence``."""
    if finish is FinishReason.LENGTH:
        return "max_tokens", None
    return ("stop_sequence", stop) if isinstance(stop, str) else ("end_turn", None)


def _usage(usage: UsageInfo) -> MessagesUsage:
    cached = usage.prompt_tokens_details.cached_tokens
    return MessagesUsage(
        input_tokens=usage.prompt_tokens - cached,
        cache_read_input_tokens=cached,
        output_tokens=usage.completion_tokens,
    )


def _event(kind: str, **fields: Any) -> bytes:
    return _frame(kind, {"type": kind, **fields})


def _frame(kind: str, payload: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(payload))
