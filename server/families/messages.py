"""Anthropic's API: POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from halfbyte.errors import RequestError

from ..dialects.messages import MessageResponse, MessagesWriter
from ..event_stream import EventStream
from ..job import Call
from ..responses import ResponseModel
from ..schema import (
    MAX_MESSAGES,
    MAX_PARTS,
    ChatCompletionRequest,
    RequestModel,
    TokenizeRequest,
)
from ..service import OpenAIService
from .renaming import refuse_begun, renamed, request_of

_NONE = (None,)
_EMPTY: tuple[Any, ...] = (None, [], {})
_OFF = {"type": "disabled"}

# OpenAI's names of fields -> Anthropic's.
_NAMES = {"stop": "stop_sequences"}


class MessageBlock(RequestModel):
    """One block of a message's content; only text is honoured."""

    type: str
    text: str | None = None
    cache_control: dict[str, Any] | None = None


Blocks = Annotated[list[MessageBlock], Field(max_length=MAX_PARTS)]


class MessageTurn(RequestModel):
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    content: str | Blocks


class CountTokensRequest(RequestModel):
    """Body of POST /v1/messages/count_tokens."""

    not_honoured: ClassVar[Any] = {
        "tools": _EMPTY,
        "tool_choice": (None, {"type": "auto"}, {"type": "none"}),
        "thinking": (None, _OFF),
        "mcp_servers": _EMPTY,
        "container": _NONE,
        "context_management": _EMPTY,
        "output_config": _EMPTY,
        "output_format": _NONE,
    }
    model: str
    messages: Annotated[list[MessageTurn], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: str | Blocks | None = None

    def conversation(self) -> list[dict[str, Any]]:
        """The messages of OpenAI's API; turns of one role that follow each other are one.

        Raises:
            RequestError: a block that is no text, or a last message of the assistant's, which
                would have to be continued.
        """
        out: list[dict[str, Any]] = []
        if self.system is not None:
            out.append({"role": "system", "content": _content(self.system, "system")})
        for index, turn in enumerate(self.messages):
            content = _content(turn.content, f"messages.{index}.content")
            if out and out[-1]["role"] == turn.role:
                out[-1]["content"] = _parts(out[-1]["content"]) + _parts(content)
            else:
                out.append({"role": turn.role, "content": content})
        refuse_begun([turn.role for turn in self.messages])
        return out


class MessagesRequest(CountTokensRequest):
    """Body of POST /v1/messages."""

    not_honoured: ClassVar[Any] = {
        **CountTokensRequest.not_honoured,
        "service_tier": (None, "auto", "standard_only"),
        "inference_geo": _NONE,
    }
    max_tokens: int
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None

    def chat(self) -> ChatCompletionRequest:
        """The same as a request of OpenAI's API. Raises RequestError."""
        if self.max_tokens < 1:
            raise RequestError(
                f"max_tokens is {self.max_tokens}; expected at least 1", param="max_tokens"
            )
        same = ("model", "max_tokens", "temperature", "top_p", "top_k", "stream")
        fields = {name: getattr(self, name) for name in same}
        fields |= {"messages": self.conversation(), "stop": self.stop_sequences or None}
        return request_of(ChatCompletionRequest, fields)


class TokenCount(ResponseModel):
    """Response of POST /v1/messages/count_tokens."""

    input_tokens: int


async def create_message(
    service: OpenAIService, asked: MessagesRequest, call: Call
) -> MessageResponse | EventStream:
    """POST /v1/messages."""
    with renamed(_NAMES):
        return await service.converse(
            asked.chat(), call, lambda head, *_: MessagesWriter(head, call.prompt_tokens), "msg_"
        )


async def count_tokens(service: OpenAIService, asked: CountTokensRequest, _: Call) -> TokenCount:
    """POST /v1/messages/count_tokens."""
    fields = {"model": asked.model, "messages": asked.conversation()}
    counted = await service.tokenize(request_of(TokenizeRequest, fields))
    return TokenCount(input_tokens=counted.count)


def _content(given: str | list[MessageBlock], where: str) -> str | list[dict[str, str]]:
    """Content as OpenAI's API has it. Raises RequestError for a block that is no text."""
    if isinstance(given, str):
        return given
    out = []
    for number, block in enumerate(given):
        if block.type != "text":
            raise RequestError(
                f"{where}.{number} has type {block.type[:40]!r}; only text is supported",
                param=f"{where}.{number}.type",
                code="unsupported_value",
            )
        if block.text is None:
            raise RequestError(f"{where}.{number} has no text", param=f"{where}.{number}.text")
        out.append({"type": "text", "text": block.text})
    return out


def _parts(content: str | list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
