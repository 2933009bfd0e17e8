"""Raw samples of a result file as figures that can be compared, checked one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from halfbyte.errors import ResultFileError

from .noise import PercentileOf, ShareOf, Statistic

_LEAST_FOR_TAIL = 40
_TAIL = 95.0


@dataclass(frozen=True, slots=True)
class FigureSamples:
    """A figure of a run and the samples that it is of.

    Attributes:
        statistic: what it is.
        better: which way is better.
    """

    statistic: Statistic
    better: Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class RunSamples:
    """What a result file holds of samples.

    Attributes:
        figures: by name, in the order in which they are shown.
        requests: number of requests that ended, 0 where there were none.
        failed: of them, those that failed.
    """

    figures: dict[str, FigureSamples]
    requests: int = 0
    failed: int = 0


def run_samples(path: Path, found: Mapping[str, Any]) -> RunSamples:
    """The samples of a result that was read with ``read_result``.

    Raises:
        ResultFileError: a list of samples is missing or has something else in it.
    """
    kind = found["kind"]
    if kind == "serve":
        return _of_requests(path, found)
    if kind == "sweep":
        points = _list(path, found, "points")
        each = {
            str(_entry(path, point, "points").get("point")): _of_requests(path, point)
            for point in points
        }
        return RunSamples(
            {f"{point}: {k}": f for point, run in each.items() for k, f in run.figures.items()},
            sum(run.requests for run in each.values()),
            sum(run.failed for run in each.values()),
        )
    if kind == "startup":
        runs = [_entry(path, run, "runs") for run in _list(path, found, "runs")]
        names = dict.fromkeys(name for run in runs for name in run)
        return RunSamples(
            {
                f"{name} s": _mean(_numbers(path, [run.get(name) for run in runs], name), "lower")
                for name in names
            }
        )
    rows = [_entry(path, row, "rows") for row in _list(path, found, "rows")]
    return RunSamples(
        {
            f"{row.get('test')} b{row.get('batch')}": _mean(
                _numbers(path, row.get("samples"), "samples"), "higher"
            )
            for row in rows
        }
    )


def _of_requests(path: Path, found: Mapping[str, Any]) -> RunSamples:
    """Figures of a run of requests; latencies in milliseconds."""
    errors = _list(path, found, "errors")
    done = np.array([not error for error in errors], dtype=bool)
    names = ("latencies", "ttfts", "output_lens", "input_lens")
    columns = [_numbers(path, found.get(name), name, len(errors))[done] for name in names]
    latency, ttft, tokens, prompts = columns
    itls = _list(path, found, "itls")
    if len(itls) != len(errors):
        raise ResultFileError(f"{path}: itls has {len(itls)} entries; expected {len(errors)}")
    gaps = [_numbers(path, gap, "itls") for gap, good in zip(itls, done, strict=True) if good]
    duration = found.get("duration")
    if not isinstance(duration, (int, float)) or not duration > 0:
        raise ResultFileError(f"{path}: duration is {duration!r:.40}; expected seconds above 0")
    # How many ran at a time on average. Times what they had over how long they took that is the
    # throughput, and so a request that took long counts for as much as it did.
    at_once = float(latency.sum()) / duration
    one = np.ones(len(latency))
    several = tokens > 1
    tpot = (latency - ttft)[several] / (tokens[several] - 1)

    def rate(each: np.ndarray) -> FigureSamples:
        return FigureSamples(ShareOf(each, latency, at_once), "higher")

    figures = {
        "request_throughput": rate(one),
        "output_throughput": rate(tokens),
        "total_token_throughput": rate(tokens + prompts),
    }
    limits = found.get("flags", {}).get("limits_ms")
    if isinstance(limits, dict) and limits:
        figures["request_goodput"] = rate(_good(limits, ttft, tokens, latency))
    latencies = {"ttft": ttft, "tpot": tpot, "e2el": latency}
    figures |= {f"mean_{name}_ms": _mean(1000 * s, "lower") for name, s in latencies.items()}
    figures["mean_itl_ms"] = FigureSamples(
        ShareOf(
            np.array([1000 * gap.sum() for gap in gaps]),
            np.array([float(len(gap)) for gap in gaps]),
        ),
        "lower",
    )
    for name, seconds in latencies.items():
        if len(seconds) >= _LEAST_FOR_TAIL:
            tail = PercentileOf(1000 * seconds, _TAIL)
            figures[f"p{_TAIL:.0f}_{name}_ms"] = FigureSamples(tail, "lower")
    return RunSamples(figures, len(errors), int((~done).sum()))


def _good(
    limits_ms: Mapping[str, Any], ttft: np.ndarray, tokens: np.ndarray, latency: np.ndarray
) -> np.ndarray:
    """1 for each request that meets all objectives, 0 for others."""
    tpot = np.where(tokens > 1, (latency - ttft) / np.maximum(tokens - 1, 1), 0.0)
    found = np.ones(len(ttft), dtype=bool)
    for name, seconds in (("ttft", ttft), ("tpot", tpot), ("e2el", latency)):
        limit = limits_ms.get(name)
        if isinstance(limit, (int, float)):
            found &= seconds <= limit / 1000
    return found.astype(float)


def _mean(values: np.ndarray, better: Literal["higher", "lower"]) -> FigureSamples:
    return FigureSamples(ShareOf(values, np.ones(len(values))), better)


def _list(path: Path, found: Mapping[str, Any], name: str) -> list[Any]:
    """A list of a result. Raises ResultFileError."""
    value = found.get(name)
    if not isinstance(value, list):
        raise ResultFileError(f"{path}: {name} is {value!r:.60}; expected a list of samples")
    return value


def _entry(path: Path, value: Any, name: str) -> dict[str, Any]:
    """An object in a list. Raises ResultFileError."""
    if not isinstance(value, dict):
        raise ResultFileError(f"{path}: {name} holds {value!r:.60}; expected objects")
    return value


def _numbers(path: Path, values: Any, name: str, count: int | None = None) -> np.ndarray:
    """Samples as float64. Raises ResultFileError for what is no list of numbers from 0 up."""
    if not isinstance(values, list):
        raise ResultFileError(f"{path}: {name} is {values!r:.60}; expected a list of samples")
    if count is not None and len(values) != count:
        raise ResultFileError(f"{path}: {name} has {len(values)} entries; expected {count}")
    for value in values:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf:
            raise ResultFileError(f"{path}: {name} holds {value!r:.60}; expected numbers from 0 up")
    return np.array(values, dtype=float)
