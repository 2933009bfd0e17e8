"""Which format each matrix gets when bits, or what may be lost, are limited.

A multiple-choice knapsack: one choice for each matrix, the least sum of costs under a sum of sizes.
With a price on a bit every matrix chooses by itself, and the choices that are best at some price
are the corners of the lower convex hull of its costs over its sizes. Stepping along all hulls by
falling saving for a bit gives the best sums for the sizes in between (Everett, Operations Research
11, 1963): no choice of the same total size is cheaper than a point of that line. What ends between
two steps is off by less than the saving of one step, and with hundreds of matrices one step is
little; so this needs no solver, and tells how far from the best it can be at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from halfbyte.errors import QuantizeError


@dataclass(frozen=True, slots=True)
class Choice:
    """A format that a matrix may get.

    Attributes:
        name: of the candidate.
        size: bits that the matrix takes in the file.
        cost: what it is predicted to lose: KL, nats a token.
    """

    name: str
    size: int
    cost: float


@dataclass(frozen=True, slots=True)
class Allocation:
    """A choice for each matrix.

    Attributes:
        choices: by module.
        size: bits of all together.
        cost: sum of the costs.
        bound: no allocation of this size, or smaller, costs less than this.
    """

    choices: dict[str, Choice]
    size: int
    cost: float
    bound: float


def allocate(
    choices: Mapping[str, Sequence[Choice]],
    budget_bits: int | None = None,
    max_cost: float | None = None,
) -> Allocation:
    """The best choices within a size, or the smallest within a cost.

    Args:
        choices: of each module.
        budget_bits: most bits of all together.
        max_cost: most that all together may cost; give one of the two.

    Raises:
        QuantizeError: not even the smallest choices fit, or the best ones cost too much.
    """
    assert (budget_bits is None) != (max_cost is None)
    line = Curve(choices)
    if budget_bits is not None:
        fitting = sum(size <= budget_bits for size, _ in line.points)
        if not fitting:
            raise QuantizeError(
                f"the budget is {budget_bits} bits for all matrices; the smallest formats take "
                f"{line.points[0][0]}",
                hint="allow more bits, or give smaller candidates",
            )
        return _filled(choices, line, fitting - 1, budget_bits)
    assert max_cost is not None
    for index, (_, cost) in enumerate(line.points):
        if cost <= max_cost:
            return line.at(index)
    raise QuantizeError(
        f"the bound is {max_cost:g}; the best candidates are predicted to lose "
        f"{line.points[-1][1]:.4g}",
        hint="allow more, or give candidates of more bits",
    )


class Curve:
    """The best allocations from the smallest to the most accurate, one step of one matrix each.

    Args:
        choices: of each module.

    Attributes:
        points: bits and cost of all together, after each step.
    """

    def __init__(self, choices: Mapping[str, Sequence[Choice]]) -> None:
        hulls = {module: _hull(some) for module, some in choices.items()}
        self._first = {module: hull[0] for module, hull in hulls.items()}
        steps = [
            ((a.cost - b.cost) / (b.size - a.size), module, a, b)
            for module, hull in hulls.items()
            for a, b in pairwise(hull)
        ]
        # Along one hull savings fall, so the order of all steps keeps that of each.
        self._steps = sorted(steps, key=lambda step: (-step[0], step[1], step[3].size))
        size = sum(choice.size for choice in self._first.values())
        cost = sum(choice.cost for choice in self._first.values())
        self.points = [(size, cost)]
        for _, _, a, b in self._steps:
            size, cost = size + b.size - a.size, cost + b.cost - a.cost
            self.points.append((size, cost))

    def at(self, index: int) -> Allocation:
        """The allocation of a point."""
        chosen = dict(self._first)
        for _, module, _, choice in self._steps[:index]:
            chosen[module] = choice
        size, cost = self.points[index]
        return Allocation(chosen, size, cost, cost)


def _filled(
    choices: Mapping[str, Sequence[Choice]], line: Curve, index: int, budget: int
) -> Allocation:
    """Spend the bits that are left where they save most; the bound is between two corners."""
    best = line.at(index)
    bound = best.cost
    if index + 1 < len(line.points):
        size, cost = line.points[index + 1]
        bound -= (best.cost - cost) / (size - best.size) * (budget - best.size)
    chosen, size, cost = dict(best.choices), best.size, best.cost
    while True:
        upgrades = [
            (chosen[module].cost - choice.cost, module, choice)
            for module, some in choices.items()
            for choice in some
            if size + choice.size - chosen[module].size <= budget
        ]
        saving, module, choice = max(upgrades, key=lambda u: (u[0], u[1], u[2].size))
        if saving <= 0:
            return Allocation(chosen, size, cost, bound)
        size, cost = size + choice.size - chosen[module].size, cost - saving
        chosen[module] = choice


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """Corners of the lower convex hull of costs over sizes, as far as costs fall."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.size, c.cost)):
        if hull and choice.cost >= hull[-1].cost:
            continue
        while len(hull) >= 2 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _slope(a: Choice, b: Choice) -> float:
    """Saving for a bit, from one choice to a larger one."""
    return (a.cost - b.cost) / (b.size - a.size)
