"""Timing: medians over captured graphs, rotating weights, peers in turn within one run.

A kernel of a few microseconds is shorter than its launch from Python, so launches are captured in
a CUDA graph that goes through all copies of the weight, more than three times the last-level
cache, and the graph is timed with events. Before each timed replay the same graph runs once, so
that the device is busy while the timed one is being queued. Peers alternate, replay by replay, so
that clocks and temperature treat them alike. What cannot be captured is queued launch by launch,
and says so. The time is that of a launch in a chain: gaps between graph nodes are part of it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

Launch = Callable[[int], object]
"""Launches work on the copy with this number."""


@dataclass(frozen=True, slots=True)
class LaunchTime:
    """Time of one launch.

    Attributes:
        us: median in microseconds.
        low: fastest sample.
        high: slowest sample.
        graph: whether launches were captured.
    """

    us: float
    low: float
    high: float
    graph: bool


class Timer(Protocol):
    """Times calls against each other."""

    def time(self, calls: Mapping[str, Launch], copies: int) -> dict[str, LaunchTime | str]:
        """Timing of each call, or the reason why there is none."""
        ...


class WallTimer:
    """One call each by the wall clock: plumbing only, the figures mean nothing."""

    def time(self, calls: Mapping[str, Launch], copies: int) -> dict[str, LaunchTime | str]:
        """See :class:`Timer`."""
        found: dict[str, LaunchTime | str] = {}
        for name, call in calls.items():
            start = time.perf_counter()
            try:
                call(copies - 1)
            # One broken kernel must not hide the others.
            except Exception as error:
                found[name] = reason(error)
                continue
            us = (time.perf_counter() - start) * 1e6
            found[name] = LaunchTime(us, us, us, False)
        return found


class GraphTimer:
    """Medians over replays of captured graphs; see the module.

    Args:
        rounds: timed replays of each call.
        work_us: microseconds of work that one replay should hold, at least.
    """

    def __init__(self, rounds: int = 11, work_us: float = 500.0) -> None:
        self.rounds = rounds
        self.work_us = work_us
        self.stream = torch.cuda.Stream()

    def time(self, calls: Mapping[str, Launch], copies: int) -> dict[str, LaunchTime | str]:
        """See :class:`Timer`."""
        found: dict[str, LaunchTime | str] = {}
        ready: dict[str, tuple[Callable[[], object], int, bool]] = {}
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for name, call in calls.items():
                try:
                    ready[name] = self._prepare(call, copies)
                except Exception as error:
                    found[name] = reason(error)
            samples: dict[str, list[float]] = {name: [] for name in ready}
            for _ in range(self.rounds):
                marks = {}
                for name, (run, _, _) in ready.items():
                    run()
                    marks[name] = _events()
                    marks[name][0].record()
                    run()
                    marks[name][1].record()
                torch.cuda.synchronize()
                for name, (start, end) in marks.items():
                    samples[name].append(start.elapsed_time(end) * 1e3 / ready[name][1])
        torch.cuda.current_stream().wait_stream(self.stream)
        for name, values in samples.items():
            middle = statistics.median(values)
            found[name] = LaunchTime(middle, min(values), max(values), ready[name][2])
        return found

    def _prepare(self, call: Launch, copies: int) -> tuple[Callable[[], object], int, bool]:
        """(replay, launches in it, captured)."""
        # On this stream, so that whatever the first call compiles or allocates is there.
        for _ in range(2):
            call(0)
        torch.cuda.synchronize()
        start, end = _events()
        start.record()
        for index in range(4):
            call(index % copies)
        end.record()
        torch.cuda.synchronize()
        each = max(1.0, start.elapsed_time(end) * 1e3 / 4)
        try:
            graph = self._capture(call, copies, copies)
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            spent = max(1.0, start.elapsed_time(end) * 1e3)
            turns = min(-(-256 // copies), round(self.work_us / spent))
            if turns > 1:
                graph = self._capture(call, copies, turns * copies)
        except Exception:
            torch.cuda.synchronize()
            launches = max(copies, min(64, round(self.work_us / each)))

            def queue() -> None:
                for index in range(launches):
                    call(index % copies)

            return queue, launches, False
        return graph.replay, max(1, turns) * copies, True

    def _capture(self, call: Launch, copies: int, launches: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            for index in range(launches):
                call(index % copies)
        graph.replay()
        torch.cuda.synchronize()
        return graph


def reason(error: BaseException) -> str:
    """A failure in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def copies_for(size: float, l2: int, limit: int = 64) -> int:
    """Copies of ``size`` bytes that make more than three times the last-level cache."""
    return int(min(limit, max(1, 3 * l2 // max(1.0, size) + 1)))
