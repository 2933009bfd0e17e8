"""POST /v1/completions: chunks and body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...engine.request import Completion, Delta, Sampled
from ..responses import CompletionChoice, CompletionLogprobs, TextCompletion, UsageInfo
from .base import Dialect, Head
from .token_text import TokenText, finite


class CompletionDialect(Dialect):
    """Text completions.

    Args:
        head: what all chunks share.
        tokens: how tokens read.
        n: answers to a prompt.
        rated: log-probabilities are shown.
        echo: texts of the prompts, which the answers begin with; none: they do not.
        prompts: token ids of the prompts.
        prompt_logprobs: vLLM's field of that name is shown.
        with_ids: the ids of the tokens of prompts and answers are shown.
    """

    object_name = "text_completion"

    def __init__(
        self,
        head: Head,
        tokens: TokenText,
        n: int,
        *,
        rated: bool,
        echo: Sequence[str] = (),
        prompts: Sequence[list[int]] = (),
        prompt_logprobs: bool = False,
        with_ids: bool = False,
    ) -> None:
        super().__init__(head, tokens, n, rated=rated, with_ids=with_ids)
        self._echo = echo
        self._prompts = prompts
        self._prompt_logprobs = prompt_logprobs
        self._begun: set[tuple[int, int]] = set()

    def first(self, index: int) -> bytes:
        """Text completions open with their first text."""
        return b""

    def delta(self, prompt: int, delta: Delta) -> bytes:
        """As for every dialect; the prompt's text goes before the first piece."""
        out = b""
        begins = (prompt, delta.index) not in self._begun
        if begins and (self._echo or self._with_ids):
            self._begun.add((prompt, delta.index))
            text = self._echo[prompt] if self._echo else ""
            choice = self._choice(prompt * self._n + delta.index, text, None)
            if self._with_ids:
                choice |= {"prompt_token_ids": self._prompts[prompt], "token_ids": []}
            out = self._frame([choice])
        return out + super().delta(prompt, delta)

    def body(self, done: Sequence[Completion], usage: UsageInfo) -> TextCompletion:
        """The whole response."""
        head = self.head
        choices = [
            CompletionChoice(
                index=index,
                text=(self._echo[prompt] if self._echo else "") + answer.text,
                logprobs=self._whole(prompt, done[prompt], answer) if self._rated else None,
                finish_reason=answer.finish_reason.value,
                stop_reason=answer.stop_reason,
                prompt_logprobs=self._of_prompt(done[prompt]),
                prompt_token_ids=self._prompts[prompt] if self._with_ids else None,
                token_ids=list(answer.token_ids) if self._with_ids else None,
            )
            for index, prompt, answer in self._answers(done)
        ]
        return TextCompletion(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.fingerprint,
            choices=choices,
            usage=usage,
        )

    def _of_prompt(self, completion: Completion) -> list[dict[str, Any] | None] | None:
        rated = completion.prompt_logprobs
        return self._tokens.prompt(rated) if self._prompt_logprobs and rated is not None else None

    def _whole(self, prompt: int, group: Completion, answer: Completion) -> CompletionLogprobs:
        """Log-probabilities of an answer, behind those of its prompt where that is echoed."""
        drawn: list[Sampled | None] = list(answer.logprobs or ())
        offsets = list(answer.text_offsets or ())
        tokens = list(answer.token_ids)
        if self._echo:
            text = self._echo[prompt]
            before: list[int] = []
            at = 0
            for token in self._prompts[prompt]:
                before.append(min(at, len(text)))
                at += len(self._tokens.bytes(token).decode("utf-8", "replace"))
            drawn = [*(group.prompt_logprobs or ()), *drawn]
            offsets = [*before, *(len(text) + offset for offset in offsets)]
            tokens = [*self._prompts[prompt], *tokens]
        return self._columns(tokens, drawn, offsets)

    def _logprobs(self, drawn: Sequence[Sampled], offsets: Sequence[int]) -> dict[str, Any]:
        columns = self._columns([item.token for item in drawn], list(drawn), list(offsets))
        return columns.model_dump()

    def _columns(
        self, tokens: list[int], drawn: list[Sampled | None], offsets: list[int]
    ) -> CompletionLogprobs:
        return CompletionLogprobs(
            tokens=[self._tokens.text(token) for token in tokens],
            token_logprobs=[None if item is None else finite(item.logprob) for item in drawn],
            top_logprobs=[None if item is None else self._top(item) for item in drawn],
            text_offset=offsets,
        )

    def _top(self, item: Sampled) -> dict[str, float | None]:
        """The likeliest tokens, and the one that is there."""
        pairs = [*item.top, (item.token, item.logprob)]
        return {self._tokens.text(token): finite(logprob) for token, logprob in pairs}

    def _choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}
