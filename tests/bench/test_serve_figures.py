"""The figures of a run against vLLM's formulas, computed here from the events alone."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from typing import Any

import pytest

from halfbyte.bench.serve.client import StreamedAnswer
from halfbyte.bench.serve.figures import objectives, serve_figures
from halfbyte.bench.serve.load import Arrivals, LoadResult, RequestSample
from halfbyte.bench.serve.workload import BenchPrompt
from halfbyte.errors import ConfigError

PERCENTILES = (25.0, 50.0, 99.0, 99.9)
BEGUN = 1000.0


def drawn_answer(begun: float) -> StreamedAnswer:
    """An answer that failed, or has one to nine events, some with several tokens."""
    sent = begun + random.uniform(0, 5)
    if random.random() < 0.15:
        return StreamedAnswer(sent, [sent + 0.1], " x", error="it went away")
    gaps = [random.uniform(0.001, 0.7) for _ in range(random.randint(1, 9))]
    times = list(itertools.accumulate(gaps, initial=sent))[1:]
    tokens = len(times) + random.choice([0, 0, 3])
    usage = {"prompt_tokens": random.randint(1, 90), "completion_tokens": tokens}
    return StreamedAnswer(sent, times, " x" * len(times), usage)


def percentile(values: list[float], share: float) -> float:
    """Linear between order statistics, as numpy's default is."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * share / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def by_vllms_formulas(
    answers: list[StreamedAnswer], duration: float, limits: dict[str, float]
) -> dict[str, Any]:
    """Every figure by the formulas of ``vllm/benchmarks/serve.py``, from times of events."""
    done = [a for a in answers if not a.error]
    n_out = [a.usage["completion_tokens"] for a in done]
    ttft = [a.times_s[0] - a.sent_s for a in done]
    latency = [a.times_s[-1] - a.sent_s for a in done]
    tpot = [
        (e - t) / (n - 1) if n > 1 else 0.0 for e, t, n in zip(latency, ttft, n_out, strict=True)
    ]
    values = {
        "ttft": ttft,
        "tpot": [x for x, n in zip(tpot, n_out, strict=True) if n > 1],
        "itl": [b - a for x in done for a, b in itertools.pairwise(x.times_s)],
        "e2el": latency,
    }
    of_request = {"ttft": ttft, "tpot": tpot, "e2el": latency}
    good = [
        all(of_request[name][i] * 1000 <= ms for name, ms in limits.items())
        for i in range(len(done))
    ]
    total_in, total_out = sum(a.usage["prompt_tokens"] for a in done), sum(n_out)
    found: dict[str, Any] = {
        "completed": len(done),
        "failed": len(answers) - len(done),
        "total_input_tokens": total_in,
        "total_output_tokens": total_out,
        "request_throughput": len(done) / duration,
        "request_goodput": sum(good) / duration if limits else None,
        "output_throughput": total_out / duration,
        "total_token_throughput": (total_in + total_out) / duration,
    }
    for name, some in values.items():
        ms = [1000 * x for x in some] or [0.0]
        found[f"mean_{name}_ms"] = statistics.fmean(ms)
        found[f"median_{name}_ms"] = statistics.median(ms)
        found[f"std_{name}_ms"] = statistics.pstdev(ms)
        for share in PERCENTILES:
            word = str(int(share)) if share == int(share) else str(share)
            found[f"p{word}_{name}_ms"] = percentile(ms, share)
    first = min((a.sent_s for a in done), default=0.0)
    seconds = [int(t - first) for a in done for t in a.times_s]
    found["max_output_tokens_per_s"] = max(map(seconds.count, seconds), default=0)
    found["max_concurrent_requests"] = max(
        (sum(b.sent_s <= a.sent_s < b.times_s[-1] for b in done) for a in done), default=0
    )
    return found


@pytest.mark.parametrize("limits", [{}, {"ttft": 300.0}, {"ttft": 500.0, "tpot": 350, "e2el": 2e3}])
@pytest.mark.parametrize("count", [0, 1, 2, 60])
def test_figures_are_vllms(count: int, limits: dict[str, float]) -> None:
    answers = [drawn_answer(BEGUN) for _ in range(count)]
    samples = [RequestSample.of(a, BenchPrompt("x", 9, 7), BEGUN, 0.25) for a in answers]
    duration = random.uniform(6, 9)
    ours = serve_figures(LoadResult(samples, duration), PERCENTILES, limits)
    theirs = by_vllms_formulas(answers, duration, limits)
    assert ours.pop("request_goodput") == theirs.pop("request_goodput")
    # Clock values near 1000 s have 2e-13 s of rounding each, which is 2e-10 ms.
    assert {k: ours[k] for k in theirs} == pytest.approx(theirs, rel=1e-9, abs=1e-8)
    assert ours["duration"] == duration
    # Raw samples, of failed requests as well, in the order of the prompts.
    assert ours["errors"] == [a.error for a in answers]
    assert ours["output_lens"] == [a.usage.get("completion_tokens", 0) for a in answers]
    assert ours["input_lens"] == [a.usage.get("prompt_tokens", 7) for a in answers]
    assert [len(gaps) for gaps in ours["itls"]] == [len(a.times_s) - 1 for a in answers]
    assert ours["queue_times"] == [0.25] * count


def test_only_chosen_latencies_have_figures() -> None:
    found = serve_figures(LoadResult([], 1.0), (99.0,), {}, ("itl",))
    assert {k for k in found if k.endswith("_ms")} == {
        f"{word}_itl_ms" for word in ("mean", "median", "std", "p99")
    }


@pytest.mark.parametrize("pair", ["itl:5", "ttft", "ttft:", "ttft:-1", "ttft:nan", "x:1", ""])
def test_objectives_are_checked(pair: str) -> None:
    with pytest.raises(ConfigError, match="--goodput is"):
        objectives(["e2el:5", pair])
    assert objectives(["ttft:5", "tpot:0.5"]) == {"ttft": 5.0, "tpot": 0.5}


def test_arrivals_keep_the_rate_whatever_the_burstiness() -> None:
    """The last comes at count / rate; the spread of the gaps is 1 / sqrt(burstiness) of their mean.

    Its standard deviation over 4000 gaps is below 5 % for a burstiness of 0.5 or more.
    """
    seed, rate, count = random.randrange(1 << 30), random.uniform(0.5, 50), 4000
    for burstiness in (0.5, 1.0, 7.0):
        times = Arrivals(rate, burstiness, seed=seed).times_s(count)
        gaps = [b - a for a, b in itertools.pairwise([0.0, *times])]
        assert times[-1] == pytest.approx(count / rate) and min(gaps) >= 0
        spread = statistics.pstdev(gaps) * rate
        assert spread == pytest.approx(burstiness**-0.5, rel=0.25), (seed, burstiness)
    constant = Arrivals(rate, math.inf).times_s(3)
    assert constant == pytest.approx([1 / rate, 2 / rate, 3 / rate])
    assert Arrivals().times_s(3) == [0.0, 0.0, 0.0]
    assert Arrivals(rate, seed=seed).times_s(5) != Arrivals(rate, seed=seed + 1).times_s(5)


@pytest.mark.parametrize(
    "wrong", [{"rate": 0.0}, {"rate": -1.0}, {"rate": math.nan}, {"burstiness": 0.0}]
)
def test_arrivals_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected more than 0"):
        Arrivals(**wrong)
