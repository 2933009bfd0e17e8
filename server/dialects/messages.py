"""POST /v1/messages: Anthropic's events and body."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ...engine.request import Completion, Delta, FinishReason
from ..answers.pieces import (
    AnswerPiece,
    CallArguments,
    CallBegin,
    ContentPiece,
    ReasoningPiece,
    arguments_object,
)
from ..answers.plan import AnswerPlan
from ..answers.reader import AnswerReader
from ..error_forms import anthropic_error
from ..errors import ApiError
from ..json_bytes import json_bytes
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
    """One message: a block for each thought, text and call, as they follow each other.

    Args:
        head: id and model of the response.
        prompt_tokens: of the conversation.
        plan: what is looked for in the answer.
        thinking_omitted: thoughts are told of, but not shown.
    """

    def __init__(
        self, head: Head, prompt_tokens: int, plan: AnswerPlan, *, thinking_omitted: bool = False
    ) -> None:
        self._head = head
        self._prompt_tokens = prompt_tokens
        self._reader = AnswerReader(plan)
        self._omitted = thinking_omitted
        self._end: tuple[str | None, str | None] = (None, None)
        self._index = -1
        self._open = ""  # type of the block that has begun
        self._thoughts = hashlib.sha256()

    def opening(self, prompts: int) -> bytes:
        """The message without its content."""
        usage = MessagesUsage(input_tokens=self._prompt_tokens, output_tokens=0)
        message = dict(self._message([], (None, None), usage))
        return _event("message_start", message={**message, "usage": dict(usage)}) + self.idle()

    def delta(self, prompt: int, delta: Delta) -> bytes:
        """A piece of the answer; how it ended is told at the close."""
        pieces = self._reader.pieces(delta.text, last=delta.finish is not None)
        if delta.finish is not None:
            self._end = self._ending(delta.finish, delta.stop_reason)
        return b"".join(self._write(piece) for piece in pieces)

    def idle(self) -> bytes:
        """Anthropic's ping."""
        return _event("ping")

    def closing(self, usage: UsageInfo) -> bytes:
        """The end of the last block, how the message ended, and its end."""
        reason, sequence = self._end
        ended = {"stop_reason": reason, "stop_sequence": sequence}
        return (
            self._stop()
            + _event("message_delta", delta=ended, usage=dict(_usage(usage)))
            + _event("message_stop")
        )

    def failure(self, error: ApiError) -> bytes:
        """One error event."""
        return _frame("error", anthropic_error(error))

    def body(self, done: Sequence[Completion], usage: UsageInfo) -> MessageResponse:
        """The whole message."""
        (answer,) = done
        content = self._blocks(self._reader.pieces(answer.text, last=True))
        end = self._ending(answer.finish_reason, answer.stop_reason)
        return self._message(content, end, _usage(usage))

    def _write(self, piece: AnswerPiece) -> bytes:
        """A piece of a stream, with the beginning of its block where it opens one."""
        match piece:
            case ContentPiece(text):
                begun = self._begin("text", text="")
                return begun + self._delta("text_delta", text=text)
            case ReasoningPiece(text):
                begun = self._begin("thinking", thinking="", signature="")
                self._thoughts.update(text.encode())
                shown = b"" if self._omitted else self._delta("thinking_delta", thinking=text)
                return begun + shown
            case CallBegin(_, id, name):
                return self._stop() + self._begin("tool_use", id=id, name=name, input={})
            case CallArguments(_, text):
                return self._delta("input_json_delta", partial_json=text)

    def _begin(self, kind: str, **fields: Any) -> bytes:
        """What opens a block of a type, unless the one that is open is of it."""
        if self._open == kind:
            return b""
        ended = self._stop()
        self._index += 1
        self._open = kind
        self._thoughts = hashlib.sha256()
        block = {"type": kind, **fields}
        return ended + _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, kind: str, **fields: Any) -> bytes:
        delta = {"type": kind, **fields}
        return _event("content_block_delta", index=self._index, delta=delta)

    def _stop(self) -> bytes:
        """What closes the block that is open."""
        if not self._open:
            return b""
        thought, self._open = self._open == "thinking", ""
        signed = b""
        if thought:
            signed = self._delta("signature_delta", signature=self._thoughts.hexdigest())
        return signed + _event("content_block_stop", index=self._index)

    def _blocks(self, pieces: Sequence[AnswerPiece]) -> list[dict[str, Any]]:
        """The blocks of a whole answer."""
        blocks: list[dict[str, Any]] = []
        texts: list[list[str]] = []
        for piece in pieces:
            match piece:
                case CallBegin(_, id, name):
                    blocks.append({"type": "tool_use", "id": id, "name": name})
                    texts.append([])
                case CallArguments(_, text):
                    texts[-1].append(text)
                case ContentPiece(text) | ReasoningPiece(text):
                    kind = "text" if isinstance(piece, ContentPiece) else "thinking"
                    if not blocks or blocks[-1]["type"] != kind:
                        blocks.append({"type": kind})
                        texts.append([])
                    texts[-1].append(text)
        for block, parts in zip(blocks, texts, strict=True):
            text = "".join(parts)
            match block["type"]:
                case "tool_use":
                    block["input"] = arguments_object(text)
                case "thinking":
                    block["thinking"] = "" if self._omitted else text
                    block["signature"] = hashlib.sha256(text.encode()).hexdigest()
                case _:
                    block["text"] = text
        return blocks

    def _ending(self, finish: FinishReason, stop: str | int | None) -> tuple[str, str | None]:
        """``stop_reason`` and ``stop_sequence``."""
        if finish is FinishReason.LENGTH:
            return "max_tokens", None
        if isinstance(stop, str):
            return "stop_sequence", stop
        return "tool_use" if self._reader.called else "end_turn", None

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
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), json_bytes(payload))
