"""``bench sweep``: throughput against latency, a run of requests for each point of a curve."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..table import markdown_table
from ..text_plot import text_plot
from .load import LoadResult
from .run import Contact, ServePlan, vllm_keys
from .target import ServeTarget

RunPoint = Callable[[ServeTarget, ServePlan, str], tuple[Contact, LoadResult]]
"""Measures the plan of a point, which has the name that is given."""


def sweep_plans(
    plan: ServePlan, concurrencies: Sequence[int], rates: Sequence[float]
) -> list[tuple[str, ServePlan]]:
    """Name and plan of each point: one for each concurrency, else one for each rate.

    Every point draws prompts of its own, so that none finds those of another in a prefix cache.
    """
    arrivals = [(f"{n} at once", replace(plan.arrivals, max_concurrency=n)) for n in concurrencies]
    arrivals += [(f"{rate:g}/s", replace(plan.arrivals, rate=rate)) for rate in rates]
    return [
        (
            name,
            replace(
                plan,
                arrivals=each,
                workload=replace(plan.workload, seed=plan.workload.seed + number),
            ),
        )
        for number, (name, each) in enumerate(arrivals)
    ]


def run_sweep(
    target: ServeTarget, plans: Sequence[tuple[str, ServePlan]], run: RunPoint, label: str | None
) -> Iterator[tuple[Contact, LoadResult, dict[str, Any]]]:
    """What each point gave, one after another, up to one that ctrl-C ends.

    Args:
        target: the server.
        plans: of `sweep_plans`.
        run: measures one.
        label: of the result, as vLLM has it.
    """
    for name, plan in plans:
        found, measured = run(target, plan, name)
        figures = {"point": name, **vllm_keys(plan, found, measured, label)}
        yield found, measured, figures
        if measured.interrupted:
            return


def sweep_table(points: Sequence[Mapping[str, Any]]) -> str:
    """A line for each point, as markdown within 80 columns."""
    heads = ("load", "req/s", "tok/s", "TTFT ms", "p99", "TPOT ms", "p99 ", "good/s", "failed")
    rows = []
    for point in points:
        good = point["request_goodput"]
        rows.append(
            (
                point["point"],
                f"{point['request_throughput']:.2f}",
                f"{point['output_throughput']:.1f}",
                f"{point['median_ttft_ms']:.0f}",
                f"{point['p99_ttft_ms']:.0f}",
                f"{point['median_tpot_ms']:.1f}",
                f"{point['p99_tpot_ms']:.1f}",
                "" if good is None else f"{good:.2f}",
                str(point["failed"]),
            )
        )
    return markdown_table(heads, rows, heads[1:])


def sweep_plot(points: Sequence[Mapping[str, Any]], width: int) -> str:
    """The curve as text: median TPOT over throughput, or E2EL where no answer has two tokens."""
    name = "tpot" if any(point["median_tpot_ms"] for point in points) else "e2el"
    curve = [
        (
            point["output_throughput"],
            point[f"median_{name}_ms"],
            str(point["point"]).removesuffix(" at once"),
        )
        for point in points
        if point["completed"]
    ]
    return text_plot(curve, "output tokens/s", f"median {name.upper()} ms", width)
