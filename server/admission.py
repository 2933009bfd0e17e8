"""The bounded queue: who may still come in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..engine.serve.client import EngineClient
from .errors import ApiError, engine_down
from .job import Job
from .metrics import Metrics, Refusal

# The longest that a refused client is asked to stay away, seconds.
_LONGEST_RETRY_S = 60


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bounds of what waits.

    Attributes:
        requests: most requests without a place in the batch.
        tokens: most prompt tokens of requests whose answers have not begun; a prompt larger
            than that is let in when nothing else waits. 0 is no bound.
        wait_s: longest time that a request waits for a place in the batch, seconds; 0 is no
            bound.
    """

    requests: int = 256
    tokens: int = 1 << 20
    wait_s: float = 300.0


class Admission:
    """Refuses requests beyond the queue's bounds; knows the jobs that live.

    Args:
        client: knows how many requests are live and how many run.
        limits: bounds.
        metrics: counts the refusals.
    """

    def __init__(self, client: EngineClient, limits: QueueLimits, metrics: Metrics) -> None:
        self.limits = limits
        self._client = client
        self._metrics = metrics
        self._jobs: set[Job] = set()
        self._preparing = 0
        self._closed = False

    @property
    def open(self) -> bool:
        """Whether anybody is admitted at all."""
        return not self._closed and self._client.health().accepting

    def close(self) -> None:
        """Admit nobody from now on."""
        self._closed = True

    @contextmanager
    def places(self, count: int) -> Iterator[None]:
        """Hold ``count`` places while a request is tokenized and submitted.

        Decided before tokenizing, so that an overloaded server refuses cheaply.

        Raises:
            ApiError: 503 when closed or the engine is down, 429 when the queue is full.
        """
        if not self.open:
            raise engine_down()
        if self._waiting(count) > self.limits.requests:
            raise self._full(Refusal.QUEUE_FULL, f"it holds {self.limits.requests} requests")
        if self._excess(1):
            raise self._full(Refusal.QUEUE_TOKENS_FULL, self._tokens_held())
        self._preparing += count
        try:
            yield
        finally:
            self._preparing -= count

    def check_tokens(self, tokens: int) -> None:
        """Whether prompts of so many tokens in all still fit.

        Raises:
            ApiError: 429.
        """
        if self._excess(tokens):
            raise self._full(
                Refusal.QUEUE_TOKENS_FULL, f"{self._tokens_held()}, and this one has {tokens}"
            )

    def enter(self, job: Job) -> None:
        """Count a job until `leave`."""
        self._jobs.add(job)

    def leave(self, job: Job) -> None:
        """Forget a job that is closed."""
        self._jobs.discard(job)

    def cancel_all(self) -> None:
        """End every job that lives."""
        for job in list(self._jobs):
            job.cancel()

    def _waiting(self, extra: int) -> int:
        """How many would wait if ``extra`` more came."""
        stats = self._client.stats()
        # The counters are a step old: as long as nobody waits, free places count as free.
        places = stats.running if stats.waiting else self._client.config.max_batch
        return self._client.live + self._preparing + extra - places

    def _excess(self, tokens: int) -> bool:
        waiting = sum(job.waiting_tokens for job in self._jobs)
        return 0 < self.limits.tokens < waiting + tokens and waiting > 0

    def _tokens_held(self) -> str:
        return f"it holds prompts of {self.limits.tokens} tokens at most"

    def _full(self, reason: Refusal, bound: str) -> ApiError:
        """A refusal that asks the client to stay away for as long as others have waited."""
        self._metrics.rejection(reason)
        waited = max((job.waited_s for job in self._jobs), default=0.0)
        return ApiError(
            429,
            f"The queue is full, {bound}; try again later.",
            retry_after=max(1, min(_LONGEST_RETRY_S, math.ceil(waited))),
        )
