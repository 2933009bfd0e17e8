"""Who looks at what is computed of a prompt: log-probabilities, logits, pooled hidden states.

A reader belongs to a request (``PromptReader`` in ``engine/request.py``): the scheduler computes
its prompt in chunks beside everything else, whole, and the runner shows it each chunk. After a
preemption the chunks come again; what was seen is not read twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from halfbyte.errors import HalfbyteError

from ..request import PromptScore, Sampled
from .logprobs import likeliest

Pooling = Literal["mean", "last", "cls"]

UNREADABLE = "what the model computed of the prompt is not finite numbers"
"""Why nothing can be told of a prompt: NaN, or nothing above -inf, or an infinite largest one."""


class _Reader(ABC):
    """Positions read so far, and what is new of a chunk."""

    hidden = False

    def __init__(self, begin: int = 0) -> None:
        self.begin = begin
        self.seen = begin

    def read(self, start: int, rows_TC: Tensor) -> None:
        """Take in rows [T, C] of the positions from ``start``.

        Raises HalfbyteError for rows that are not finite numbers.
        """
        new_TC = rows_TC[max(self.seen - start, 0) :]
        if len(new_TC):
            assert start <= self.seen, "a chunk of the prompt was left out"
            new_TC = new_TC.to("cpu", torch.float32)
            if not bool(new_TC.amax(-1).isfinite().all()):  # NaN when any is
                raise HalfbyteError(UNREADABLE)
            self._take(new_TC)
            self.seen += len(new_TC)

    @abstractmethod
    def _take(self, rows_TC: Tensor) -> None:
        """Take in the rows of positions that were not seen before."""


class LogitsReader(_Reader):
    """Keeps the logits of every position."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[Tensor] = []

    @property
    def logits(self) -> Tensor:
        """Float32 logits [T, V] of the whole prompt."""
        return torch.cat(self._pieces)

    def _take(self, rows_TC: Tensor) -> None:
        # The next step may overwrite what this one computed.
        self._pieces.append(rows_TC.clone())


class LogprobReader(_Reader):
    """Log-probabilities of a prompt's tokens, and of the likeliest ones at their places.

    Args:
        token_ids: the prompt.
        count: how many of the likeliest.
        begin: the first position whose logits are read: those of the token after it.
    """

    def __init__(self, token_ids: Sequence[int], count: int, begin: int = 0) -> None:
        super().__init__(begin)
        self._ids = token_ids
        self._count = count
        self._rated: list[Sampled] = []

    def _take(self, rows_TC: Tensor) -> None:
        # One row at a time: a [T, V] matrix of log-probabilities need not exist. The last row
        # has no token of the prompt after it.
        for logits_V, token in zip(rows_TC, self._ids[self.seen + 1 :], strict=False):
            row = logits_V.log_softmax(-1)
            self._rated.append(Sampled(token, float(row[token]), likeliest(row, self._count)))

    @property
    def whole(self) -> bool:
        """Whether the prompt was read to its end."""
        return self.seen == len(self._ids)

    def prompt(self) -> tuple[Sampled | None, ...]:
        """Every token of the prompt; None for the first, before which nothing stands.

        Nor for any up to the position from which it reads.
        """
        return (*[None] * (self.begin + 1), *self._rated)

    def score(self) -> PromptScore:
        """The same as a score; at least one of the likeliest was asked for."""
        best = [rated.top[0] for rated in self._rated]
        return PromptScore(
            list(self._ids),
            [None, *(rated.logprob for rated in self._rated)],
            [None, *(token for token, _ in best)],
            [None, *(logprob for _, logprob in best)],
        )


class PoolingReader(_Reader):
    """Pools the hidden states after the last norm into one vector.

    Args:
        pooling: the mean over all positions, the last one, or the first (``cls``).
    """

    hidden = True

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self._pooling = pooling
        self._sum: Tensor | None = None

    def _take(self, rows_TC: Tensor) -> None:
        match self._pooling:
            case "mean":
                # float64: the sum is the same however the prompt was cut, to float32's digits.
                part = rows_TC.double().sum(0)
                self._sum = part if self._sum is None else self._sum + part
            case "last":
                self._sum = rows_TC[-1].clone()
            case "cls" if self._sum is None:
                self._sum = rows_TC[0].clone()

    def pooled(self, *, normalize: bool) -> Tensor:
        """The vector [D], float32; scaled to length 1 with ``normalize``."""
        assert self._sum is not None
        vector_D = self._sum / self.seen if self._pooling == "mean" else self._sum
        return (torch.nn.functional.normalize(vector_D, dim=-1) if normalize else vector_D).float()
