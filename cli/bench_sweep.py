"""``halfbyte bench sweep``: throughput against latency over loads."""

from __future__ import annotations

import math
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfbyte.errors import ConfigError

from . import options as opt
from .bench import numbers
from .bench_serve import ResultAsked, measured_run, settle
from .bench_serve_options import FiguresAsked, RequestsAsked, ServerAsked, serve_plan
from .console import is_terminal, note, terminal_width

if TYPE_CHECKING:
    from ..bench.serve.load import LoadResult
    from ..bench.serve.run import ServePlan


@opt.flat
def sweep(
    max_concurrency: Annotated[
        str | None,
        typer.Option(
            "--max-concurrency",
            metavar="N,..",
            help="A point for each: most requests at once; 1,2,4,8 where nothing is given.",
        ),
    ] = None,
    request_rate: Annotated[
        str | None,
        typer.Option("--request-rate", metavar="X,..", help="A point for each, per second."),
    ] = None,
    *,
    server: ServerAsked,
    requests: RequestsAsked,
    figures: FiguresAsked,
    results: ResultAsked,
) -> None:
    """Measure a curve of throughput against latency, as `bench serve` at each load.

    Ctrl-C ends the sweep and keeps what was measured.
    """
    results.check()
    server.address()
    at_once, rates = _loads(max_concurrency, request_rate)
    plan = serve_plan(server, requests, figures)
    _check_shown(plan)
    from ..bench.result import new_result
    from ..bench.serve import run
    from ..bench.serve.sweep import run_sweep, sweep_plans, sweep_plot, sweep_table
    from ..bench.text_plot import LEAST_WIDTH

    plans = sweep_plans(plan, at_once, rates)
    with server.running() as (target, identity):
        every = list(run_sweep(target, plans, _point, results.label))
    points = [keys for _, _, keys in every]
    if results.save_detailed:
        for _, measured, keys in every:
            keys["generated_texts"] = [sample.text for sample in measured.samples]
    found = every[0][0]
    result = new_result(
        "sweep",
        model=identity or {"name": found.model},
        flags={
            **run.plan_flags(plan),
            "serve_args": server.serve_args,
            "points": [name for name, _ in plans],
        },
        seed=requests.seed,
        figures={"points": points, "metadata": results.facts()},
        server=run.server_facts(target, found),
    )
    name = f"sweep-{datetime.now():%Y%m%d-%H%M%S}.json"
    results.write(result, name, sweep_table(points))
    width = min(terminal_width(), 100)
    if is_terminal(sys.stdout) and width >= LEAST_WIDTH and results.json_file != "-":
        print(f"\n{sweep_plot(points, width)}")
    settle([measured for _, measured, _ in every])


def _loads(at_once: str | None, rates: str | None) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Concurrencies or rates of the points. Raises ConfigError."""
    if at_once is not None and rates is not None:
        raise ConfigError("--max-concurrency beside --request-rate; expected one of the two")
    if rates is not None:
        return (), _rates(rates)
    return numbers(at_once or "1,2,4,8", "--max-concurrency"), ()


def _check_shown(plan: ServePlan) -> None:
    """Raises ConfigError where figures are left out that the table shows."""
    from ..bench.serve.figures import LATENCIES

    if set(plan.latencies) != set(LATENCIES) or 99.0 not in plan.percentiles:
        raise ConfigError(
            "a sweep shows all latencies and their 99th percentile",
            hint="leave --percentile-metrics out, and 99 in --metric-percentiles",
        )


def _point(target: Any, plan: ServePlan, name: str) -> tuple[Any, LoadResult]:
    note(f"{name}: {plan.workload.num_prompts} requests")
    return measured_run(target, plan)


def _rates(text: str) -> tuple[float, ...]:
    """``0.5,1,inf`` as numbers. Raises ConfigError."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(rate > 0 for rate in found) or math.nan in found:
        raise ConfigError(f"--request-rate is {text!r:.60}; expected rates such as 0.5,1,2")
    return found
