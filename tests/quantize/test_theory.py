"""The formulas of uniform quantization against numbers that were really rounded."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from halfbyte.errors import QuantizeError
from halfbyte.loaders import open_checkpoint
from halfbyte.quantize.theory import (
    Granularity,
    compression,
    full_range_sqnr,
    integer_product,
    predicted_sqnr,
    round_uniform,
    sqnr,
    step_mse,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"


def mse(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y.double()).square().mean())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_a_step_costs_its_square_over_12(bits: int, symmetric: bool) -> None:
    """Of 200 000 even numbers, whose mean of squares has a standard error of 0.2 %."""
    x = torch.rand(500, 400) * 2 - 1
    rounded = round_uniform(x, bits, "tensor", symmetric=symmetric)
    assert mse(x, rounded.values) == pytest.approx(step_mse(float(rounded.steps)), rel=0.02)
    assert rounded.predicted_mse() == pytest.approx(step_mse(float(rounded.steps)))
    # Both grids have 2^b - 1 steps over the range.
    assert sqnr(x, rounded.values) == pytest.approx(full_range_sqnr(bits), abs=0.1)


def test_the_ratios_that_are_often_quoted() -> None:
    assert full_range_sqnr(8) == pytest.approx(48.13, abs=0.01)
    assert full_range_sqnr(4) == pytest.approx(23.52, abs=0.01)
    # 50 and 26 dB are those of a sine, whose peak is sqrt 2 times its sigma.
    assert predicted_sqnr(8, math.sqrt(2)) == pytest.approx(49.93, abs=0.01)
    assert predicted_sqnr(4, math.sqrt(2)) == pytest.approx(25.84, abs=0.01)
    assert predicted_sqnr(7, math.sqrt(3)) == pytest.approx(7 * 6.0206, abs=0.001)


@pytest.mark.parametrize("bits", [6, 8])
def test_the_ratio_of_numbers_that_are_not_even(bits: int) -> None:
    """Gaussian ones, and a sine, which rests at its peaks: there errors are not even. The formula
    has 2^b steps, a grid with codes at its ends one less.
    """
    waves = torch.sin(torch.linspace(0, 40 * math.pi, 100_000)).view(1, -1)
    less = 20 * math.log10(2**bits / (2**bits - 1))
    for x, within in ((torch.randn(1, 100_000), 0.1), (waves, 0.4)):
        rounded = round_uniform(x, bits, "tensor")
        peak = float(x.abs().max() / x.square().mean().sqrt())
        predicted = predicted_sqnr(bits, peak) - less
        assert sqnr(x, rounded.values) == pytest.approx(predicted, abs=within)


@pytest.mark.parametrize("symmetric", [False, True])
def test_finer_grids_have_smaller_steps(symmetric: bool) -> None:
    """The sum of squared steps over elements always, the real error in the mean over matrices of
    rows of unequal size.
    """
    rng = random.Random(random.getrandbits(32))
    errors = {"tensor": 0.0, "channel": 0.0, "group": 0.0}
    for _ in range(10):
        bits = rng.choice([3, 4, 8])
        x = torch.randn(24, 96) * (torch.rand(24, 1) * 2 + 0.1)
        steps = {}
        for granularity in errors:
            group = 32 if granularity == "group" else -1
            rounded = round_uniform(x, bits, granularity, group, symmetric)
            steps[granularity] = rounded.predicted_mse()
            errors[granularity] += mse(x, rounded.values) / float(x.square().mean())
        # Steps are rounded to float16, by 1 in 2048 at most.
        assert steps["group"] <= steps["channel"] * 1.001
        assert steps["channel"] <= steps["tensor"] * 1.001
    assert errors["group"] < errors["channel"] < errors["tensor"]


def test_by_token_is_by_row_of_inputs() -> None:
    x = torch.randn(5, 64) * torch.tensor([[1.0], [10], [100], [0.1], [1]])
    by_token, by_row = round_uniform(x, 8, "token"), round_uniform(x, 8, "channel")
    assert torch.equal(by_token.values, by_row.values)
    assert by_token.steps.shape == (5,)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_ranges_do_what_they_are_chosen_for(granularity: Granularity) -> None:
    group = 64 if granularity == "group" else -1
    x = torch.randn(16, 256) * (torch.rand(16, 1) + 0.5)
    x[:, ::37] *= 6
    importance = torch.rand(256).square() * 4 + 0.01
    importance[::37] = 1e-4  # outliers that nothing comes of

    def cost(rule: str, weights: Tensor) -> float:
        given = importance if rule == "output" else None
        y = round_uniform(x, 6, granularity, group, True, rule, given, 98.0).values  # type: ignore
        return float(((y - x).square() * weights).sum())

    same = torch.ones(256)
    assert cost("mse", same) <= min(cost(r, same) for r in ("min-max", "output"))
    assert cost("output", importance) < 0.9 * min(cost(r, importance) for r in ("min-max", "mse"))
    covered = round_uniform(x, 4, granularity, group, True, "percentile", None, 98.0)
    whole = round_uniform(x, 4, granularity, group, True)
    assert float(covered.steps.mean()) < float(whole.steps.mean())
    # All but 2 % of each grid's numbers lie within its range.
    share = ((covered.values - x).abs() <= float(covered.steps.max()) / 2 * 1.01).float().mean()
    assert float(share) >= 0.97


def test_rules_without_what_they_need_are_refused() -> None:
    x = torch.randn(2, 32)
    with pytest.raises(QuantizeError, match="granularity is group and group -1"):
        round_uniform(x, 4, "group")
    with pytest.raises(QuantizeError, match="granularity is channel and group 32"):
        round_uniform(x, 4, "channel", 32)
    with pytest.raises(QuantizeError, match="rule is output; expected an importance"):
        round_uniform(x, 4, rule="output")
    with pytest.raises(QuantizeError, match="rule is mse; expected an importance with output"):
        round_uniform(x, 4, rule="mse", importance_K=torch.ones(32))


def test_zero_points_come_out_of_the_product_of_codes_exactly() -> None:
    rng = random.Random(random.getrandbits(32))
    for _ in range(20):
        m, n, k = (rng.randint(1, 9) for _ in range(3))
        za, zb = rng.randint(-128, 127), rng.randint(0, 255)
        a = torch.randint(-128, 128, (m, k), dtype=torch.int8)
        b = torch.randint(0, 256, (n, k), dtype=torch.uint8)
        rows = [[sum((x - za) * (y - zb) for x, y in zip(r, s, strict=True)) for s in b.tolist()]
                for r in a.tolist()]  # fmt: skip
        assert integer_product(a, za, b, zb).tolist() == rows


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("gguf-q4_0-spm-llama", 4.5),
        # Groups of 128: half a byte, two bytes of a scale, half a byte of a zero point, and a
        # permutation for each matrix.
        ("gptq-v1-4b-g128-sym-llama", 4.2),
        ("ct-w8a16-channel-gemma2", 8.2),
        ("bnb-nf4-dq-llama", 4.2),
    ],
)
def test_compression_counts_what_belongs_to_the_codes(name: str, bits: float) -> None:
    """Never the full 8 or 4 times. Matrices this small spend up to a bit on headers and scales."""
    path = next((FIXTURES / name).glob("*.gguf"), FIXTURES / name)
    checkpoint = open_checkpoint(path)
    counted = compression(i for i in checkpoint.tensors() if "layers" in i.name)
    checkpoint.close()
    assert bits - 0.3 < counted.bits < bits + 1
    assert counted.ratio() == pytest.approx(32 / counted.bits)
    assert counted.ratio() < 32 / round(bits - 0.4)
    assert counted.ratio(16) == pytest.approx(counted.ratio() / 2)


def test_a_dense_checkpoint_has_no_compression() -> None:
    checkpoint = open_checkpoint(FIXTURES / "fp16-llama-spm")
    with pytest.raises(QuantizeError, match="no tensor of the checkpoint is quantized"):
        compression(checkpoint.tensors())
    checkpoint.close()
