"""Seeds and a chi-square test for checks of random draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chi_square_is_plausible(counts: Tensor, probabilities: Tensor) -> bool:
    """Whether observed counts can come from the probabilities; wrongly False once in 10**9 runs.

    Cells expected fewer than 10 times are joined. The quantile is Wilson and Hilferty's cube.
    """
    expected = probabilities.double() * counts.sum()
    order = expected.argsort()
    cells: list[tuple[float, float]] = []
    seen = wanted = 0.0
    for index in order.tolist():
        seen += float(counts[index])
        wanted += float(expected[index])
        if wanted >= 10:
            cells.append((seen, wanted))
            seen = wanted = 0.0
    if wanted and cells:
        last = cells.pop()
        cells.append((last[0] + seen, last[1] + wanted))
    statistic = sum((s - w) ** 2 / w for s, w in cells)
    freedom = len(cells) - 1
    assert freedom > 0, "nothing to compare"
    spread = 2 / (9 * freedom)
    quantile = freedom * (1 - spread + 6.0 * math.sqrt(spread)) ** 3
    print(f"chi-square {statistic:.1f}, limit {quantile:.1f}, {freedom} degrees of freedom")
    return statistic < quantile
