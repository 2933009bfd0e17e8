"""The bands of ratios: how often equal runs lie outside, and whether a change is seen."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from halfbyte.bench.noise import (
    LEAST_SAMPLES,
    PercentileOf,
    RatioBand,
    ShareOf,
    Statistic,
    ratio_band,
    student_quantile,
)

# From tables of Student's distribution: share, degrees of freedom, quantile.
TABLE = [
    (0.975, 2, 4.303, 0.01),
    (0.999, 2, 22.33, 0.13),
    (0.995, 3, 5.841, 0.01),
    (0.999, 3, 10.215, 0.03),
    (0.995, 4, 4.604, 0.01),
    (0.999, 4, 7.173, 0.01),
    (0.975, 9, 2.262, 0.001),
    (0.999, 9, 4.297, 0.001),
    (0.975, 10**6, 1.960, 0.001),
]


@pytest.mark.parametrize(("share", "freedom", "value", "error"), TABLE)
def test_students_quantiles(share: float, freedom: int, value: float, error: float) -> None:
    assert student_quantile(share, freedom) == pytest.approx(value, rel=error)


def mean_of(values: np.ndarray) -> ShareOf:
    return ShareOf(values, np.ones(len(values)))


def outside(band: RatioBand) -> bool:
    assert band.low is not None and band.high is not None and band.low <= band.high
    return not band.low <= 1 <= band.high


def rate_outside(make, runs: int, chance: float, paired: bool = False) -> float:
    found = [
        outside(ratio_band(make(), make(), chance=chance, paired=paired, seed=number))
        for number in range(runs)
    ]
    return sum(found) / runs


@pytest.mark.parametrize("count", [5, 30, 100])
def test_equal_runs_are_seldom_told_apart(count: int) -> None:
    """10 % may be; the rate of 150 pairs has a standard error of 2.5 %, and the bootstrap of a
    skewed distribution is off by some percent. Of z in place of t, or bands half as wide, it would
    be 30 to 40 %.
    """
    draw = np.random.default_rng(random.randrange(1 << 32))
    assert rate_outside(lambda: mean_of(draw.lognormal(0, 0.6, count)), 150, 0.1) < 0.23


def test_neighbours_that_wait_for_each_other_are_no_surprise() -> None:
    """Samples whose neighbours are alike (correlation 0.5) are told apart at most 25 % of the time
    at 10 %; drawn one by one they would be for 40 %.
    """
    draw = np.random.default_rng(random.randrange(1 << 32))

    def chain() -> ShareOf:
        steps = draw.normal(0, 1, 150)
        for i in range(1, 150):
            steps[i] += 0.5 * steps[i - 1]
        return mean_of(np.exp(0.3 * steps))

    assert rate_outside(chain, 150, 0.1) < 0.25


@pytest.mark.parametrize(
    "figure", [mean_of, lambda values: PercentileOf(values, 95.0)], ids=["mean", "p95"]
)
def test_a_slower_run_is_seen(figure) -> None:
    """A fifth slower, 200 samples of 20 % spread: more than ten standard errors of a mean, five of
    a 95th percentile.
    """
    draw = np.random.default_rng(random.randrange(1 << 32))
    for number in range(10):
        was, now = draw.normal(1, 0.2, 200), 1.2 * draw.normal(1, 0.2, 200)
        band = ratio_band(figure(was), figure(now), chance=0.01, paired=False, seed=number)
        assert outside(band) and band.low is not None and band.low > 1
        assert band.ratio == pytest.approx(1.2, rel=0.12)


def test_pairs_take_out_what_requests_differ_by() -> None:
    """Lengths spread by a factor of ten hide a change of 5 % that pairs with 2 % of noise show."""
    draw = np.random.default_rng(random.randrange(1 << 32))
    length = draw.lognormal(0, 1.2, 60)
    was, now = (length * f * draw.normal(1, 0.02, 60) for f in (1.0, 1.05))
    alone = ratio_band(mean_of(was), mean_of(now), chance=0.01, paired=False)
    pairs = ratio_band(mean_of(was), mean_of(now), chance=0.01, paired=True)
    assert not outside(alone) and outside(pairs)
    equal = ratio_band(mean_of(was), mean_of(was), chance=0.01, paired=True)
    assert equal == RatioBand(equal.before, equal.before, 1.0, 1.0)


@pytest.mark.parametrize("count", range(LEAST_SAMPLES))
def test_too_few_samples_say_nothing(count: int) -> None:
    for statistic in (mean_of(np.ones(count)), PercentileOf(np.ones(count), 50.0)):
        many: Statistic = mean_of(np.ones(9))
        band = ratio_band(statistic, many, chance=0.05, paired=False)
        assert band.low is None and band.high is None and band.before == min(count, 1)
        assert band.ratio == (1.0 if count else None)


def test_zeros_say_nothing() -> None:
    values = np.zeros(20)
    values[0] = 1.0  # hardly half of the draws have it
    band = ratio_band(mean_of(np.zeros(20)), mean_of(values), chance=0.05, paired=False)
    assert (band.low, band.ratio) == (None, None)
    weights = ShareOf(np.ones(5), np.zeros(5))
    assert ratio_band(weights, weights, chance=0.05, paired=False) == RatioBand(0.0, 0.0)


def test_many_samples_are_drawn_in_pieces() -> None:
    draw = np.random.default_rng(random.randrange(1 << 32))
    count = 6000
    band = ratio_band(
        mean_of(draw.normal(1, 0.1, count)),
        mean_of(draw.normal(1, 0.1, count)),
        chance=0.05,
        paired=False,
    )
    # Two means of 60 000 samples, 10 % of spread: 0.06 % of standard error.
    assert band.low is not None and band.high is not None
    assert math.log(band.high / band.low) == pytest.approx(
        2 * 1.96 * 0.1 * (2 / count) ** 0.5, rel=0.2
    )
