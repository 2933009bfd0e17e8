"""What a step will cost in seconds, learnt from the steps that were measured.

A step of T tokens that look at P pairs of (token, earlier token) takes about ``a + b T + c P``:
``a`` reads the weights once, ``b`` is a token's share of the matrix products, ``c`` of attention.
Decode steps tell ``a``; steps with a chunk of a prompt tell ``b`` and ``c`` by least squares of
the relative errors, the later ones weighing more. Pure arithmetic: the clock is with whoever runs
the steps.
"""

from __future__ import annotations

from .plan import RowWork

LEAST_CHUNK = 8
"""Tokens that a chunk always gets, so that a prompt comes to its end; the first has no more."""

GROWTH = 2
"""A chunk has at most so many times the tokens of the largest one measured lately."""

MEMORY = 0.9
"""Weight of the measurements so far when a new one comes: about the last ten count."""

MOST_DRIFT = 4.0
"""A single step says no more than that others take so many times what was predicted."""


CALM = 0.95
"""Weight of the slowest steps so far when a faster one comes: they count for about twenty."""


SHARE = 0.9
"""Part of the time that a step is planned for; the rest is for what no measurement foretells."""


class StepCost:
    """Predicts steps; ``observe`` after each one, ``chunk`` before the next."""

    def __init__(self) -> None:
        self._fixed: float | None = None
        # Decaying sums of T T, T P, P P, T t and P t, all over t squared.
        self._sums = [0.0] * 5
        self._largest = 0.0
        # What the slowest of the last steps took over what was predicted: others use the machine.
        self._drift = 1.0

    def observe(self, work: tuple[RowWork, ...], seconds: float) -> None:
        """Take in a step of this work that took so many seconds."""
        if seconds <= 0.0 or not work:
            return
        tokens, pairs = _size(work)
        per_token, per_pair = self._rates()
        if all(item.count == 1 for item in work):
            fixed = max(seconds - per_token * tokens - per_pair * pairs, 0.0)
            if self._fixed is None or fixed < self._fixed:
                # The first decode step is recorded and touches new memory: it is soon forgotten.
                self._fixed = fixed if self._fixed is None else (self._fixed + fixed) / 2
            else:
                self._fixed = _mix(self._fixed, fixed)
            return
        if self._largest:
            ratio = seconds / (self._seconds(tokens, pairs) or seconds)
            # Up at once and down slowly: the bound is for nearly all steps, not for the usual one.
            ratio = min(ratio, MOST_DRIFT)
            self._drift = max(ratio, _mix(self._drift, ratio, CALM))
        # A step before any decode step was seen is all tokens' cost: too much, never too little.
        rest = max(seconds - (self._fixed or 0.0), 0.1 * seconds)
        new = (tokens * tokens, tokens * pairs, pairs * pairs, tokens * rest, pairs * rest)
        for i, value in enumerate(new):
            self._sums[i] = self._sums[i] * MEMORY + value / (seconds * seconds)
        self._largest = max(tokens, _mix(self._largest, tokens))

    def chunk(self, work: tuple[RowWork, ...], start: int, most: int, limit: float) -> int:
        """Tokens from position ``start`` on that still fit beside ``work`` into ``limit`` seconds.

        At most ``most``, and at least ``LEAST_CHUNK`` of them unless the work has a chunk already.
        """
        least = LEAST_CHUNK if all(item.count == 1 for item in work) else 0
        if self._largest == 0.0:
            return min(most, least)
        tokens, pairs = _size(work)
        limit *= SHARE / max(self._drift, 1.0)
        low, high = 0, min(most, int(GROWTH * self._largest))
        while low < high:
            middle = (low + high + 1) // 2
            more = middle * start + middle * (middle + 1) / 2
            fits = self._seconds(tokens + middle, pairs + more) <= limit
            low, high = (middle, high) if fits else (low, middle - 1)
        return min(most, max(low, least))

    def _seconds(self, tokens: float, pairs: float) -> float:
        per_token, per_pair = self._rates()
        return (self._fixed or 0.0) + per_token * tokens + per_pair * pairs

    def _rates(self) -> tuple[float, float]:
        """Seconds a token and a pair, neither below zero."""
        tt, tp, pp, ty, py = self._sums
        if tt == 0.0:
            return 0.0, 0.0
        determinant = tt * pp - tp * tp
        # Chunks that are all alike do not tell tokens from pairs: all is tokens' cost then.
        if determinant > 1e-6 * tt * pp:
            per_token = (ty * pp - py * tp) / determinant
            per_pair = (py * tt - ty * tp) / determinant
            if per_token >= 0.0 and per_pair >= 0.0:
                return per_token, per_pair
            if per_token < 0.0:
                return 0.0, py / pp
        return ty / tt, 0.0


def _mix(old: float, new: float, weight: float = MEMORY) -> float:
    return weight * old + (1.0 - weight) * new


def _size(work: tuple[RowWork, ...]) -> tuple[float, float]:
    """Tokens of the work, and pairs of a token and one that it looks at."""
    tokens = sum(item.count for item in work)
    pairs = sum(item.count * item.start + item.count * (item.count + 1) / 2 for item in work)
    return tokens, pairs
