"""GPTQ against its definition in float64, and what happens to bad statistics."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from halfbyte.errors import QuantizeError
from halfbyte.quantize.grid import Grid, fit_grid
from halfbyte.quantize.hessian import Hessian
from halfbyte.quantize.methods.gptq import solve


def inputs(rng: random.Random, tokens: int, k: int) -> Tensor:
    """Correlated, of unequal size, as real activations are."""
    generator = torch.Generator().manual_seed(rng.getrandbits(30))
    few = torch.randn(tokens, k // 4, generator=generator)
    mixed = few @ torch.randn(k // 4, k, generator=generator)
    own = torch.randn(tokens, k, generator=generator)
    return (mixed + own) * (torch.rand(k, generator=generator) + 0.1)


def mean_of(hessian_KK: Tensor, name: str = "w") -> Hessian:
    """Statistics with a given mean of ``x x^T``."""
    return Hessian.of(name, hessian_KK, 1)


def by_definition(w_NK: Tensor, hessian_KK: Tensor, grid: Grid, damping: float) -> Tensor:
    """Optimal brain quantization in a fixed order, float64: after each column the inverse of the
    Hessian of those that are left, computed anew.
    """
    w, h = w_NK.double().clone(), hessian_KK.double().clone()
    order = hessian_KK.diagonal().argsort(descending=True, stable=True).tolist()
    h += torch.eye(len(h)) * damping * float(hessian_KK.diagonal().mean())
    codes = torch.empty(w.shape, dtype=torch.uint8)
    for place, k in enumerate(order):
        left = order[place:]
        inverse = torch.linalg.inv(h[left][:, left])
        scale, zero = (x.double() for x in grid.column(k))
        q = (w[:, k] / scale + zero).round().clamp(0, grid.top)
        codes[:, k] = q.to(torch.uint8)
        error = (w[:, k] - (q - zero) * scale) / inverse[0, 0]
        w[:, left] -= error[:, None] * inverse[0]
    return codes


def loss(w_NK: Tensor, codes: Tensor, grid: Grid, hessian_KK: Tensor) -> float:
    difference = (grid.values(codes) - w_NK).double()
    return float(((difference @ hessian_KK.double()) * difference).sum())


@pytest.mark.parametrize("symmetric", [False, True])
def test_codes_are_those_of_the_definition(symmetric: bool) -> None:
    """Across blocks of columns. Sums in float32 may tip a weight over that lies between two codes:
    at most 2 % of them, and those after it in their rows.
    """
    rng = random.Random(random.getrandbits(32))
    for k in (40, 150):
        x = inputs(rng, 4 * k, k)
        w = torch.randn(8, k, generator=torch.Generator().manual_seed(rng.getrandbits(30)))
        hessian = x.T @ x / len(x)
        grid = fit_grid(w, 4, 32, symmetric, hessian.diagonal())
        got, want = solve(w, mean_of(hessian), grid), by_definition(w, hessian, grid, 0.01)
        assert float((got != want).float().mean()) < 0.02
        mine, theirs = (loss(w, codes, grid, hessian) for codes in (got, want))
        assert mine < 1.02 * theirs


def test_it_beats_rounding_to_nearest_on_the_same_grid() -> None:
    """With inputs of which a quarter of the directions carries nearly all, by far more than 2."""
    rng = random.Random(random.getrandbits(32))
    x, w = inputs(rng, 800, 192), torch.randn(24, 192)
    hessian = x.T @ x / len(x)
    grid = fit_grid(w, 4, 64, True, hessian.diagonal())
    nearest = loss(w, grid.codes(w), grid, hessian)
    assert loss(w, solve(w, mean_of(hessian), grid), grid, hessian) < nearest / 2


def test_independent_inputs_leave_nothing_to_make_up_for() -> None:
    rng = random.Random(random.getrandbits(32))
    w = torch.randn(6, 96, generator=torch.Generator().manual_seed(rng.getrandbits(30)))
    hessian = torch.diag(torch.rand(96) + 0.1)
    grid = fit_grid(w, 3, 32, False)
    assert torch.equal(solve(w, mean_of(hessian), grid), grid.codes(w))


def test_dead_and_equal_inputs_are_no_obstacle() -> None:
    rng = random.Random(random.getrandbits(32))
    x, w = inputs(rng, 30, 64), torch.randn(5, 64)  # fewer tokens than columns
    x[:, 7] = 0
    x[:, 9] = x[:, 8]
    hessian = x.T @ x / len(x)
    grid = fit_grid(w, 4, 32, True, hessian.diagonal())
    codes = solve(w, mean_of(hessian), grid)
    assert loss(w, codes, grid, hessian) <= loss(w, grid.codes(w), grid, hessian)
    nothing = torch.zeros(64, 64)
    assert torch.equal(solve(w, mean_of(nothing), grid), grid.codes(w))


def test_the_factor_is_that_of_the_damped_inverse_and_made_once() -> None:
    x = inputs(random.Random(random.getrandbits(32)), 200, 48)
    hessian = Hessian("w", 48)
    hessian.add(x[:90])
    hessian.factor(0.5)
    hessian.add(x[90:])  # what was factored before is forgotten
    order, upper = hessian.factor(0.01)
    mean = (x.T @ x / len(x)).double()
    damped = mean + torch.eye(48) * 0.01 * float(mean.diagonal().mean())
    product = upper.double().T @ upper.double() @ damped[order][:, order]
    # Float32 and a condition number of at most 100 over the damping, times a few for sums.
    assert float((product - torch.eye(48)).abs().max()) < 1e-2
    assert torch.equal(upper, upper.triu())
    assert hessian.factor(0.01)[1] is upper


def test_statistics_that_are_no_numbers_are_refused_by_name() -> None:
    w = torch.randn(2, 32)
    for bad in (torch.nan, torch.inf):
        x = torch.randn(40, 32)
        x[7, 3] = bad
        with pytest.raises(QuantizeError, match=r"layers\.1\.q_proj are not finite"):
            Hessian("layers.1.q_proj", 32).add(x)
    indefinite = torch.eye(32)
    indefinite[0, 1] = indefinite[1, 0] = 1e6
    with pytest.raises(QuantizeError, match="singular even with a damping of 100"):
        solve(w, mean_of(indefinite), fit_grid(w, 4, 32, True))
