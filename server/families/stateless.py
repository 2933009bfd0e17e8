"""OpenAI's POST /v1/responses, without what would be kept from one request to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from halfbyte.errors import RequestError

from ..dialects.responses import ResponseObject, ResponsesWriter
from ..event_stream import EventStream
from ..job import Call
from ..schema import MAX_MESSAGES, MAX_PARTS, ChatCompletionRequest, RequestModel
from ..service import OpenAIService
from .renaming import renamed, request_of

_NONE = (None,)
_OFF = (None, False)
_EMPTY: tuple[Any, ...] = (None, [], {})

# Names of chat completions' fields -> those of this endpoint.
_NAMES: Mapping[str, str] = {
    "max_tokens": "max_output_tokens",
    "response_format.json_schema.schema": "text.format.schema",
    "response_format": "text.format",
    "messages": "input",
}


class InputPart(RequestModel):
    """One part of an input message; only texts are honoured."""

    type: str
    text: str | None = None


class InputItem(RequestModel):
    """One item of the input; only messages are honoured."""

    type: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | Annotated[list[InputPart], Field(max_length=MAX_PARTS)] | None = None


class TextFormat(RequestModel):
    """What form the text has."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextConfig(RequestModel):
    """Settings of the text."""

    not_honoured: ClassVar[Any] = {"verbosity": (None, "medium")}
    prefix = "text."
    format: TextFormat | None = None


class ResponsesRequest(RequestModel):
    """Body of POST /v1/responses."""

    not_honoured: ClassVar[Any] = {
        "store": _OFF,
        "previous_response_id": _NONE,
        "conversation": _NONE,
        "background": _OFF,
        "tools": _EMPTY,
        "tool_choice": (None, "auto", "none"),
        "parallel_tool_calls": (None, True, False),
        "max_tool_calls": _NONE,
        "reasoning": (None, {}, {"effort": None, "summary": None}),
        "include": _EMPTY,
        "prompt": _NONE,
        "truncation": (None, "disabled"),
        "top_logprobs": (None, 0),
        "service_tier": (None, "auto", "default"),
        "stream_options": (None, {}, {"include_obfuscation": False}),
    }
    model: str | None = None
    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: TextConfig | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None

    def chat(self) -> ChatCompletionRequest:
        """The same as a chat completion. Raises RequestError."""
        same = ("model", "temperature", "top_p", "stream", "user")
        fields = {name: getattr(self, name) for name in same}
        system = [] if self.instructions is None else [("system", self.instructions)]
        turns = [("user", self.input)] if isinstance(self.input, str) else self._turns()
        fields["messages"] = [{"role": r, "content": c} for r, c in (*system, *turns)]
        fields["max_tokens"] = self.max_output_tokens
        fields["response_format"] = self._format()
        return request_of(ChatCompletionRequest, fields)

    def repeated(self) -> dict[str, Any]:
        """What the response says of the request."""
        form = self.text.format if self.text else None
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {"format": form.model_dump(by_alias=True) if form else {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "truncation": "disabled",
            "user": self.user,
        }

    def _format(self) -> dict[str, Any] | None:
        form = self.text.format if self.text else None
        if form is None or form.type != "json_schema":
            return None if form is None else {"type": form.type}
        return {"type": form.type, "json_schema": {"name": form.name, "schema": form.schema_}}

    def _turns(self) -> list[tuple[str, Any]]:
        """Roles and contents of the input's items. Raises RequestError."""
        out = []
        for index, item in enumerate(self.input):
            assert isinstance(item, InputItem)
            where = f"input.{index}"
            if item.type not in (None, "message") or item.role is None:
                raise RequestError(
                    f"{where} is no message (type {item.type!r:.40}); only messages are supported",
                    param=where,
                    code="unsupported_value",
                )
            content = item.content
            if isinstance(content, list):
                content = [
                    _text_part(part, f"{where}.content.{n}") for n, part in enumerate(content)
                ]
            out.append((item.role, content))
        return out


async def create_response(
    service: OpenAIService, asked: ResponsesRequest, call: Call
) -> ResponseObject | EventStream:
    """POST /v1/responses."""
    with renamed(_NAMES):
        return await service.converse(
            asked.chat(), call, lambda head, *_: ResponsesWriter(head, asked.repeated()), "resp_"
        )


def _text_part(part: InputPart, where: str) -> dict[str, str]:
    """A part as chat completions have it. Raises RequestError for one that is no text."""
    if part.type not in ("input_text", "output_text", "text") or part.text is None:
        raise RequestError(
            f"{where} has type {part.type[:40]!r}; only input_text and output_text with a text "
            "are supported",
            param=where,
            code="unsupported_value",
        )
    return {"type": "text", "text": part.text}
