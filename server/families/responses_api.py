"""OpenAI's POST /v1/responses, and GET and DELETE of what it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from ..answers.plan import AnswerPlan
from ..dialects.base import Head
from ..dialects.responses import ResponseObject, ResponsesWriter
from ..dialects.token_text import TokenText
from ..errors import ApiError
from ..event_stream import EventStream
from ..job import Call
from ..kept import KeptResponse, KeptResponses
from ..request_model import RequestModel
from ..responses import DeletedThing
from ..schema import MAX_MESSAGES, ChatCompletionRequest, ReasoningEffort, within
from ..service import OpenAIService
from .conversation import ChatTurns, function_tool
from .renaming import renamed, request_of
from .response_items import (
    CHOICE_SCHEMA,
    FlatTool,
    InputItem,
    add_item,
    add_output,
    chat_choice,
    flat_choice,
)

_NONE = (None,)
_OFF = (None, False)
_EMPTY: tuple[Any, ...] = (None, [], {})

# Names of chat completions' fields -> those of this endpoint.
_NAMES: Mapping[str, str] = {
    "max_tokens": "max_output_tokens",
    "response_format.json_schema.schema": "text.format.schema",
    "response_format": "text.format",
    "tools.*.function": "tools.*",
    "reasoning_effort": "reasoning.effort",
    "messages": "input",
}


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


class ReasoningConfig(RequestModel):
    """How much the model thinks. Nothing sums its thoughts up: they are there themselves."""

    not_honoured: ClassVar[Any] = {"summary": (None, "auto"), "generate_summary": (None, "auto")}
    prefix = "reasoning."
    effort: ReasoningEffort | None = None


class ResponsesRequest(RequestModel):
    """Body of POST /v1/responses."""

    not_honoured: ClassVar[Any] = {
        "conversation": _NONE,
        "background": _OFF,
        "max_tool_calls": _NONE,
        "include": _EMPTY,
        "prompt": _NONE,
        "context_management": _EMPTY,
        "moderation": _NONE,
        "truncation": (None, "disabled"),
        "top_logprobs": (None, 0),
        "service_tier": (None, "auto", "default"),
        "stream_options": (None, {}, {"include_obfuscation": False}),
    }
    model: str | None = None
    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(max_length=256)] | None = None
    store: bool | None = None
    max_output_tokens: Annotated[int, within("max_tokens")] | None = None
    temperature: Annotated[float, within("temperature")] | None = None
    top_p: Annotated[float, within("top_p")] | None = None
    text: TextConfig | None = None
    tools: list[FlatTool] | None = None
    tool_choice: Annotated[Any, BeforeValidator(flat_choice), WithJsonSchema(CHOICE_SCHEMA)] = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningConfig | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None

    def conversation(self, before: KeptResponse | None) -> ChatTurns:
        """The conversation without instructions. Raises RequestError.

        Args:
            before: the response that this one goes on from.
        """
        turns = ChatTurns(None if before is None else before.messages)
        if isinstance(self.input, str):
            turns.add("user", self.input)
            return turns
        for index, item in enumerate(self.input):
            add_item(turns, item, f"input.{index}")
        return turns

    def chat(self, turns: ChatTurns) -> ChatCompletionRequest:
        """The same as a chat completion, of the conversation's turns. Raises RequestError."""
        same = ("model", "temperature", "top_p", "stream", "user", "parallel_tool_calls")
        fields = {name: getattr(self, name) for name in same}
        system = {"role": "system", "content": self.instructions}
        fields["messages"] = ([] if self.instructions is None else [system]) + turns.whole()
        fields["max_tokens"] = self.max_output_tokens
        fields["response_format"] = self._format()
        fields["tools"] = [
            function_tool(tool.name, tool.description, tool.parameters, tool.strict)
            for tool in self.tools or ()
        ] or None
        fields["tool_choice"] = chat_choice(self.tool_choice)
        fields["reasoning_effort"] = self._effort
        return request_of(ChatCompletionRequest, fields)

    def repeated(self) -> dict[str, Any]:
        """What the response says of the request."""
        form = self.text.format if self.text else None
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "reasoning": {"effort": self._effort, "summary": None},
            "store": self.store is not False,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {"format": form.model_dump(by_alias=True) if form else {"type": "text"}},
            "tool_choice": self.tool_choice or "auto",
            "tools": [
                tool.model_dump(include={*FlatTool.model_fields}) for tool in self.tools or ()
            ],
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "truncation": "disabled",
            "user": self.user,
        }

    @property
    def _effort(self) -> str | None:
        return None if self.reasoning is None else self.reasoning.effort

    def _format(self) -> dict[str, Any] | None:
        form = self.text.format if self.text else None
        if form is None or form.type != "json_schema":
            return None if form is None else {"type": form.type}
        return {"type": form.type, "json_schema": {"name": form.name, "schema": form.schema_}}


async def create_response(
    service: OpenAIService, asked: ResponsesRequest, call: Call
) -> ResponseObject | EventStream:
    """POST /v1/responses."""
    tenant = call.tenant.namespace
    before: KeptResponse | None = None
    if asked.previous_response_id is not None:
        before = _kept(service.kept, call, asked.previous_response_id, "previous_response_id")
    turns = asked.conversation(before)

    def keep(response: dict[str, Any]) -> None:
        if asked.store is not False:
            add_output(turns, response["output"])
            service.kept.keep(tenant, response["id"], response, turns.messages)

    def writer(head: Head, plan: AnswerPlan, _: list[int]) -> ResponsesWriter:
        tokens = TokenText(service.engine.tokenizer)
        return ResponsesWriter(head, asked.repeated(), plan, tokens, keep)

    with renamed(_NAMES):
        return await service.converse(asked.chat(turns), call, writer, "resp_")


def find_response(kept: KeptResponses, id: str, call: Call) -> ResponseObject:
    """GET /v1/responses/{id}. Raises a 404 for one that is not kept."""
    return ResponseObject(fields=_kept(kept, call, id, "id").response)


def delete_response(kept: KeptResponses, id: str, call: Call) -> DeletedThing:
    """DELETE /v1/responses/{id}. Raises a 404 for one that is not kept."""
    _kept(kept, call, id, "id")
    kept.drop(call.tenant.namespace, id)
    return DeletedThing(id=id, object="response")


def _kept(kept: KeptResponses, call: Call, id: str, param: str) -> KeptResponse:
    found = kept.get(call.tenant.namespace, id)
    if found is None:
        raise ApiError(
            404,
            f"{param} is {id[:100]!r}, which this server does not have: it keeps responses in "
            "memory, the latest ones, and only for the key that asked for them.",
            param=param,
            code="response_not_found",
        )
    return found
