"""Budgets of bits against trying every combination."""

from __future__ import annotations

import itertools
import random

import pytest

from halfbyte.errors import QuantizeError
from halfbyte.quantize.report.budget import Choice, Curve, allocate


def drawn(modules: int, choices: int) -> dict[str, list[Choice]]:
    """Costs that fall with size, but neither evenly nor always."""
    return {
        f"m{i}": [
            Choice(str(j), random.randint(1, 40) + 20 * j, random.random() * 4.0**-j)
            for j in range(choices)
        ]
        for i in range(modules)
    }


def every(choices: dict[str, list[Choice]]) -> list[tuple[int, float]]:
    return [
        (sum(c.size for c in some), sum(c.cost for c in some))
        for some in itertools.product(*choices.values())
    ]


@pytest.mark.parametrize("seed", range(20))
def test_nothing_within_the_budget_is_below_the_bound(seed: int) -> None:
    """With 5 matrices a step is much: the best of all combinations may lie in between."""
    choices = drawn(5, 4)
    combinations = every(choices)
    smallest = sum(min(c.size for c in some) for some in choices.values())
    for budget in (smallest, smallest + random.randint(1, 200), smallest + 1000):
        found = allocate(choices, budget_bits=budget)
        best = min(cost for size, cost in combinations if size <= budget)
        assert found.size <= budget
        assert found.size == sum(c.size for c in found.choices.values())
        assert found.cost == pytest.approx(sum(c.cost for c in found.choices.values()))
        assert found.bound - 1e-12 <= best <= found.cost + 1e-12
        assert all(c in choices[module] for module, c in found.choices.items())


def test_with_many_matrices_the_gap_is_small() -> None:
    """200 of them: one step is a hundredth of what is lost at most."""
    choices = drawn(200, 5)
    middle = sum(sorted(c.size for c in some)[2] for some in choices.values())
    found = allocate(choices, budget_bits=middle)
    assert found.bound <= found.cost <= found.bound * 1.01


def test_a_bound_on_the_loss_takes_the_smallest_corner() -> None:
    choices = drawn(30, 4)
    points = Curve(choices).points
    assert points == sorted(points) and [c for _, c in points] == sorted(
        (c for _, c in points), reverse=True
    )
    limit = points[len(points) // 2][1]
    found = allocate(choices, max_cost=limit)
    assert found.cost <= limit
    smaller = [cost for size, cost in points if size < found.size]
    assert all(cost > limit for cost in smaller)


def test_what_cannot_be_had_is_refused() -> None:
    choices = {"a": [Choice("4", 400, 0.5), Choice("8", 800, 0.1)]}
    with pytest.raises(QuantizeError, match=r"budget is 399 bits.* take 400"):
        allocate(choices, budget_bits=399)
    with pytest.raises(QuantizeError, match=r"bound is 0.01.* lose 0.1"):
        allocate(choices, max_cost=0.01)
    assert allocate(choices, budget_bits=799).choices["a"].name == "4"
    assert allocate(choices, budget_bits=800).choices["a"].name == "8"
