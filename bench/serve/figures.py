"""Figures of a run, by the names and formulas of ``vllm bench serve``.

- TTFT: from sending a request to its first event with text.
- ITL: between two such events; one that brings several tokens is one gap.
- E2EL: from sending a request to its last event with text.
- TPOT, of a request with several tokens: (E2EL - TTFT) / (tokens - 1).
- Throughputs divide what the completed requests had by the duration of the run. Goodput counts
  those alone that meet every objective; the TPOT of a single token is 0.

Tokens are those of the server's ``usage``. vLLM takes every event with a choice for a token; here
one without text, such as the first of a chat, which only names the role, is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import ConfigError

from .load import LoadResult, RequestSample

LATENCIES = ("ttft", "tpot", "itl", "e2el")
"""Names of what percentiles are taken of."""
OBJECTIVES = ("ttft", "tpot", "e2el")
"""Names that a goodput may bound."""


def tpot_s(sample: RequestSample) -> float:
    """Seconds per token after the first; 0 for a single token."""
    if sample.output_tokens < 2:
        return 0.0
    return (sample.latency_s - sample.ttft_s) / (sample.output_tokens - 1)


_OF_REQUEST: dict[str, Callable[[RequestSample], float]] = {
    "ttft": lambda sample: sample.ttft_s,
    "tpot": tpot_s,
    "e2el": lambda sample: sample.latency_s,
}


def objectives(pairs: Sequence[str]) -> dict[str, float]:
    """``ttft:500`` and the like as milliseconds by name.

    Raises:
        ConfigError: one is no such pair.
    """
    found: dict[str, float] = {}
    for pair in pairs:
        name, _, text = pair.partition(":")
        try:
            limit = float(text)
        except ValueError:
            limit = math.nan
        if name not in OBJECTIVES or not limit >= 0:
            raise ConfigError(
                f"--goodput is {pair!r:.60}; expected NAME:MILLISECONDS with one of "
                f"{', '.join(OBJECTIVES)}, such as ttft:500"
            )
        found[name] = limit
    return found


def percentile_word(value: float) -> str:
    """A percentile as keys have it: ``99``, ``99.9``."""
    return str(int(value)) if int(value) == value else str(value)


def seconds_of(name: str, samples: Sequence[RequestSample]) -> list[float]:
    """Every value of a latency of `LATENCIES` over completed requests."""
    if name == "itl":
        return [gap for sample in samples for gap in sample.itl_s]
    if name == "tpot":
        samples = [sample for sample in samples if sample.output_tokens > 1]
    return [_OF_REQUEST[name](sample) for sample in samples]


def serve_figures(
    result: LoadResult,
    percentiles: Sequence[float],
    limits_ms: Mapping[str, float],
    latencies: Sequence[str] = LATENCIES,
) -> dict[str, Any]:
    """All figures of a run, and what it was of each request, as plain JSON types.

    Args:
        result: the run.
        percentiles: 0 to 100.
        limits_ms: objectives of the goodput; without any it is null.
        latencies: which latencies there are figures of.
    """
    every = result.samples
    done = [sample for sample in every if not sample.error]
    duration = result.duration_s
    tokens_in = sum(sample.prompt_tokens for sample in done)
    tokens_out = sum(sample.output_tokens for sample in done)
    good = sum(
        all(_OF_REQUEST[name](sample) <= ms / 1000 for name, ms in limits_ms.items())
        for sample in done
    )
    figures: dict[str, Any] = {
        "duration": duration,
        "completed": len(done),
        "failed": len(every) - len(done),
        "interrupted": result.interrupted,
        "total_input_tokens": tokens_in,
        "total_output_tokens": tokens_out,
        "request_throughput": len(done) / duration,
        "request_goodput": good / duration if limits_ms else None,
        "output_throughput": tokens_out / duration,
        "total_token_throughput": (tokens_in + tokens_out) / duration,
        "max_output_tokens_per_s": _busiest_second(done),
        "max_concurrent_requests": _most_at_once(done),
    }
    for name in latencies:
        figures |= _spread(name, [1000 * s for s in seconds_of(name, done)], percentiles)
    return figures | {
        "input_lens": [sample.prompt_tokens for sample in every],
        "output_lens": [sample.output_tokens for sample in every],
        "ttfts": [sample.ttft_s for sample in every],
        "itls": [sample.itl_s for sample in every],
        "latencies": [sample.latency_s for sample in every],
        "start_times": [sample.start_s for sample in every],
        "queue_times": [sample.queue_s for sample in every],
        "errors": [sample.error for sample in every],
    }


def _spread(name: str, values_ms: Sequence[float], percentiles: Sequence[float]) -> dict[str, Any]:
    """Mean, median, standard deviation and percentiles; 0 of nothing, as in vLLM."""
    values = np.array(values_ms if len(values_ms) else [0.0])
    keys = {f"p{percentile_word(p)}": float(np.percentile(values, p)) for p in percentiles}
    some = {"mean": values.mean(), "median": np.median(values), "std": values.std(), **keys}
    return {f"{word}_{name}_ms": float(value) for word, value in some.items()}


def _busiest_second(done: Sequence[RequestSample]) -> float:
    """Most events with text within a second, seconds counted from the first sending."""
    if not done:
        return 0.0
    first = min(sample.start_s for sample in done)
    counts: dict[int, int] = {}
    for sample in done:
        came = sample.start_s + sample.ttft_s + np.cumsum([0.0, *sample.itl_s]) - first
        for second in came.astype(int).tolist():
            counts[second] = counts.get(second, 0) + 1
    return float(max(counts.values()))


def _most_at_once(done: Sequence[RequestSample]) -> int:
    """Most requests at one time; one that ends as another begins is not beside it."""
    moves = [(sample.start_s, 1) for sample in done]
    moves += [(sample.start_s + sample.latency_s, -1) for sample in done]
    now = most = 0
    for _, step in sorted(moves):
        now += step
        most = max(most, now)
    return most
