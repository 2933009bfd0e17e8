"""POST /v1/chat/completions: chunks and body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...engine.request import Completion, Delta, FinishReason, Sampled
from ..answers.pieces import (
    AnswerPiece,
    CallArguments,
    CallBegin,
    ContentPiece,
    ReasoningPiece,
    WholeAnswer,
    WholeCall,
)
from ..answers.plan import PLAIN, AnswerPlan
from ..answers.reader import AnswerReader
from ..responses import AssistantMessage, ChatChoice, ChatCompletion, UsageInfo
from .base import Dialect, Head
from .token_text import TokenText, finite


class ChatDialect(Dialect):
    """Chat completions.

    Args:
        head: what all chunks share.
        tokens: how tokens read.
        n: answers to a prompt.
        rated: log-probabilities are shown; they are those of all tokens, of calls as well.
        plan: what is looked for in the answers.
        prompt: token ids of the conversation, which are shown with those of the answers; None:
            neither are.
    """

    object_name = "chat.completion.chunk"

    def __init__(
        self,
        head: Head,
        tokens: TokenText,
        n: int,
        *,
        rated: bool,
        plan: AnswerPlan = PLAIN,
        prompt: list[int] | None = None,
    ) -> None:
        super().__init__(head, tokens, n, rated=rated, with_ids=prompt is not None)
        self._prompt = prompt
        self._plan = plan
        self._readers: dict[int, AnswerReader] = {}

    def first(self, index: int) -> bytes:
        """The chunk that names the role."""
        choice = self._choice(index, "", None)
        choice["delta"] = {"role": "assistant", "content": ""}
        more: dict[str, Any] = {}
        if self._prompt is not None:
            more["prompt_token_ids"] = self._prompt
        return self._frame([choice], **more)

    def body(self, done: Sequence[Completion], usage: UsageInfo) -> ChatCompletion:
        """The whole response."""
        head = self.head
        choices = []
        for index, _, answer in self._answers(done):
            message, called = self._message(answer.text)
            choices.append(
                ChatChoice(
                    index=index,
                    message=message,
                    logprobs=self._logprobs(answer.logprobs or (), ()) if self._rated else None,
                    finish_reason=self._reason(answer.finish_reason, called),
                    stop_reason=answer.stop_reason,
                    token_ids=list(answer.token_ids) if self._with_ids else None,
                )
            )
        return ChatCompletion(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.fingerprint,
            choices=choices,
            usage=usage,
            prompt_token_ids=self._prompt,
        )

    def reasoning_tokens(self, completion: Completion) -> int:
        """How many tokens of the answers to a prompt are reasoning, its markers included."""
        answers = completion.choices or (completion,)
        ids = [answer.token_ids for answer in answers]
        return sum(self._plan.reasoning_tokens(tokens, self._tokens.bytes) for tokens in ids)

    def _message(self, text: str) -> tuple[AssistantMessage, bool]:
        """An answer as a message, and whether it has calls."""
        if self._plan.syntax is None:
            return AssistantMessage(content=text), False
        whole = WholeAnswer.of(AnswerReader(self._plan).pieces(text, last=True))
        more: dict[str, Any] = {}
        if whole.reasoning:
            more |= _thought(whole.reasoning)
        if whole.calls:
            more["tool_calls"] = [_whole_call(call) for call in whole.calls]
        content = whole.content or (None if whole.calls else "")
        return AssistantMessage(content=content, **more), bool(whole.calls)

    def _pieces(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        if self._plan.syntax is None:
            return super()._pieces(index, delta)
        reader = self._readers.get(index)
        if reader is None:
            reader = self._readers[index] = AnswerReader(self._plan)
        choices = []
        for piece in reader.pieces(delta.text, last=delta.finish is not None):
            choice = self._choice(index, "", None)
            choice["delta"] = _wire(piece)
            choices.append(choice)
        return choices

    def _finish(self, index: int, reason: FinishReason) -> str:
        reader = self._readers.get(index)
        return self._reason(reason, reader is not None and reader.called > 0)

    def _reason(self, reason: FinishReason, called: bool) -> str:
        """OpenAI says "stop" where the client chose the function."""
        if called and reason is FinishReason.STOP and not self._plan.named:
            return "tool_calls"
        return reason.value

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


def _wire(piece: AnswerPiece) -> dict[str, Any]:
    """A piece as the ``delta`` of a chunk."""
    match piece:
        case ContentPiece(text):
            return {"content": text}
        case ReasoningPiece(text):
            return _thought(text)
        case CallBegin(index, id, name):
            return {"tool_calls": [{"index": index, **_whole_call(WholeCall(id, name))}]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def _thought(text: str) -> dict[str, Any]:
    """Reasoning under both names that clients look for."""
    return {"reasoning": text, "reasoning_content": text}


def _whole_call(call: WholeCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}
