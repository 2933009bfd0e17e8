"""Deltas on their way out: to whoever waits for a request, else to the next ``step()``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ..request import Delta


class Outbox:
    """Sorts deltas, so that streams and batches can run beside each other and lose nothing."""

    def __init__(self) -> None:
        self._boxes: dict[str, deque[Delta]] = {}
        self._rest: list[Delta] = []

    def __bool__(self) -> bool:
        """Whether deltas wait for the next ``step()``."""
        return bool(self._rest)

    def open(self, name: str, box: deque[Delta]) -> None:
        """From now on put the deltas of a request into ``box``."""
        self._boxes[name] = box

    def close(self, names: Iterable[str]) -> None:
        """Nobody waits for these requests any more."""
        for name in names:
            self._boxes.pop(name, None)

    def put(self, delta: Delta) -> None:
        """Add a new delta to its box."""
        self._boxes.get(delta.request_id, self._rest).append(delta)

    def take_rest(self) -> list[Delta]:
        """Deltas that belong to no box; they are handed out once."""
        rest, self._rest = self._rest, []
        return rest
