"""Promises of computing time, tested on machines slower than the one that they are made for.

A crafted file is refused within a second, ``--help`` answers within half of one. Such a bound must
hold on a laptop and catch work that grows out of hand, but not fail where a processor is three
times slower or shared. So it stretches with the time of a plain loop, measured there and then.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

# Seconds of a million additions in Python on the machine that the promises are made for: a
# processor of 2023 at 3 GHz or more.
_MILLION_S = 0.03


def slowdown() -> float:
    """How many times slower than the promises' machine this one is just now; at least 1."""
    return max(1.0, statistics.median(_million_additions() for _ in range(5)) / _MILLION_S)


@contextlib.contextmanager
def computes_within(
    seconds: float, clock: Callable[[], float] = time.process_time
) -> Iterator[None]:
    """Assert that the block takes less than ``seconds``, times the slowdown of this machine.

    Args:
        seconds: bound on the machine that the promises are made for.
        clock: of the process, or of the thread where others compute meanwhile.
    """
    start = clock()
    yield
    assert_computed(clock() - start, seconds)


def assert_computed(took: float, seconds: float) -> None:
    """Assert that ``took`` seconds of computing are within the bound; see `computes_within`."""
    if took >= seconds:  # measured only where it matters: some bounds are tried a thousand times
        factor = slowdown()
        assert took < seconds * factor, f"{took:.2f} s of {seconds} s, slowdown {factor:.1f}"


def _million_additions() -> float:
    start, total = time.process_time(), 0
    for number in range(1_000_000):
        total += number
    return time.process_time() - start
