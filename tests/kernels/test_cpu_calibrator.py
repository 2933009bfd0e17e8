"""The arithmetic of quantizing by the C kernels, against the same in plain torch."""

from __future__ import annotations

import random

import pytest
import torch
from cpu_support import library, needs_compiler
from seeds import fresh_seed
from torch import Tensor

from halfbyte.kernels.calibrator import PlainCalibrator, UniformGrid
from halfbyte.kernels.cpu.calibrator import CompiledCalibrator
from halfbyte.kernels.cpu.fit_ops import GPTQ_COLUMNS, MOMENT_TOKENS

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
    assert columns * n < 100 or len(want_codes.unique()) > 2


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
    n, k, bits = rng.choice([15, 16, 37]), rng.choice([64, 130, 700]), rng.randint(2, 8)
    w = torch.randn(n, k, generator=g) ** 3 * torch.rand(n, 1, generator=g) + rng.uniform(-0.3, 0.3)
    h = torch.rand(k, generator=g) ** 4
    h[: k // 8] = 0
    clips = (1.05, 1.0, 0.9, 0.8, 0.65, 0.5)
    errors: list[Tensor] = []
    pad = (0, -k % group)
    energy = torch.nn.functional.pad(h * w.square(), pad).unflatten(1, (-1, group)).sum(2)
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
            # go on from there: in few groups, in both directions. Weights have heavy tails, so one
            # of these may have most of all errors, and their sums tell nothing.
            unlike = ~torch.isclose(ours, theirs, rtol=1e-3, atol=1e-9)
            assert int(unlike.sum()) <= 3 + unlike.numel() // 20
            # Errors are compared in float32, as weights and steps are.
            rounding = 1e-7 * energy
            assert bool((ours <= best_of_clips(grid, w, h, clips) * (1 + 1e-4) + rounding).all())
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


@pytest.mark.parametrize("tokens", [1, 3, 256, 520])
def test_moments_of_whole_numbers_are_exact(tokens: int) -> None:
    """Codes are the numbers themselves where the largest of each panel is 127, and all sums stay
    below 2^24.
    """
    seed = fresh_seed()
    rng = random.Random(seed)
    g = torch.Generator().manual_seed(seed)
    k = rng.choice([1, 15, 48, 97, 200])
    x = torch.randint(-127, 128, (tokens, k), generator=g).float()
    x[::MOMENT_TOKENS] = 127.0
    wide = torch.full((tokens, k + 5), torch.nan)  # rows lie apart
    wide[:, :k] = x
    before = torch.randint(-1000, 1000, (k, k), generator=g).float()
    before = before + before.T
    want = before.double() + x.double().T @ x.double()
    for threads in (1, 2):
        sums = before.clone()
        CompiledCalibrator(library(threads)).add_moments(sums, wide[:, :k])
        assert torch.equal(sums.double(), want)


def test_moments_are_those_of_rounded_inputs() -> None:
    """Symmetric, no eigenvalue below 0 but by float32 sums, and as far off as rounding explains."""
    seed = fresh_seed()
    rng = random.Random(seed)
    g = torch.Generator().manual_seed(seed)
    tokens, k = rng.choice([300, 777]), rng.choice([33, 130])
    x = torch.randn(tokens, k, generator=g) * (torch.rand(k, generator=g) ** 4 + 1e-6)
    x[tokens // 2, 5] = 1000.0  # one token has nearly all of a column
    x[:, k // 3] = 0.0
    x[:, 0] = 1e-31  # whose squares float32 does not hold
    sums = torch.zeros(k, k)
    calibrator = CompiledCalibrator(library())
    calibrator.add_moments(sums, x[:100])
    calibrator.add_moments(sums, x[100:])
    want = x.double().T @ x.double()
    off = (sums - want).abs()
    assert torch.equal(sums, sums.T)
    assert float(torch.linalg.eigvalsh(sums.double()).min()) > -1e-5 * float(sums.diagonal().max())
    # Noise of 0.4 % of the energy of both columns, at worst all along the other column.
    root, noise = want.diagonal().sqrt(), 0.004**0.5
    assert bool((off <= (2 * noise + noise**2) * root * root.unsqueeze(1) + 1e-29).all())
    # Where nothing sticks out it is uniform and independent: eight times its deviation.
    pieces = [x[:100], *x[100:].split(MOMENT_TOKENS)]
    steps = torch.cat([(p.abs().amax(0) / 127).expand_as(p) for p in pieces]).double()
    mixed = (steps.square() / 12).T @ x.double().square()
    bound = 8 * (mixed + mixed.T).sqrt() + steps.T @ steps / 4 + 1e-5 * root * root.unsqueeze(1)
    usual = torch.arange(k) != 5
    assert bool((off <= bound + 1e-29)[usual][:, usual].all())


def test_moments_of_what_is_no_number_are_none() -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        x, sums = torch.randn(300, 40), torch.zeros(40, 40)
        x[280, 7] = bad
        CompiledCalibrator(library()).add_moments(sums, x)
        finite = sums.diagonal().isfinite()
        assert not finite[7] and int(finite.sum()) == 39
