"""Points of a sweep, its table and its plot."""

from __future__ import annotations

import random

import pytest

from halfbyte.bench.serve.load import Arrivals
from halfbyte.bench.serve.run import ServePlan
from halfbyte.bench.serve.sweep import sweep_plans, sweep_plot
from halfbyte.bench.serve.workload import Workload
from halfbyte.bench.text_plot import LEAST_WIDTH, text_plot


def test_every_point_draws_its_own_prompts() -> None:
    plan = ServePlan(Workload(seed=5), Arrivals(burstiness=2.0))
    at_once = sweep_plans(plan, (1, 4), ())
    assert [name for name, _ in at_once] == ["1 at once", "4 at once"]
    assert [p.arrivals.max_concurrency for _, p in at_once] == [1, 4]
    assert [p.workload.seed for _, p in at_once] == [5, 6]
    rates = sweep_plans(plan, (), (0.5, float("inf")))
    assert [name for name, _ in rates] == ["0.5/s", "inf/s"]
    assert all(p.arrivals.burstiness == 2.0 for _, p in rates)


@pytest.mark.parametrize("width", [LEAST_WIDTH, 80, 100])
def test_a_plot_has_every_point_and_fits(width: int) -> None:
    points = [(float(n), random.uniform(0, 50), str(2**n)) for n in range(8)]
    text = text_plot(points, "across", "up", width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("o") == len(points) + 1  # "across" has one more
    assert "up" in text.splitlines()[0] and "across" in text.splitlines()[-1]
    # The largest of both axes is at its end.
    top = max(points, key=lambda point: point[1])
    assert text.splitlines()[1].strip().startswith(f"{top[1]:.4g}|")
    assert text.splitlines()[-1].endswith("7")


def test_a_plot_of_nothing_and_of_one_point() -> None:
    assert "o" not in text_plot([], "x", "y", 60).replace("x", "")
    assert text_plot([(0.0, 0.0, "a")], "x", "y", 60).splitlines()[-3].endswith("|o a")


def test_the_curve_is_of_tpot_or_of_whole_answers() -> None:
    point = {"point": "3 at once", "completed": 2, "output_throughput": 9.0}
    several = {**point, "median_tpot_ms": 4.0, "median_e2el_ms": 8.0}
    assert "median TPOT ms" in sweep_plot([several], 70)
    assert "median E2EL ms" in sweep_plot([several | {"median_tpot_ms": 0.0}], 70)
    assert " 3" in sweep_plot([several], 70) and "at once" not in sweep_plot([several], 70)
