"""POST /v1/responses: OpenAI's typed events and body."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from ...engine.request import Completion, Delta, FinishReason
from ..answers.pieces import (
    AnswerPiece,
    CallArguments,
    CallBegin,
    ContentPiece,
    ReasoningPiece,
)
from ..answers.plan import AnswerPlan
from ..answers.reader import AnswerReader
from ..errors import ApiError
from ..json_bytes import json_bytes
from ..responses import FreeResponse, UsageInfo
from .base import Head, ResponseWriter
from .token_text import TokenText

# Type of an item -> what its id begins with.
_IDS = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


class ResponseFields(BaseModel):
    """What is in a response: what came out, and what was asked."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    error: None
    incomplete_details: dict[str, str] | None
    usage: dict[str, Any]
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, str | None]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"]
    user: str | None


class ResponseObject(FreeResponse):
    """Response of POST /v1/responses, which is in its last event as well."""

    shape = ResponseFields


class ResponsesWriter(ResponseWriter):
    """An output item for each thought, text and call, as they follow each other.

    Args:
        head: id, time and model of the response.
        asked: fields of the request that the response repeats.
        plan: what is looked for in the answer.
        tokens: how tokens read.
        keep: called with the whole response when it has ended.
    """

    def __init__(
        self,
        head: Head,
        asked: Mapping[str, Any],
        plan: AnswerPlan,
        tokens: TokenText,
        keep: Callable[[dict[str, Any]], None],
    ) -> None:
        self._head = head
        self._asked = asked
        self._plan = plan
        self._reader = AnswerReader(plan)
        self._tokens = tokens
        self._keep = keep
        self._number = 0
        self._finish: FinishReason | None = None
        self._output: list[dict[str, Any]] = []  # the last item may still be open
        self._open = ""  # its type
        self._text: list[str] = []  # what it has so far

    def opening(self, prompts: int) -> bytes:
        """The response without its items."""
        begun = self._response("in_progress", [])
        return self._event("response.created", response=begun) + self._event(
            "response.in_progress", response=begun
        )

    def delta(self, prompt: int, delta: Delta) -> bytes:
        """A piece of the answer; how it ended is told at the close."""
        self._finish = delta.finish or self._finish
        return self._read(delta.text, last=delta.finish is not None)

    def closing(self, usage: UsageInfo) -> bytes:
        """The ends of the last item and of the response, each with all that it holds."""
        ended = self._close()
        response = self._ended(usage)
        return ended + self._event(f"response.{response['status']}", response=response)

    def reasoning_tokens(self, completion: Completion) -> int:
        """How many tokens of the answer are reasoning, its markers included."""
        return self._plan.reasoning_tokens(completion.token_ids, self._tokens.bytes)

    def failure(self, error: ApiError) -> bytes:
        """The response as failed."""
        told = {"code": error.code, "message": error.message}
        failed = self._response("failed", []) | {"error": told}
        return self._event("response.failed", response=failed)

    def body(self, done: Sequence[Completion], usage: UsageInfo) -> ResponseObject:
        """The whole response: what a stream's last event has."""
        (answer,) = done
        self._finish = answer.finish_reason
        self._read(answer.text, last=True)
        self._close()
        return ResponseObject(fields=self._ended(usage))

    @property
    def _status(self) -> str:
        return "incomplete" if self._finish is FinishReason.LENGTH else "completed"

    def _read(self, text: str, *, last: bool) -> bytes:
        """The events of more text; the items are put together meanwhile."""
        return b"".join(self._write(piece) for piece in self._reader.pieces(text, last=last))

    def _write(self, piece: AnswerPiece) -> bytes:
        match piece:
            case ContentPiece(text):
                begun = self._begin("message", role="assistant", content=[])
                kind, more = "output_text", {"content_index": 0, "logprobs": []}
            case ReasoningPiece(text):
                begun = self._begin("reasoning", summary=[], content=[])
                kind, more = "reasoning_text", {"content_index": 0}
            case CallBegin(_, id, name):
                return self._end() + self._begin(
                    "function_call", call_id=id, name=name, arguments=""
                )
            case CallArguments(_, text):
                begun, kind, more = b"", "function_call_arguments", {}
        self._text.append(text)
        return begun + self._item_event(f"response.{kind}.delta", delta=text, **more)

    def _begin(self, kind: str, **fields: Any) -> bytes:
        """What opens an item of a type, unless the one that is open is of it."""
        if self._open == kind:
            return b""
        ended = self._end()
        id = f"{_IDS[kind]}_{self._head.id.removeprefix('resp_')}_{len(self._output)}"
        item = {"id": id, "type": kind, "status": "in_progress", **fields}
        self._open, self._text = kind, []
        self._output.append(item)
        begun = self._event(
            "response.output_item.added", output_index=len(self._output) - 1, item=item
        )
        if (part := self._part("")) is None:
            return ended + begun
        added = self._item_event("response.content_part.added", content_index=0, part=part)
        return ended + begun + added

    def _close(self) -> bytes:
        """What closes the last item; an answer of nothing is an empty message."""
        begun = b"" if self._output else self._begin("message", role="assistant", content=[])
        return begun + self._end(self._status)

    def _end(self, status: str = "completed") -> bytes:
        """What closes the item that is open."""
        if not self._open:
            return b""
        item, text = self._output[-1], "".join(self._text)
        part = self._part(text)
        if part is None:
            item["arguments"] = text
            out = self._item_event(
                "response.function_call_arguments.done", arguments=text, name=item["name"]
            )
        else:
            item["content"] = [part]
            more = {"logprobs": []} if self._open == "message" else {}
            out = self._item_event(
                f"response.{part['type']}.done", content_index=0, text=text, **more
            ) + self._item_event("response.content_part.done", content_index=0, part=part)
        item["status"] = status
        self._open = ""
        index = len(self._output) - 1
        return out + self._event("response.output_item.done", output_index=index, item=item)

    def _part(self, text: str) -> dict[str, Any] | None:
        """The one part of the item that is open; a call has none."""
        match self._open:
            case "message":
                return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
            case "reasoning":
                return {"type": "reasoning_text", "text": text}
        return None

    def _ended(self, usage: UsageInfo) -> dict[str, Any]:
        cut = self._status == "incomplete"
        response = self._response(self._status, self._output) | {
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": usage.prompt_tokens_details.cached_tokens,
                    "cache_write_tokens": 0,
                },
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": dict(usage.completion_tokens_details),
                "total_tokens": usage.total_tokens,
            },
        }
        self._keep(response)
        return response

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._head.id,
            "object": "response",
            "created_at": self._head.created,
            "status": status,
            "model": self._head.model,
            "output": output,
            "error": None,
            "incomplete_details": None,
            "usage": None,
            **self._asked,
        }

    def _item_event(self, kind: str, **fields: Any) -> bytes:
        index = len(self._output) - 1
        return self._event(kind, item_id=self._output[-1]["id"], output_index=index, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = json_bytes({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)
