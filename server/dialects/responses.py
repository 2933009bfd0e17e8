"""POST /v1/responses: OpenAI's typed events and body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from ...engine.request import Completion, Delta, FinishReason
from ..errors import ApiError
from ..responses import FreeResponse, UsageInfo
from .base import Head, ResponseWriter


class ResponseObject(FreeResponse):
    """Response of POST /v1/responses, which is in its last event as well."""


class ResponsesWriter(ResponseWriter):
    """One output item, a message of one text.

    Args:
        head: id, time and model of the response.
        asked: fields of the request that the response repeats.
    """

    def __init__(self, head: Head, asked: Mapping[str, Any]) -> None:
        self._head = head
        self._asked = asked
        self._item_id = "msg_" + head.id.removeprefix("resp_")
        self._number = 0
        self._text: list[str] = []
        self._finish: FinishReason | None = None

    def opening(self, prompts: int) -> bytes:
        """The response, its item and its part, all without content."""
        begun = self._response("in_progress", [])
        return (
            self._event("response.created", response=begun)
            + self._event("response.in_progress", response=begun)
            + self._event(
                "response.output_item.added", output_index=0, item=self._item("in_progress", [])
            )
            + self._part_event("response.content_part.added", part=_part(""))
        )

    def delta(self, prompt: int, delta: Delta) -> bytes:
        """A piece of the text; how it ended is told at the close."""
        self._finish = delta.finish or self._finish
        if not delta.text:
            return b""
        self._text.append(delta.text)
        return self._part_event("response.output_text.delta", delta=delta.text, logprobs=[])

    def closing(self, usage: UsageInfo) -> bytes:
        """The ends of text, part, item and response, each with all that it holds."""
        text, response = "".join(self._text), self._ended("".join(self._text), usage)
        return (
            self._part_event("response.output_text.done", text=text, logprobs=[])
            + self._part_event("response.content_part.done", part=_part(text))
            + self._event("response.output_item.done", output_index=0, item=response["output"][0])
            + self._event(f"response.{response['status']}", response=response)
        )

    def failure(self, error: ApiError) -> bytes:
        """The response as failed."""
        told = {"code": error.code, "message": error.message}
        failed = self._response("failed", []) | {"error": told}
        return self._event("response.failed", response=failed)

    def body(self, done: Sequence[Completion], usage: UsageInfo) -> ResponseObject:
        """The whole response."""
        (answer,) = done
        self._finish = answer.finish_reason
        return ResponseObject(fields=self._ended(answer.text, usage))

    def _ended(self, text: str, usage: UsageInfo) -> dict[str, Any]:
        cut = self._finish is FinishReason.LENGTH
        status = "incomplete" if cut else "completed"
        return self._response(status, [self._item(status, [_part(text)])]) | {
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": usage.prompt_tokens_details.cached_tokens,
                    "cache_write_tokens": 0,
                },
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.total_tokens,
            },
        }

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

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _part_event(self, kind: str, **fields: Any) -> bytes:
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = orjson.dumps({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
