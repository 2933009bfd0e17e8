"""POST /v1/chat/completions: chunks and body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...engine.request import Completion, Sampled
from ..responses import AssistantMessage, ChatChoice, ChatCompletion, UsageInfo
from .base import Dialect
from .token_text import finite


class ChatDialect(Dialect):
    """Chat completions."""

    object_name = "chat.completion.chunk"

    def first(self, index: int) -> bytes:
        """The chunk that names the role."""
        choice = self._choice(index, "", None)
        choice["delta"] = {"role": "assistant", "content": ""}
        return self._frame([choice])

    def body(self, done: Sequence[Completion], usage: UsageInfo) -> ChatCompletion:
        """The whole response."""
        head = self.head
        choices = [
            ChatChoice(
                index=index,
                message=AssistantMessage(content=answer.text),
                logprobs=self._logprobs(answer.logprobs or (), ()) if self._rated else None,
                finish_reason=answer.finish_reason.value,
                stop_reason=answer.stop_reason,
            )
            for index, _, answer in self._answers(done)
        ]
        return ChatCompletion(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.fingerprint,
            choices=choices,
            usage=usage,
        )

    def _logprobs(self, drawn: Sequence[Sampled], offsets: Sequence[int]) -> dict[str, Any]:
        content = [
            {
                **self._entry(item.token, item.logprob),
                "top_logprobs": [self._entry(token, logprob) for token, logprob in item.top],
            }
            for item in drawn
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        data = self._tokens.bytes(token)
        return {"token": self._tokens.text(token), "logprob": finite(logprob), "bytes": [*data]}

    def _choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        delta = {"content": text} if finish_reason is None else {}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
