"""The frames of a streamed response, and the end of the work behind them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from .job import Job


class EventStream:
    """Framed events of one response; must be closed, which cancels what still runs.

    Attributes:
        headers: of the response.
    """

    def __init__(
        self, events: AsyncGenerator[bytes, None], job: Job, headers: Mapping[str, str]
    ) -> None:
        self.headers = headers
        self._events = events
        self._job = job

    def __aiter__(self) -> AsyncGenerator[bytes, None]:
        return self._events

    async def aclose(self) -> None:
        """End the stream. A generator never started runs no finally, hence the job here."""
        self._job.close()
        await self._events.aclose()
