"""What an engine has done so far."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the engine was made, which never fall, and gauges of its last step.

    Attributes:
        running: requests that hold a row.
        waiting: requests in the queue.
        kv_blocks_used: referenced KV blocks.
        kv_blocks_total: all KV blocks.
        prompt_tokens: prompt tokens of finished requests.
        generation_tokens: tokens sampled.
        cached_tokens: prompt tokens that the prefix cache supplied.
        preemptions: requests put back into the queue.
        steps: steps computed.
        finished: finish reason -> requests.
    """

    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    finished: dict[str, int] = field(default_factory=dict)


class Stopwatch:
    """Writes the seconds since the last call under a name into a mapping."""

    def __init__(self, into: dict[str, float]) -> None:
        self._into = into
        self._last = time.perf_counter()

    def __call__(self, name: str) -> None:
        """Note the seconds since the last call, or since the beginning, under ``name``."""
        now = time.perf_counter()
        self._into[name] = now - self._last
        self._last = now
