"""Lloyd-Max quantizers: the table of a given size with the least expected squared error.

In one dimension cells are intervals, so the best table of a histogram is found exactly, by dynamic
programming over its bins; Lloyd's iterations on all values then polish it: borders half way
between neighbours, each entry the mean of its cell. Source: Lloyd, "Least squares quantization in
PCM" (1957, printed 1982); Max, "Quantizing for minimum distortion" (1960).

Shape letters: P points, L entries of a table.
"""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.errors import QuantizeError

# Bins of the histogram on which the first table is exact.
_BINS = 512
_ITERATIONS = 100
# Polishing ends when an iteration gains less than this share of the error.
_GAIN = 1e-5


def lloyd_max(
    points_P: Tensor,
    levels: int,
    weights_P: Tensor | None = None,
    start_L: Tensor | None = None,
) -> Tensor:
    """The table, float32 [L], rising, with the least ``sum weight * (point - entry)^2``.

    Exact where there are at most 512 different points; else a local optimum near that of a
    histogram. With fewer different points than entries, the last entry repeats.

    Args:
        points_P: float [P], finite.
        levels: L, entries of the table.
        weights_P: float [P], not negative; None = all the same.
        start_L: a table [L] for nearly the same points, from which to go on.

    Raises:
        QuantizeError: a point or a weight is no finite number.
    """
    x = points_P.reshape(-1).double()
    w = torch.ones_like(x) if weights_P is None else weights_P.reshape(-1).double()
    if not bool(x.isfinite().all() and w.isfinite().all()):
        raise QuantizeError("a value or its weight is not finite; expected finite numbers")
    if not bool((w > 0).any()):
        w = torch.ones_like(x)
    kept = w > 0
    x, order = x[kept].sort()
    w = w[kept][order]
    if start_L is not None:
        return _polished(x, w, start_L.double()).float()
    centers, sums = _bins(x, w)
    if len(centers) <= levels:
        return torch.cat((centers, centers[-1:].expand(levels - len(centers)))).float()
    table = _best(centers, sums, levels)
    return (table if len(x) == len(centers) else _polished(x, w, table)).float()


def lloyd_max_rows(
    x_NK: Tensor, levels: int, importance_K: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A table for each row, float32 [N, L], and the rows [N, K] in their entries.

    No canonical weight holds so many tables, and each takes ``levels`` numbers: this says what one
    table for a whole matrix gives away.

    Args:
        x_NK: float [N, K], finite.
        levels: L.
        importance_K: weight of each column; None = all the same.
    """
    rows = x_NK.float().unbind()
    tables = [lloyd_max(row, levels, importance_K) for row in rows]
    values = [t[nearest_entries(row, t).int()] for row, t in zip(rows, tables, strict=True)]
    return torch.stack(tables), torch.stack(values)


def nearest_entries(x: Tensor, table_L: Tensor) -> Tensor:
    """Places, uint8 of any shape, of the entries nearest to numbers in a rising table [L]."""
    borders = (table_L[1:] + table_L[:-1]) / 2
    return torch.bucketize(x, borders, out_int32=True).to(torch.uint8)


def _bins(x_P: Tensor, w_P: Tensor) -> tuple[Tensor, Tensor]:
    """Means and weights of the bins that hold something; of each distinct value, if few enough."""
    distinct, place = x_P.unique_consecutive(return_inverse=True)
    count = len(distinct)
    if count > _BINS:
        low, high = float(x_P[0]), float(x_P[-1])
        place = ((x_P - low) / (high - low) * _BINS).long().clamp_(max=_BINS - 1)
        count = _BINS
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, place, w_P)
    means = torch.zeros(count, dtype=torch.float64).index_add_(0, place, w_P * x_P)
    full = sums > 0
    return means[full] / sums[full], sums[full]


def _best(x_P: Tensor, w_P: Tensor, levels: int) -> Tensor:
    """The best table of few points: ``best[l][j] = min_i best[l - 1][i] + cost(i, j)``."""
    zero = torch.zeros(1, dtype=torch.float64)
    # Moments around the mean lose fewer digits.
    center = (w_P * x_P).sum() / w_P.sum()
    first, second, third = (
        torch.cat((zero, part.cumsum(0)))
        for part in (w_P, w_P * (x_P - center), w_P * (x_P - center).square())
    )
    weight = first[None] - first[:, None]
    mass = second[None] - second[:, None]
    cost = (third[None] - third[:, None]) - mass.square() / weight
    cost = torch.where(weight > 0, cost.clamp(min=0), torch.inf)
    cost.fill_diagonal_(torch.inf)
    best, begins = cost[0], []
    by_end = cost.T.contiguous()
    for _ in range(levels - 1):
        best, begin = (by_end + best).min(1)
        begins.append(begin)
    end, table = len(x_P), []
    for begin in [*reversed(begins), None]:
        start = 0 if begin is None else int(begin[end])
        table.append(float(center + mass[start, end] / weight[start, end]))
        end = start
    return torch.tensor(table[::-1], dtype=torch.float64)


def _polished(x_P: Tensor, w_P: Tensor, table_L: Tensor) -> Tensor:
    """Lloyd's iterations; points are sorted, so sums over a cell are differences of sums."""
    zero = torch.zeros(1, dtype=torch.float64)
    weight, mass, square = (
        torch.cat((zero, part.cumsum(0))) for part in (w_P, w_P * x_P, w_P * x_P.square())
    )
    last = torch.inf
    for _ in range(_ITERATIONS):
        borders = torch.searchsorted(x_P, (table_L[1:] + table_L[:-1]) / 2)
        ends = torch.cat((borders, torch.tensor([len(x_P)])))
        begins = torch.cat((torch.tensor([0]), borders))
        inside, sums = weight[ends] - weight[begins], mass[ends] - mass[begins]
        means = torch.where(inside > 0, sums / inside.clamp(min=1e-300), table_L)
        error = float(square[-1] - (sums.square() / inside.clamp(min=1e-300)).sum())
        table_L = means
        if last - error <= _GAIN * abs(error):
            break
        last = error
    return table_L
