"""The frames of a streamed response, and the end of the work behind them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping

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

    def mapped(
        self, change: Callable[[AsyncGenerator[bytes, None]], AsyncGenerator[bytes, None]]
    ) -> EventStream:
        """The same work behind changed frames.

        Args:
            change: makes the new frames of these, which it closes when it is closed.
        """
        return EventStream(change(self._events), self._job, self.headers)

    async def aclose(self) -> None:
        """End the stream. A generator never started runs no finally, hence the job here."""
        self._job.close()
        await self._events.aclose()
