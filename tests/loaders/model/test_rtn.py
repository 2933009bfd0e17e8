"""Round to nearest: no weight is further off than its scale allows, and odd cases are exact."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.errors import CheckpointError
from halfbyte.kernels.formats import code_tables
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders.model import rtn

# Rounding in float32: the scale, the quotient and the product are each off by 2**-24 of values
# up to 255 steps.
SLACK = 1 + 2**-13


def draw(seed: int, n: int, k: int, dtype: torch.dtype, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator) * spread
    weight[:, torch.randint(k, (1,), generator=generator)] *= 20  # an outlier
    # Large draws are beyond float16; weights to round are finite numbers.
    return weight.clamp(-6e4, 6e4).to(dtype)


def spread_scales(q: QuantizedLinear) -> torch.Tensor:
    """The scale of every weight, [N, K]."""
    size = q.in_features if q.format.group_size == -1 else q.format.group_size
    columns = [q.scales[:, k // size] for k in range(q.in_features)]
    return torch.stack(columns, dim=1)


shapes = {
    "seed": st.integers(0, 2**32 - 1),
    "n": st.integers(1, 7),
    "k": st.integers(1, 300),
    "group": st.sampled_from([-1, 16, 32, 64, 128]),
    "dtype": st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    "spread": st.sampled_from([1e-6, 1.0, 1e3]),
}


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), symmetric=st.booleans(), **shapes)
def test_no_weight_is_off_by_more_than_half_a_scale(
    bits, symmetric, seed, n, k, group, dtype, spread
):
    weight = draw(seed, n, k, dtype, spread)
    make = rtn.rtn_symmetric if symmetric else rtn.rtn_asymmetric
    q = make("w", weight, bits, group)
    groups = 1 if group == -1 else -(-k // group)
    assert q.shape == (n, k) and q.scales.shape == (n, groups)
    error = (q.dequantize() - weight.float()).abs()
    assert bool((error <= spread_scales(q) / 2 * SLACK).all())
    # Nothing nearer exists: the code next to the chosen one is no better.
    for step in (-1, 1):
        codes = q.unpack().int() + step
        valid = (codes >= 0) & (codes < 1 << bits)
        other = (q.dequantize() + step * spread_scales(q) - weight.float()).abs()
        assert bool((other[valid] >= error[valid] - spread_scales(q)[valid] * 2**-13).all())


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(["NF4", "FP4"]), **shapes)
def test_table_codes_are_the_nearest(kind, seed, n, k, group, dtype, spread):
    weight, table = draw(seed, n, k, dtype, spread), getattr(code_tables, kind)
    q = rtn.rtn_table("w", weight, group, table)
    scales = spread_scales(q)
    assert torch.equal(q.scales.amax(1), weight.float().abs().amax(1))
    all_values = torch.tensor(table)[None, None] * scales[..., None]
    best = (all_values - weight.float()[..., None]).abs().amin(-1)
    error = (q.dequantize() - weight.float()).abs()
    assert bool((error <= best + scales * 2**-22).all())


@pytest.mark.parametrize("kind", ["NF4", "FP4"])
def test_borders_between_values_fall_as_bucketize_has_them(kind):
    values = torch.tensor(getattr(code_tables, kind)).sort().values
    borders = (values[1:] + values[:-1]) / 2
    near = [borders]
    for towards in (-2.0, 2.0):
        step = borders
        for _ in range(40):
            step = torch.nextafter(step, torch.tensor(towards))
            near.append(step)
    bins = torch.arange(-512, 513) / 512
    x = torch.cat((*near, bins, torch.nextafter(bins, torch.tensor(0.0)), torch.tensor([1.0])))
    q = rtn.rtn_table("w", x[None], -1, getattr(code_tables, kind))
    assert torch.equal(q.dequantize()[0], values[torch.bucketize(x, borders)])


@pytest.mark.parametrize("k", [1, 127, 128, 129, 256])
def test_rows_of_zeros_and_constant_rows_are_exact(k):
    weight = torch.zeros(4, k)
    weight[1], weight[2], weight[3] = 0.75, -0.75, 1e-42
    for q in (
        rtn.rtn_asymmetric("w", weight, 4, 128),
        rtn.rtn_symmetric("w", weight, 8, 128),
        rtn.rtn_symmetric("w", weight, 8, -1),
        rtn.rtn_table("w", weight, 64),
    ):
        got = q.dequantize()
        assert bool(torch.isfinite(q.scales).all())
        assert torch.equal(got[0], weight[0])
        # One rounding of the scale, one of the product.
        torch.testing.assert_close(got[1:3], weight[1:3], rtol=2**-22, atol=0)
        # Denormal numbers may vanish, and must not grow.
        assert bool((got[3].abs() <= 2e-42).all())


def test_ranges_wider_than_float32_do_not_overflow():
    top = 0.9 * torch.finfo(torch.float32).max
    weight = torch.tensor([[top, -top, 0.0, top / 2]])
    for q in (rtn.rtn_asymmetric("w", weight, 4, 128), rtn.rtn_table("w", weight, 64)):
        assert bool(torch.isfinite(q.scales).all()) and bool(torch.isfinite(q.dequantize()).all())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_with_their_row(value):
    # Wide rows are worked on one at a time: the row's number counts from the matrix's top.
    weight = torch.zeros(6, 1 << 19, dtype=torch.float16)
    weight[4, 77] = value
    for make in (
        lambda: rtn.rtn_asymmetric("m.up_proj.weight", weight, 4, 128),
        lambda: rtn.rtn_symmetric("m.up_proj.weight", weight, 8, -1),
        lambda: rtn.rtn_table("m.up_proj.weight", weight, 64),
    ):
        with pytest.raises(CheckpointError, match=r"m\.up_proj\.weight has a weight in row 4"):
            make()


def test_chunks_of_rows_agree_with_the_whole():
    weight = draw(11, 40, 1 << 16, torch.float32)  # 16 rows at a time
    q = rtn.rtn_asymmetric("w", weight, 4, 128)
    alone = [rtn.rtn_asymmetric("w", weight[i : i + 1], 4, 128) for i in range(40)]
    together = QuantizedLinear.concat(alone)
    assert torch.equal(q.codes, together.codes)
    assert torch.equal(q.scales, together.scales)
    assert q.zeros is not None and together.zeros is not None
    assert torch.equal(q.zeros, together.zeros)


def test_how_good_the_schemes_are_on_normal_weights():
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))

    def rms(q: QuantizedLinear) -> float:
        return float((q.dequantize() - weight).square().mean().sqrt())

    # docs/formats.md quotes these; the zero points of w4a16 pay for themselves.
    assert rms(rtn.rtn_asymmetric("w", weight, 4, 128)) == pytest.approx(0.1006, rel=0.02)
    assert rms(rtn.rtn_symmetric("w", weight, 4, 128)) == pytest.approx(0.1173, rel=0.02)
    assert rms(rtn.rtn_table("w", weight, 64)) == pytest.approx(0.0919, rel=0.02)
    assert rms(rtn.rtn_symmetric("w", weight, 8, 128)) == pytest.approx(0.0065, rel=0.02)
    assert rms(rtn.rtn_symmetric("w", weight, 8, -1)) == pytest.approx(0.0079, rel=0.02)
