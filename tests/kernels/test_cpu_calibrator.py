"""The arithmetic of quantizing by the C kernels, against the same in plain torch."""

from __future__ import annotations

import random

import pytest
import torch
from cpu_support import library, needs_compiler
from statistics_support import fresh_seed
from torch import Tensor

from halfbyte.kernels.calibrator import PlainCalibrator, UniformGrid
from halfbyte.kernels.cpu.calibrator import CompiledCalibrator
from halfbyte.kernels.cpu.fit_ops import GPTQ_COLUMNS

pytestmark = needs_compiler


@pytest.mark.parametrize("columns", [1, 7, 8, 61, GPTQ_COLUMNS])
def test_columns_are_rounded_bit_for_bit(columns: int) -> None:
    """No product is fused and no sum has another order."""
    seed = fresh_seed()
    rng = random.Random(seed)
    g = torch.Generator().manual_seed(seed)
    n, groups, bits = rng.choice([1, 15, 16, 50, 133]), 5, rng.randint(2, 8)
    w = torch.randn(columns, n, generator=g)
    # A block of a larger factor, as it is cut out.
    factor = torch.randn(columns + 9, columns + 20, generator=g).triu() * 0.3
    factor = factor[4 : 4 + columns, 4 : 4 + columns]
    factor.diagonal().copy_(torch.rand(columns, generator=g) + 0.5)
    scales = torch.randn(groups, n, generator=g)
    scales = torch.where(scales.abs() < 0.01, 0.01, scales) * 4 * 2.0**-bits
    zeros = torch.rand(groups, n, generator=g) * 2**bits
    which = torch.randint(0, groups, (columns,), generator=g, dtype=torch.int32)
    arguments = (w, factor, scales, zeros, which, (1 << bits) - 1)
    kept = w.clone()
    want_codes, want_errors = PlainCalibrator().round_columns(*arguments)
    codes, errors = CompiledCalibrator(library()).round_columns(*arguments)
    assert torch.equal(w, kept)
    assert torch.equal(codes, want_codes)
    assert torch.equal(errors, want_errors)
    assert columns == 1 or len(want_codes.unique()) > 2


def lost(grid: UniformGrid, w: Tensor, h: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """Weighted squared error of each group by the definition, float64 [N, G]."""
    k = w.shape[1]
    wide = [x.double().repeat_interleave(grid.group, 1)[:, :k] for x in (scales, zeros)]
    q = (w / wide[0] + wide[1]).round().clamp(0, grid.top) - wide[1]
    error = h.double() * (w - q * wide[0]).square()
    return (
        torch.nn.functional.pad(error, (0, -k % grid.group)).unflatten(1, (-1, grid.group)).sum(2)
    )


def best_of_clips(grid: UniformGrid, w: Tensor, h: Tensor, clips: tuple[float, ...]) -> Tensor:
    """The least error of grids that are nothing but clipped ranges."""
    k = w.shape[1]
    groups = torch.nn.functional.pad(w, (0, -k % grid.group)).unflatten(1, (-1, grid.group))
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    zeros = torch.full_like(low, (grid.top + 1) / 2)
    if grid.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    errors = []
    for clip in clips:
        scales = ((high - low) * clip / grid.top).half().float().clamp(min=2.0**-14)
        if not grid.symmetric:
            zeros = (-low * clip / scales).round().clamp(0, grid.top)
        errors.append(lost(grid, w, h, scales, zeros))
    return torch.stack(errors).amin(0)


@pytest.mark.parametrize("group", [8, 64, 100, 700])
@pytest.mark.parametrize("symmetric", [False, True])
def test_uniform_grids_are_the_plain_ones_and_never_worse_than_clips(
    group: int, symmetric: bool
) -> None:
    seed = fresh_seed()
    rng = random.Random(seed)
    g = torch.Generator().manual_seed(seed)
    n, k, bits = rng.choice([1, 16, 37]), rng.choice([64, 130, 700]), rng.randint(2, 8)
    w = torch.randn(n, k, generator=g) ** 3 * torch.rand(n, 1, generator=g) + rng.uniform(-0.3, 0.3)
    h = torch.rand(k, generator=g) ** 4
    h[: k // 8] = 0
    clips = (1.05, 1.0, 0.9, 0.8, 0.65, 0.5)
    errors: list[Tensor] = []
    for both_signs in (False, True):
        for refits in (0, 2):
            grid = UniformGrid(group, (1 << bits) - 1, symmetric, refits, both_signs)
            found = CompiledCalibrator(library()).fit_uniform(grid, w, h, clips)
            plain = PlainCalibrator().fit_uniform(grid, w, h, clips)
            for scales, zeros in (found, plain):
                assert torch.equal(scales, scales.half().float())
                assert bool((scales.abs() >= 2.0**-14).all())
                assert torch.equal(zeros, zeros.round().clamp(0, grid.top))
                assert both_signs or bool((scales > 0).all())
                assert not symmetric or bool((zeros == (grid.top + 1) / 2).all())
            ours, theirs = lost(grid, w, h, *found), lost(grid, w, h, *plain)
            # Sums in another order may settle on another grid that is as good but for rounding, and
            # go on from there.
            assert torch.allclose(ours, theirs, rtol=0.1, atol=1e-9)
            assert float(ours.sum()) == pytest.approx(float(theirs.sum()), rel=5e-3)
            # Errors are compared in float32.
            assert bool((ours <= best_of_clips(grid, w, h, clips) * (1 + 1e-4) + 1e-9).all())
            errors.append(ours.sum())
    assert errors[1] < errors[0], "fits beat clips"
    assert errors[2] <= errors[0] * (1 + 1e-6), "and so may the other sign"


def test_groups_of_zeros_keep_a_scale_and_stay_zeros() -> None:
    w = torch.zeros(3, 40)
    for symmetric in (False, True):
        grid = UniformGrid(16, 15, symmetric, 2, True)
        scales, zeros = CompiledCalibrator(library()).fit_uniform(
            grid, w, torch.ones(40), (1.0, 0.5)
        )
        assert bool((scales.abs() >= 2.0**-14).all())
        assert not lost(grid, w, torch.ones(40), scales, zeros).any()
