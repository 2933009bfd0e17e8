"""vLLM's POST /score, in the one meaning that a causal model gives it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from halfbyte.errors import RequestError

from ..dialects.token_text import LEAST_LOGPROB
from ..job import Call
from ..responses import EmbeddingUsage, ResponseModel
from ..schema import MAX_PROMPTS, ReadingRequest
from ..service import OpenAIService
from ..texts import TextWork
from .renaming import renamed

_NONE = (None,)

Texts = str | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]


class ScoreRequest(ReadingRequest):
    """Body of POST /score: pairs of texts; one ``text_1`` stands before each ``text_2``."""

    not_honoured: ClassVar[Any] = {
        "truncate_prompt_tokens": _NONE,
        "activation": (None, False),
        "use_activation": (None, False),
        "softmax": (None, False),
        "mm_processor_kwargs": (None, {}),
        "chat_template": _NONE,
    }
    text_1: Texts
    text_2: Texts

    @model_validator(mode="after")
    def _pairs_match(self) -> Any:
        first, second = len(_many(self.text_1)), len(_many(self.text_2))
        if first not in (1, second):
            raise RequestError(
                f"text_1 has {first} texts and text_2 {second}; expected one, or as many",
                param="text_1",
            )
        return self

    def pairs(self) -> list[tuple[str, str]]:
        """Each ``text_2`` behind its ``text_1``."""
        first, second = _many(self.text_1), _many(self.text_2)
        if len(first) == 1:
            first = list(first) * len(second)
        return list(zip(first, second, strict=True))


class ScoreItem(ResponseModel):
    """The score of one pair."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreList(ResponseModel):
    """Response of POST /score."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreItem]
    usage: EmbeddingUsage


async def score_pairs(service: OpenAIService, asked: ScoreRequest, call: Call) -> ScoreList:
    """POST /score: the log-probability of each ``text_2`` after its ``text_1``, in nats.

    Raises:
        RequestError: a text without tokens, or a pair that does not fit the context.
    """
    from ...engine.run.readers import LogprobReader

    name, pairs = service.served(asked.model), asked.pairs()
    readers: list[LogprobReader] = []

    async def prepare(texts: TextWork) -> list[tuple[list[int], LogprobReader]]:
        context = service.engine.max_context
        with renamed({"prompt": "text_1"}):
            before = await texts.prompts([a for a, _ in pairs], asked.add_special_tokens, context)
        with renamed({"prompt": "text_2"}):
            after = await texts.prompts([b for _, b in pairs], False, context)
        whole = []
        for index, (first, second) in enumerate(zip(before, after, strict=True)):
            _check(index, first, second, context)
            readers.append(LogprobReader(first + second, 0, begin=len(first) - 1))
            whole.append(first + second)
        return list(zip(whole, readers, strict=True))

    await service.read(asked, call, len(pairs), prepare)
    scores = [
        math.fsum(max(t.logprob or 0.0, LEAST_LOGPROB) for t in reader.prompt() if t is not None)
        for reader in readers
    ]
    return ScoreList(
        id=f"score-{asked.request_id or call.request_id}",
        created=int(time.time()),
        model=name,
        data=[ScoreItem(index=index, score=score) for index, score in enumerate(scores)],
        usage=EmbeddingUsage(prompt_tokens=call.prompt_tokens, total_tokens=call.prompt_tokens),
    )


def _check(index: int, first: Sequence[int], second: Sequence[int], context: int) -> None:
    for name, ids in (("text_1", first), ("text_2", second)):
        if not ids:
            raise RequestError(f"{name} of pair {index} has no token", param=name)
    if (found := len(first) + len(second)) > context:
        raise RequestError(
            f"text_1 and text_2 of pair {index} have {found} tokens, the context holds {context}",
            param="text_2",
            code="context_length_exceeded",
        )


def _many(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts
