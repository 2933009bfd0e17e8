"""How much one key may ask for in a minute."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from .errors import ApiError

_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """Bounds of each key; 0 is no bound.

    Attributes:
        requests: a minute.
        tokens: of prompts and answers, a minute.
    """

    requests: int = 0
    tokens: int = 0


class _Bucket:
    """Fills up in a minute; may be emptied below nothing, and then takes longer."""

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self.most = most
        self._clock = clock
        self._left = float(most)
        self._at = clock()

    def wait_s(self) -> float:
        """Seconds until there is at least one in it; 0 now."""
        now = self._clock()
        self._left = min(self.most, self._left + (now - self._at) * self.most / _MINUTE_S)
        self._at = now
        return max(0.0, (1 - self._left) * _MINUTE_S / self.most) if self.most else 0.0

    def take(self, count: int) -> None:
        self._left -= count


class Quota:
    """What is left to one key.

    A request is let in while anything is left, and counts in full: its prompt when it comes, its
    answer when it has ended. So a request larger than what is left is answered, and those after it
    wait for that long.

    Args:
        limits: a minute's.
        clock: seconds.
    """

    def __init__(self, limits: QuotaLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._requests = _Bucket(limits.requests, clock)
        self._tokens = _Bucket(limits.tokens, clock)

    def enter(self, tokens: int) -> None:
        """Let a request in and count it with ``tokens`` of its prompts.

        Raises:
            ApiError: 429, with the seconds to stay away.
        """
        for bucket, what in ((self._requests, "requests"), (self._tokens, "tokens")):
            wait = bucket.wait_s()
            if wait > 0:
                raise ApiError(
                    429,
                    f"This API key may ask for {bucket.most} {what} a minute, and has.",
                    code="rate_limit_exceeded",
                    retry_after=math.ceil(wait),
                )
        self._requests.take(1)
        self._tokens.take(tokens)

    def spend(self, tokens: int) -> None:
        """Count tokens of answers."""
        self._tokens.take(tokens)
