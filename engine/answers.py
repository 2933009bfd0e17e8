"""Classification by allowed answers: how likely each of them is to follow a prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from halfbyte.errors import RequestError

from .request import Sampled
from .text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """One of several answers to a prompt.

    Attributes:
        answer: its text.
        tokens: how many tokens it has.
        logprob: sum of their log-probabilities, in nats.
        probability: its share among the answers given; they sum to 1.
    """

    answer: str
    tokens: int
    logprob: float
    probability: float

    @property
    def mean_logprob(self) -> float:
        """Log-probability of a token in the mean, which does not prefer short answers."""
        return self.logprob / self.tokens


def answer_ids(answers: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of each answer, as a continuation. Raises RequestError."""
    if isinstance(answers, str) or not answers:
        raise RequestError(
            f"answers is {answers!r:.60}; expected a list of at least one text", param="answers"
        )
    out = [tokenizer.encode(text, add_bos=False, parse_special=False) for text in answers]
    for text, ids in zip(answers, out, strict=True):
        if not ids:
            raise RequestError(f"answers holds {text!r:.60}, which has no token", param="answers")
    return out


def answer_scores(
    answers: Sequence[str], rated: Sequence[Sequence[Sampled | None]]
) -> list[AnswerScore]:
    """Scores from the rated tokens of each answer."""
    sums = [math.fsum(t.logprob or 0.0 for t in tokens if t is not None) for tokens in rated]
    best = max(sums)
    total = math.fsum(math.exp(s - best) for s in sums)
    return [
        AnswerScore(text, len(tokens), s, math.exp(s - best) / total)
        for text, tokens, s in zip(answers, rated, sums, strict=True)
    ]
