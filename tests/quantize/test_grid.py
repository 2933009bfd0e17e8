"""Grids of groups: nearest codes, clipping, zero points, short groups."""

from __future__ import annotations

import random

import pytest
import torch

from halfbyte.quantize.grid import fit_grid


def weights(rng: random.Random, n: int, k: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rng.getrandbits(30))
    rows = torch.rand(n, 1, generator=generator) + 0.05
    return torch.randn(n, k, generator=generator) * rows


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_are_the_nearest_and_clipping_never_costs(bits: int, symmetric: bool) -> None:
    rng = random.Random(random.getrandbits(32))
    for group in (16, 64, 100):
        k = rng.choice([64, 130, 200])
        w = weights(rng, 9, k)
        importance = torch.rand(k) + 0.01
        plain = fit_grid(w, bits, group, symmetric, importance, (1.0,))
        clipped = fit_grid(w, bits, group, symmetric, importance, (1.0, 0.9, 0.8, 0.5))
        assert plain.scales.shape == (9, -(-k // group))
        errors = []
        for grid in (plain, clipped):
            assert torch.equal(grid.scales, grid.scales.half().float())
            assert bool((grid.zeros == grid.zeros.round()).all())
            codes = grid.codes(w)
            assert int(codes.max()) <= grid.top
            value = grid.values(codes)
            for step in (-1, 1):
                other = grid.values((codes.float() + step).clamp(0, grid.top))
                assert bool(((value - w).abs() <= (other - w).abs() + 1e-6).all())
            errors.append((importance * (value - w).square()).view(9, -1).sum(1))
        # Each group takes the best of the clips, of which 1 is one.
        assert bool((errors[1] <= errors[0] * (1 + 1e-5)).all())


def test_an_asymmetric_grid_covers_the_range_within_half_a_step() -> None:
    rng = random.Random(random.getrandbits(32))
    w = weights(rng, 20, 128) + rng.uniform(-1, 1)
    grid = fit_grid(w, 4, 32, False, None, (1.0,))
    error = (grid.values(grid.codes(w)) - w).abs().view(20, 4, 32).amax(-1)
    # Half a step of rounding and half of the zero point's; float16 rounds the step itself, fifteen
    # of which reach from end to end.
    assert bool((error <= grid.scales * (1 + 15 * 2.0**-11)).all())


def test_groups_of_nothing_but_zeros_stay_zeros() -> None:
    grid = fit_grid(torch.zeros(3, 64), 4, 32, True)
    assert not grid.values(grid.codes(torch.zeros(3, 64))).any()
