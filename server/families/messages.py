"""Anthropic's API: POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, WithJsonSchema

from halfbyte.errors import RequestError

from ..answers.plan import AnswerPlan
from ..dialects.base import Head
from ..dialects.messages import MessageResponse, MessagesWriter
from ..event_stream import EventStream
from ..job import Call
from ..request_model import RequestModel
from ..responses import ResponseModel
from ..schema import MAX_MESSAGES, ChatCompletionRequest, TokenizeRequest, within
from ..service import OpenAIService
from .conversation import ChatTurns, chosen_function, function_tool, needed
from .message_fields import Blocks, MessagesTool, MessageTurn, OutputConfig, Thinking, ToolUse
from .message_turns import add_turn, system_content
from .renaming import goes_on, renamed, request_of

_NONE = (None,)
_EMPTY: tuple[Any, ...] = (None, [], {})

# OpenAI's names of fields -> Anthropic's.
_NAMES = {
    "stop": "stop_sequences",
    "tools.*.function.parameters": "tools.*.input_schema",
    "tools.*.function": "tools.*",
    "response_format.json_schema.schema": "output_config.format.schema",
    "response_format": "output_config.format",
    "thinking_token_budget": "thinking.budget_tokens",
}


class CountTokensRequest(RequestModel):
    """Body of POST /v1/messages/count_tokens."""

    not_honoured: ClassVar[Any] = {
        "mcp_servers": _EMPTY,
        "container": _NONE,
        # Thoughts of earlier turns are the template's to keep or drop.
        "context_management": (
            *_EMPTY,
            {"edits": []},
            {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        ),
        "output_format": _NONE,
        "speed": (None, "standard"),
    }
    model: str
    messages: Annotated[list[MessageTurn], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: str | Blocks | None = None
    tools: list[MessagesTool] | None = None
    tool_choice: ToolUse | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    def conversation(self) -> list[dict[str, Any]]:
        """The messages of OpenAI's API; turns of one role that follow each other are one.

        Raises:
            RequestError: a block that is not honoured there.
        """
        turns = ChatTurns()
        if self.system is not None:
            turns.add("system", system_content(self.system))
        for index, turn in enumerate(self.messages):
            add_turn(turns, turn, f"messages.{index}.content")
        return turns.whole()

    def functions(self) -> list[dict[str, Any]] | None:
        """The tools of OpenAI's API."""
        return [
            function_tool(tool.name, tool.description, tool.input_schema, tool.strict)
            for tool in self.tools or ()
        ] or None

    def choice(self) -> Any:
        """The ``tool_choice`` of OpenAI's API. Raises RequestError where a name is missing."""
        match self.tool_choice:
            case None:
                return None
            case ToolUse(type="tool", name=name):
                return chosen_function(needed(name, "tool_choice", "name"))
            case ToolUse(type="any"):
                return "required"
            case chosen:
                return chosen.type

    @property
    def thinks(self) -> bool:
        """Thoughts are wanted; left out, they are not, as with the models that had a switch."""
        return self.thinking is not None and self.thinking.type != "disabled"

    def switches(self) -> dict[str, Any]:
        """Template switches."""
        return {"enable_thinking": self.thinks}


class MessagesRequest(CountTokensRequest):
    """Body of POST /v1/messages."""

    not_honoured: ClassVar[Any] = {
        **CountTokensRequest.not_honoured,
        "service_tier": (None, "auto", "standard_only"),
        "inference_geo": _NONE,
    }
    max_tokens: Annotated[int, WithJsonSchema({"type": "integer", "minimum": 1})]
    stop_sequences: list[str] | None = None
    temperature: Annotated[float, within("temperature")] | None = None
    top_p: Annotated[float, within("top_p")] | None = None
    top_k: Annotated[int, within("top_k")] | None = None
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
        messages = self.conversation()
        fields |= {"messages": messages, "stop": self.stop_sequences or None}
        fields["continue_final_message"] = self._goes_on(messages)
        fields |= {"tools": self.functions(), "tool_choice": self.choice()}
        if self.tool_choice is not None and self.tool_choice.disable_parallel_tool_use:
            fields["parallel_tool_calls"] = False
        fields |= {"include_reasoning": self.thinks, "chat_template_kwargs": self.switches()}
        if self.thinking is not None:
            fields["thinking_token_budget"] = self.thinking.budget(self.max_tokens)
        if self.output_config is not None:
            fields["response_format"] = self.output_config.response_format()
        return request_of(ChatCompletionRequest, fields)

    def _goes_on(self, messages: list[dict[str, Any]]) -> bool | None:
        """Whether the answer goes on with the last message. Raises RequestError."""
        if not goes_on(messages):
            return None
        where = f"messages.{len(self.messages) - 1}"
        if self.thinks:
            raise RequestError(
                f"{where} is the assistant's and the last, beside thinking: the answer cannot go "
                "on with it and think before",
                param=where,
            )
        text = messages[-1]["content"]
        text = text if isinstance(text, str) else text[-1].get("text", "")
        if text != text.rstrip():
            raise RequestError(
                f"{where} is the assistant's and the last, and ends with white space; expected "
                "none, as what follows usually begins with it",
                param=where,
            )
        return True


class TokenCount(ResponseModel):
    """Response of POST /v1/messages/count_tokens."""

    input_tokens: int


async def create_message(
    service: OpenAIService, asked: MessagesRequest, call: Call
) -> MessageResponse | EventStream:
    """POST /v1/messages."""
    omitted = asked.thinking is not None and asked.thinking.display == "omitted"

    def writer(head: Head, plan: AnswerPlan, _: list[int]) -> MessagesWriter:
        return MessagesWriter(head, call.prompt_tokens, plan, thinking_omitted=omitted)

    with renamed(_NAMES):
        return await service.converse(asked.chat(), call, writer, "msg_")


async def count_tokens(service: OpenAIService, asked: CountTokensRequest, _: Call) -> TokenCount:
    """POST /v1/messages/count_tokens."""
    messages = asked.conversation()
    fields: dict[str, Any] = {"model": asked.model, "messages": messages}
    fields["continue_final_message"] = goes_on(messages) or None
    fields["chat_template_kwargs"] = asked.switches()
    if asked.choice() != "none":
        fields["tools"] = asked.functions()
    with renamed(_NAMES):
        counted = await service.tokenize(request_of(TokenizeRequest, fields))
    return TokenCount(input_tokens=counted.count)
