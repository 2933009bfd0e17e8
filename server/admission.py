"""The bounded queue: who may still come in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..engine.client import EngineClient
from .errors import ApiError, engine_down
from .metrics import Metrics


class Admission:
    """Refuses requests beyond a number of waiting ones.

    Args:
        client: knows how many requests are live and how many run.
        max_waiting: most requests without a place in the batch.
        metrics: counts the refusals.
    """

    def __init__(self, client: EngineClient, max_waiting: int, metrics: Metrics) -> None:
        self._client = client
        self._max_waiting = max_waiting
        self._metrics = metrics
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
        if self._waiting(count) > self._max_waiting:
            self._metrics.rejection("queue_full")
            raise ApiError(
                429,
                f"The queue is full, it holds {self._max_waiting} requests; try again later.",
                retry_after=1,
            )
        self._preparing += count
        try:
            yield
        finally:
            self._preparing -= count

    def _waiting(self, extra: int) -> int:
        """How many would wait if ``extra`` more came."""
        stats = self._client.stats()
        # The counters are a step old: as long as nobody waits, free places count as free.
        places = stats.running if stats.waiting else self._client.config.max_batch
        return self._client.live + self._preparing + extra - places
