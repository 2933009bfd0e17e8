"""Lloyd-Max tables: the best there is for few points, Max's own figures for Gaussian numbers."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor

from halfbyte.errors import QuantizeError
from halfbyte.quantize.lloyd_max import lloyd_max, lloyd_max_rows, nearest_entries
from halfbyte.quantize.theory import round_uniform


def error(x: Tensor, w: Tensor, table: Tensor) -> float:
    values = table[nearest_entries(x, table).long()]
    return float((w * (x - values).square()).sum())


def exhaustive(x: Tensor, w: Tensor, levels: int) -> float:
    """The least error over all ways to cut sorted points into so many cells."""
    order = x.argsort()
    x, w = x[order].double(), w[order].double()
    least = float("inf")
    for cuts in itertools.combinations(range(1, len(x)), levels - 1):
        total = 0.0
        for part in torch.arange(len(x)).tensor_split(list(cuts)):
            mean = (w[part] * x[part]).sum() / w[part].sum()
            total += float((w[part] * (x[part] - mean).square()).sum())
        least = min(least, total)
    return least


def test_few_points_get_the_best_table_there_is() -> None:
    rng = random.Random(random.getrandbits(32))
    for _ in range(12):
        count, levels = rng.randint(5, 10), rng.choice([2, 3, 4])
        x, w = torch.randn(count), torch.rand(count) + 0.01
        table = lloyd_max(x, levels, w)
        assert table.shape == (levels,)
        assert bool((table.diff() >= 0).all())
        # Float32 tables: 1e-6 of the points' own squares.
        assert error(x, w, table) <= exhaustive(x, w, levels) + 1e-6 * float((w * x * x).sum())


@pytest.mark.parametrize(
    ("bits", "best", "uniform"),
    [(2, 0.1175, 0.1188), (3, 0.03454, 0.03744), (4, 0.009497, 0.01154)],
)
def test_gaussian_numbers_have_the_known_error(bits: int, best: float, uniform: float) -> None:
    """Max, 1960, table I and II: mean squared errors of the best table and of the best uniform
    grid. Quantiles in the place of drawn numbers leave out tails of 1e-5.
    """
    x = torch.special.ndtri((torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000).float()
    table = lloyd_max(x, 1 << bits)
    found = error(x, torch.ones_like(x), table) / len(x)
    assert found == pytest.approx(best, rel=0.01)
    # Symmetric to 1e-3 of sigma: Lloyd's iterations end before the last digits.
    assert float((table + table.flip(0)).abs().max()) < 0.01
    rounded = round_uniform(x.view(1, -1), bits, "tensor", rule="mse").values.view(-1)
    assert float((x - rounded).square().mean()) > uniform * 0.99 > found


def test_more_entries_never_cost_more_and_weights_pull() -> None:
    x = torch.cat((torch.randn(3000), torch.randn(3000) * 0.1 + 2))
    w = torch.ones(6000)
    errors = [error(x, w, lloyd_max(x, levels)) for levels in (2, 4, 8, 16, 64)]
    assert errors == sorted(errors, reverse=True)
    w[x > 1.5] = 100
    assert error(x, w, lloyd_max(x, 4, w)) < error(x, w, lloyd_max(x, 4))


def test_a_table_for_each_row_beats_one_for_all() -> None:
    """Where rows have shapes of their own: even, Gaussian, two heaps."""
    x = torch.stack((torch.rand(300) - 0.5, torch.randn(300), torch.randn(300) * 0.1 + 3))
    x[2, ::2] *= -1
    tables, values = lloyd_max_rows(x, 8)
    assert tables.shape == (3, 8) and values.shape == x.shape
    for row, table, rounded in zip(x, tables, values, strict=True):
        assert set(rounded.tolist()) <= set(table.tolist())
        assert torch.equal(table, lloyd_max(row, 8))
    reach = x.abs().amax(1, keepdim=True)
    table = lloyd_max(x / reach, 8, reach.square().expand_as(x))
    one = table[nearest_entries(x / reach, table).int()] * reach
    assert float((values - x).square().sum()) < 0.9 * float((one - x).square().sum())


def test_fewer_points_than_entries_and_no_numbers() -> None:
    x = torch.tensor([3.0, -1.0, 3.0, 0.5])
    assert lloyd_max(x, 4).tolist() == [-1.0, 0.5, 3.0, 3.0]
    assert lloyd_max(torch.zeros(5), 2).tolist() == [0.0, 0.0]
    # Nothing weighs anything: all the same.
    assert lloyd_max(x, 4, torch.zeros(4)).tolist() == [-1.0, 0.5, 3.0, 3.0]
    with pytest.raises(QuantizeError, match="not finite"):
        lloyd_max(torch.tensor([1.0, torch.nan]), 2)
