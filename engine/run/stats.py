"""What an engine has done so far."""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass, field

STEP_BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper bounds by which steps are tallied, in tokens; there is one more tally without a bound."""


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
        step_tokens: tokens computed in all steps, of prompts and answers alike.
        step_sizes: steps by the tokens that they computed: a tally for each of ``STEP_BOUNDS``, and
            one for larger ones.
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
    step_tokens: int = 0
    step_sizes: tuple[int, ...] = (0,) * (len(STEP_BOUNDS) + 1)


class StepTally:
    """Counts steps by the tokens that they compute.

    Attributes:
        tokens: of all steps.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._sizes = [0] * (len(STEP_BOUNDS) + 1)

    def add(self, tokens: int) -> None:
        """Count a step of so many tokens."""
        self.tokens += tokens
        self._sizes[bisect_left(STEP_BOUNDS, tokens)] += 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """The tallies, as ``EngineStats.step_sizes`` has them."""
        return tuple(self._sizes)

    @property
    def steps(self) -> int:
        """All steps."""
        return sum(self._sizes)


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
