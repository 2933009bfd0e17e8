"""What the bodies of Anthropic's API are made of: blocks, tools, and settings."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from halfbyte.errors import RequestError

from ..request_model import RequestModel
from ..schema import MAX_PARTS
from .conversation import needed

_OFF = (None, False)
_EMPTY: tuple[Any, ...] = (None, [], {})
_LEAST_BUDGET = 1024


class MessageBlock(RequestModel):
    """One block of a message's content: a text, a thought, a call, or what a call gave.

    Which of the fields it must have depends on its type; `message_turns` looks at that.
    """

    type: str
    text: str | None = None
    thinking: str | None = None
    id: Annotated[str, Field(max_length=256)] | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: Annotated[str, Field(max_length=256)] | None = None
    content: str | Annotated[list[MessageBlock], Field(max_length=MAX_PARTS)] | None = None
    is_error: bool | None = None


Blocks = Annotated[list[MessageBlock], Field(max_length=MAX_PARTS)]


class MessageTurn(RequestModel):
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    content: str | Blocks


class MessagesTool(RequestModel):
    """A function that may be called; Anthropic's own tools are not here."""

    not_honoured: ClassVar[Any] = {
        "defer_loading": _OFF,
        "input_examples": _EMPTY,
        "allowed_callers": (None, [], ["direct"]),
        # Every input is streamed as it is written.
        "eager_input_streaming": (None, True),
    }
    prefix = "tools."
    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class ToolUse(RequestModel):
    """Anthropic's ``tool_choice``."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(RequestModel):
    """Whether the model thinks before it answers, and how much."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None

    def budget(self, max_tokens: int) -> int | None:
        """Most tokens of reasoning, or None.

        Args:
            max_tokens: of the whole answer.

        Raises:
            RequestError: it is missing, or out of range.
        """
        if self.type != "enabled":
            return None
        budget = needed(self.budget_tokens, "thinking", "budget_tokens")
        if not _LEAST_BUDGET <= budget < max_tokens:
            raise RequestError(
                f"thinking.budget_tokens is {budget}; expected at least {_LEAST_BUDGET} and less "
                f"than max_tokens, which is {max_tokens}",
                param="thinking.budget_tokens",
            )
        return budget


class OutputFormat(RequestModel):
    """A schema that the answer must match."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(RequestModel):
    """Settings of the answer."""

    not_honoured: ClassVar[Any] = {"effort": (None, "high"), "task_budget": (None,)}
    prefix = "output_config."
    format: OutputFormat | None = None

    def response_format(self) -> dict[str, Any] | None:
        """The field of that name of OpenAI's API."""
        if self.format is None:
            return None
        form = {"name": "format", "schema": self.format.schema_}
        return {"type": "json_schema", "json_schema": form}
