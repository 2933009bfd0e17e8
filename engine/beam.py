"""Beam search, on top of the engine: every step asks for the likeliest next tokens of each beam.

Beams share their beginnings in the prefix cache, so a step computes the last block of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from halfbyte.errors import EngineDeadError, RequestError

from .param_table import MAX_TOP_LOGPROBS
from .params import SamplingParams
from .request import Completion, FinishReason

MAX_BEAMS = MAX_TOP_LOGPROBS // 2


@dataclass(frozen=True, slots=True)
class Beam:
    """One of the likeliest answers.

    Attributes:
        token_ids: its tokens, the end-of-text id included where it ended so.
        logprob: sum of their log-probabilities, in nats.
        score: ``logprob / tokens ** length_penalty``, by which beams are ordered.
        text: decoded answer, without special tokens.
        finish_reason: ``stop`` at an end-of-text id, else ``length``.
    """

    token_ids: tuple[int, ...]
    logprob: float
    score: float
    text: str = ""
    finish_reason: FinishReason = FinishReason.LENGTH


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """What a search is made with.

    Attributes:
        width: beams that are kept, from 1 to 10.
        max_tokens: most tokens of an answer, at least 1.
        length_penalty: 0 prefers short answers, 1 the likeliest token in the mean, in [-5, 5].

    Raises:
        RequestError: a value is outside its range.
    """

    width: int
    max_tokens: int
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, low, high in (("width", 1, MAX_BEAMS), ("max_tokens", 1, 1 << 31)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise RequestError(
                    f"{name} is {value!r:.60}; expected a whole number from {low} to {high}",
                    param=name,
                )
        if not isinstance(self.length_penalty, (int, float)) or not -5 <= self.length_penalty <= 5:
            raise RequestError(
                f"length_penalty is {self.length_penalty!r:.60}; expected a number in [-5, 5]",
                param="length_penalty",
            )

    def run(
        self,
        prompt: Sequence[int],
        ends: frozenset[int],
        generate: Callable[[list[list[int]], SamplingParams], list[Completion]],
    ) -> list[Beam]:
        """The best beams, best first, without their text.

        Args:
            prompt: token ids.
            ends: tokens that end an answer.
            generate: answers prompts as one batch.

        Raises:
            EngineDeadError: a step failed.
        """
        params = SamplingParams(
            temperature=0.0, max_tokens=1, logprobs=2 * self.width, ignore_eos=True
        )
        live, ended = [Beam((), 0.0, 0.0)], list[Beam]()
        for _ in range(self.max_tokens):
            done = generate([[*prompt, *beam.token_ids] for beam in live], params)
            grown: list[Beam] = []
            for beam, completion in zip(live, done, strict=True):
                if completion.logprobs is None or len(completion.logprobs) != 1:
                    raise EngineDeadError(f"a step of the search failed: {completion.error}")
                grown += [self._with(beam, t, lp) for t, lp in completion.logprobs[0].top]
            # Of twice as many as are kept, at least so many do not end.
            grown = sorted(grown, key=_order)[: 2 * self.width]
            ended += [self._as_ended(beam) for beam in grown if beam.token_ids[-1] in ends]
            live = [beam for beam in grown if beam.token_ids[-1] not in ends][: self.width]
            ended = sorted(ended, key=_order)[: self.width]
            if len(ended) == self.width and not self._may_improve(live, ended[-1]):
                live = []
            if not live:
                break
        return sorted([*ended, *live], key=_order)[: self.width]

    def _may_improve(self, live: list[Beam], worst: Beam) -> bool:
        """Whether a live beam may yet score better than the worst one that has ended.

        Its sum only falls; the penalty of the longest answer is the kindest to it.
        """
        kindest = max(self.max_tokens**self.length_penalty, 1.0)
        return any(beam.logprob / kindest > worst.score for beam in live)

    def _with(self, beam: Beam, token: int, logprob: float) -> Beam:
        ids, total = (*beam.token_ids, token), beam.logprob + logprob
        return Beam(ids, total, total / len(ids) ** self.length_penalty)

    @staticmethod
    def _as_ended(beam: Beam) -> Beam:
        return Beam(beam.token_ids, beam.logprob, beam.score, finish_reason=FinishReason.STOP)


def _order(beam: Beam) -> tuple[float, tuple[int, ...]]:
    """Best first; equal scores by their tokens, so that the order is always the same."""
    return -beam.score, beam.token_ids
