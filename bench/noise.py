"""How far two measurements may lie apart by chance: a bootstrap over their raw samples.

Samples of a run are drawn again with repetition, in blocks of neighbours, because requests that run
at one time wait for each other (circular block bootstrap; Politis and Romano, 1992). The spread of
the logarithm of the ratio over such draws, times Student's quantile for as many samples as there
are, is the band: few samples give a wide one.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Protocol

import numpy as np

LEAST_SAMPLES = 3
"""Fewer say nothing about noise."""
_DRAWS, _MOST_AT_ONCE = 1000, 1 << 22


class Statistic(Protocol):
    """A figure of a run's samples, which can be taken of some of them again."""

    @property
    def count(self) -> int:
        """Number of samples."""
        ...

    def taken(self, index_DN: np.ndarray) -> np.ndarray:
        """The figure of each row of indices [D, N] of samples -> [D]."""
        ...


@dataclass(frozen=True, slots=True)
class ShareOf:
    """A sum over samples divided by another one: means and throughputs.

    Attributes:
        over_N: what each sample adds above, [N].
        under_N: what it adds below, [N].
        factor: times this.
    """

    over_N: np.ndarray
    under_N: np.ndarray
    factor: float = 1.0

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.over_N)

    def taken(self, index_DN: np.ndarray) -> np.ndarray:
        """The figure of each row of indices [D, N] of samples -> [D]."""
        under_D = self.under_N[index_DN].sum(1)
        over_D = self.over_N[index_DN].sum(1)
        return self.factor * np.divide(over_D, under_D, np.zeros_like(over_D), where=under_D > 0)


@dataclass(frozen=True, slots=True)
class PercentileOf:
    """A percentile of the samples' values.

    Attributes:
        values_N: a value of each, [N].
        percent: 0 to 100.
    """

    values_N: np.ndarray
    percent: float

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.values_N)

    def taken(self, index_DN: np.ndarray) -> np.ndarray:
        """The figure of each row of indices [D, N] of samples -> [D]."""
        return np.percentile(self.values_N[index_DN], self.percent, axis=1)


@dataclass(frozen=True, slots=True)
class RatioBand:
    """Two figures and the band of their ratio.

    Attributes:
        before: of the first run.
        after: of the second.
        low: lower end of the band of ``after / before``; None where it cannot be told.
        high: upper end, or None.
    """

    before: float
    after: float
    low: float | None = None
    high: float | None = None

    @property
    def ratio(self) -> float | None:
        """``after / before``; None where the first is 0."""
        return self.after / self.before if self.before else None


def ratio_band(
    before: Statistic, after: Statistic, *, chance: float, paired: bool, seed: int = 0
) -> RatioBand:
    """The ratio of two figures and the band that chance alone leaves with ``1 - chance``.

    Args:
        before: of the first run.
        after: of the second.
        chance: share of pairs of equal runs that may lie outside.
        paired: sample for sample, both ran the same request, so what requests differ by is no
            noise; they are then drawn together. Needs equal numbers of samples.
        seed: of the draws.
    """
    was, now = _figure(before), _figure(after)
    fewest = min(before.count, after.count)
    if fewest < LEAST_SAMPLES or min(was, now) <= 0:
        return RatioBand(was, now)
    draw = np.random.default_rng(seed)
    logs: list[np.ndarray] = []
    for rows in _pieces(max(before.count, after.count)):
        index_DN = _blocks(draw, before.count, rows)
        other_DN = index_DN if paired else _blocks(draw, after.count, rows)
        drawn = before.taken(index_DN), after.taken(other_DN)
        # A figure of 0 has no logarithm; it comes with few samples only.
        fine = (drawn[0] > 0) & (drawn[1] > 0)
        logs.append(np.log(drawn[1][fine] / drawn[0][fine]))
    all_D = np.concatenate(logs)
    if len(all_D) < _DRAWS // 2:
        return RatioBand(was, now)
    # Draws of N values spread as if there were N, of which one is used up by their own mean.
    spread = float(all_D.std()) * math.sqrt(fewest / (fewest - 1))
    width = student_quantile(1 - chance / 2, fewest - 1) * spread
    middle = math.log(now / was)
    return RatioBand(was, now, math.exp(middle - width), math.exp(middle + width))


def student_quantile(share: float, freedom: int) -> float:
    """Quantile of Student's t, by the series in 1 / freedom (Abramowitz and Stegun, 26.7.5).

    Its error is below 1 % from 4 degrees on and for shares up to 0.999; at 3 it is too small by up
    to 3 %, at 2 by up to 12 %.
    """
    z = statistics.NormalDist().inv_cdf(share)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def _figure(statistic: Statistic) -> float:
    """The figure of all samples; 0 of none."""
    return float(statistic.taken(np.arange(statistic.count)[None])[0]) if statistic.count else 0.0


def _pieces(count: int) -> list[int]:
    """Numbers of draws at a time, so that their indices take little memory."""
    rows = max(1, min(_DRAWS, _MOST_AT_ONCE // count))
    return [min(rows, _DRAWS - done) for done in range(0, _DRAWS, rows)]


def _blocks(draw: np.random.Generator, count: int, rows: int) -> np.ndarray:
    """Indices [rows, count] of blocks of neighbours, the first sample following the last."""
    length = max(1, round(count ** (1 / 3)))
    starts = draw.integers(0, count, (rows, -(-count // length), 1))
    return ((starts + np.arange(length)) % count).reshape(rows, -1)[:, :count]
