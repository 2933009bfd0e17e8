"""What an engine tells of prompts without answering them: logits, scores, vectors, choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor

from halfbyte.errors import EngineDeadError, RequestError

from .answers import AnswerScore, answer_ids, answer_scores
from .params import PROMPT_ONLY, SamplingParams
from .request import Completion, FinishReason, PromptReader, PromptScore
from .run.readers import LogitsReader, LogprobReader, Pooling, PoolingReader
from .text.tokenizer import Tokenizer

Run = Callable[[Sequence[tuple[list[int], SamplingParams, PromptReader | None]]], list[Completion]]
"""Runs prompts as one batch, each with its parameters and its reader."""


class PromptReading:
    """Reads prompts through the engine's own steps, beside whatever else runs.

    Args:
        run: the engine's.
        max_context: most tokens of a prompt.
    """

    def __init__(self, run: Run, max_context: int) -> None:
        self._run = run
        self._max_context = max_context

    def logits(self, ids: list[int]) -> Tensor:
        """Float32 logits [T, V]; see ``Engine.logits``."""
        reader = LogitsReader()
        self._read([(ids, reader)])
        return reader.logits

    def scores(self, prompts: Sequence[list[int]]) -> list[PromptScore]:
        """See ``Engine.score``."""
        readers = [LogprobReader(ids, 1) for ids in prompts]
        self._read(list(zip(prompts, readers, strict=True)))
        return [reader.score() for reader in readers]

    def vectors(self, prompts: Sequence[list[int]], pooling: Pooling, normalize: bool) -> Tensor:
        """Vectors [N, D]; see ``Engine.embed``. Raises RequestError for an unknown pooling."""
        if pooling not in get_args(Pooling):
            raise RequestError(
                f"pooling is {pooling!r:.60}; expected one of {', '.join(get_args(Pooling))}",
                param="pooling",
            )
        readers = [PoolingReader(pooling) for _ in prompts]
        self._read(list(zip(prompts, readers, strict=True)))
        return torch.stack([reader.pooled(normalize=normalize) for reader in readers])

    def choices(
        self, ids: list[int], answers: Sequence[str], tokenizer: Tokenizer
    ) -> list[AnswerScore]:
        """See ``Engine.choose``."""
        endings = answer_ids(answers, tokenizer)
        readers = [LogprobReader(ids + end, 0, begin=len(ids) - 1) for end in endings]
        self._read([(ids + end, reader) for end, reader in zip(endings, readers, strict=True)])
        return answer_scores(answers, [reader.prompt()[len(ids) :] for reader in readers])

    def _read(self, wanted: Sequence[tuple[list[int], PromptReader]]) -> None:
        """Compute prompts and let readers look at them."""
        for ids, _ in wanted:
            if len(ids) > self._max_context:
                raise RequestError(
                    f"{len(ids)} tokens, but the context holds {self._max_context}",
                    param="token_ids",
                    code="context_length_exceeded",
                )
        for done in self._run([(ids, PROMPT_ONLY, reader) for ids, reader in wanted]):
            if done.finish_reason is not FinishReason.LENGTH:
                raise EngineDeadError(f"a prompt could not be computed: {done.error}")
