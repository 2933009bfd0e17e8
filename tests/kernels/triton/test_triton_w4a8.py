"""W4A8 in the interpreter: the bits of the rule, of the C kernels, and of every number of rows."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from cpu_support import library, needs_compiler, run
from torch import Tensor

from halfbyte.engine.backends.cpu_c import CompiledOps
from halfbyte.errors import KernelInputError, UnsupportedWeightError
from halfbyte.kernels import reference as ref
from halfbyte.kernels.device.column_order import SLICE, column_order
from halfbyte.kernels.device.input_rounding import InputRounding
from halfbyte.kernels.device.workspace import Workspace
from halfbyte.kernels.formats.activations import quantize_tokens
from halfbyte.kernels.formats.canonical import (
    ActivationFormat,
    QuantizedLinear,
    WeightFormat,
    ZeroKind,
    pack_codes,
)
from halfbyte.kernels.formats.weight_format import TOKEN_RULE
from halfbyte.kernels.kind import MatrixSpec, ProductContext, carrier
from halfbyte.kernels.kinds import KINDS
from halfbyte.kernels.w4a8 import op, quantize_inputs, w4a8_linear
from halfbyte.kernels.w4a8.config import W4A8Config, choose, tiles_of
from halfbyte.kernels.w4a8.kind import W4A8

CPU = torch.device("cpu")
ZEROS: tuple[ZeroKind, ...] = ("none", "int", "float")


@pytest.fixture
def draw(rng: torch.Generator) -> random.Random:
    return random.Random(rng.initial_seed())


def weight_of(
    rng: torch.Generator, n: int, k: int, group: int, zero: ZeroKind, bits: int = 4
) -> QuantizedLinear:
    """A random weight [N, K]; half of them with scales that float16 does not hold."""
    shape = n, 1 if group == -1 else -(-k // group)
    codes = torch.randint(0, 1 << bits, (n, k), generator=rng, dtype=torch.uint8)
    scales = torch.rand(shape, generator=rng) * 0.02 + 1e-3
    if torch.rand((), generator=rng) < 0.5:
        scales = scales.half()
    zeros = None
    if zero == "int":
        zeros = torch.randint(0, 17, shape, generator=rng).float()
    elif zero == "float":
        zeros = torch.randn(shape, generator=rng) * 0.1
    form = WeightFormat(bits, group, zero, act=TOKEN_RULE)
    return QuantizedLinear("w", form, pack_codes(codes, bits), scales, zeros, k)


def columns(draw: random.Random, slices: int) -> int:
    """A K of so many slices, the last of which may have any number of columns."""
    return (slices - 1) * SLICE + draw.choice([SLICE, draw.randint(1, SLICE)])


def chains(x: Tensor, weight: QuantizedLinear, splits: int) -> Tensor:
    """What comes out of splits of K, float32: a chain of sums each, added in order."""
    q, d = quantize_tokens(x)
    slices = -(-weight.in_features // SLICE)
    step = SLICE * -(-slices // splits)
    parts = [
        ref.token_sums(q, weight, start, min(start + step, weight.in_features)) * d
        for start in range(0, weight.in_features, step)
    ]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return whole


def product(x: Tensor, weight: QuantizedLinear, gated: bool = False, **options: Any) -> Tensor:
    packed = W4A8.pack(weight, x.dtype, CPU, gated)
    q, d = quantize_inputs(x, packed)
    return w4a8_linear(q, d, packed, dtype=x.dtype, **options)


@pytest.mark.exact
@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("group", [32, 64, 96, 128, 256, 384, -1])
def test_every_tile_has_the_bits_of_the_rule(rng, draw, space, monkeypatch, group, zero) -> None:
    slices = draw.randint(1, 5)
    k, n = columns(draw, slices), draw.randint(1, 140)
    weight = weight_of(rng, n, k, group, zero, draw.choice([2, 3, 4, 4]))
    packed = W4A8.pack(weight, torch.float16, CPU, False).weight
    for tile in tiles_of(packed.group, packed.additive, 0):
        m = draw.randint(1, min(tile.bm + 3, 50))
        splits = draw.randint(1, slices)
        splits = -(-slices // -(-slices // splits))  # none without slices
        x = torch.randn(m, k, generator=rng).half()
        bias = torch.randn(n, generator=rng).half() if draw.random() < 0.5 else None
        residual = torch.randn(m, n, generator=rng).half() if draw.random() < 0.5 else None
        want = chains(x, weight, splits)
        for added in (bias, residual):
            want = want if added is None else want + added.float()
        config = replace(tile, splits=splits)
        monkeypatch.setattr(op.cfg, "choose", lambda *_, chosen=config, **__: chosen)
        got = product(x, weight, bias=bias, residual=residual, workspace=space)
        assert torch.equal(got, want.half()), (config, m, n, k)
        assert not space.counters.any()
        if splits == 1 and bias is None and residual is None:
            assert torch.equal(got, ref.token_linear(x, weight).half())


@pytest.mark.exact
@needs_compiler
@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("group", [32, 64, 96, 128, 256, -1])
def test_the_c_kernels_give_the_same_bits(rng, draw, monkeypatch, group, zero) -> None:
    k, n = columns(draw, draw.randint(1, 4)), draw.randint(1, 140)
    weight = weight_of(rng, n, k, group, zero)
    tile = replace(draw.choice(tiles_of(0, zero == "float", 0)[:3]), splits=1)
    monkeypatch.setattr(op.cfg, "choose", lambda *_, **__: tile)
    ops = CompiledOps(library(), True, activations="int8-token")
    if ops.library.form == "plain":
        pytest.skip("a form without fused multiply-adds")
    x, bias = torch.randn(12, k, generator=rng).half(), torch.randn(n, generator=rng).half()
    form = replace(weight.format, act=None)
    tiles = ops.pack(replace(weight, format=form), bias.float())
    assert tiles.rule == "int8-token"
    assert torch.equal(product(x, weight, bias=bias), run(ops, ops.linear, x.float(), tiles).half())


def test_gate_and_up(rng, draw) -> None:
    k, half = columns(draw, 2), draw.randint(1, 80)
    weight = weight_of(rng, 2 * half, k, draw.choice([32, 128]), draw.choice(ZEROS))
    x, bias = torch.randn(9, k, generator=rng).half(), torch.randn(2 * half, generator=rng).half()
    got = product(x, weight, gated=True, bias=bias)
    want = ref.gated_mul((chains(x, weight, 1) + bias.float()).double())
    # The exponential has an error of two units of float32.
    bound = 2.0**-11 * want.abs() + 2.0**-20 * want.abs() + 1e-7
    assert got.shape == (9, half) and ((got.double() - want).abs() <= bound).all()


@pytest.mark.exact
def test_exact_rows_do_not_depend_on_their_number(rng, draw) -> None:
    k, n = columns(draw, 9), draw.randint(1, 100)
    weight = weight_of(rng, n, k, draw.choice([64, 128]), draw.choice(ZEROS))
    context = ProductContext(Workspace(CPU), exact=True)
    packed = W4A8.pack(weight, torch.float16, CPU, False)
    x = torch.randn(40, k, generator=rng).half()
    whole = W4A8.linear(x, packed, None, None, None, context)
    for m in (1, 3, 9, 17):
        row = draw.randint(0, 40 - m)
        part = W4A8.linear(x[row : row + m], packed, None, None, None, context)
        assert torch.equal(part, whole[row : row + m]), m


def test_exact_splits_are_the_same_for_every_number_of_rows(draw) -> None:
    for _ in range(100):
        rows, k = 128 * draw.randint(1, 300), draw.randint(1, 30000)
        form = {
            "group": draw.choice([0, 32, 64, 128, 256]),
            "additive": draw.random() < 0.5,
            "arch": draw.choice([80, 90, 100, 120]),
            "sms": draw.randint(1, 160),
        }
        splits = {choose(m, rows, k, exact=True, **form).splits for m in (1, 8, 9, 33, 65, 4000)}
        assert len(splits) == 1
        for m in (1, 20, 500):
            found = choose(m, rows, k, **form)
            assert 1 <= found.splits <= -(-k // SLICE)
            assert replace(found, splits=1) in tiles_of(
                form["group"], form["additive"], form["arch"]
            )


def test_few_partial_sums_bound_the_rows_of_a_launch(rng, draw, space, monkeypatch) -> None:
    """More token tiles than the workspace holds the splits of."""
    weight = weight_of(rng, 250, 512, 128, "int")
    tile = W4A8Config(16, 2, 4, splits=4)
    monkeypatch.setattr(op.cfg, "choose", lambda *_, **__: tile)
    x = torch.randn(70, 512, generator=rng).half()
    small = Workspace(CPU, partial_bytes=4 * 2 * 4 * 16 * 128 * 2, counters=64)
    small.partials.fill_(float("nan"))
    got = product(x, weight, workspace=small)
    assert torch.equal(got, chains(x, weight, 4).half())


@pytest.mark.exact
@pytest.mark.parametrize("order", ["together", "apart"])
@pytest.mark.parametrize("width", [1, 127, 300, 17000])
def test_inputs_are_rounded_by_the_rule_in_the_order_of_codes(rng, order, width) -> None:
    x = torch.randn(9, width, generator=rng)
    x[1] = 0
    x[2] *= 1e-42  # a subnormal scale, which leaves quotients beyond 127
    x[3, width // 2] = torch.nan
    x[4, 0] = torch.inf
    x[5, -1] = -torch.inf
    x[6] *= 1e37
    made = op.quantize_rows(x, InputRounding(order=order))
    q, scale = made.codes, made.scale
    want, want_scale = quantize_tokens(x)
    assert q.shape == (9, -(-width // SLICE) * SLICE)
    padded = torch.nn.functional.pad(want, (0, q.shape[1] - width)).view(9, -1, SLICE)
    fine = want_scale[:, 0].isfinite()
    places = torch.tensor(column_order(order))
    assert torch.equal(q.float()[fine], padded[:, :, places].reshape(9, -1)[fine])
    assert torch.equal(scale.nan_to_num(-1), want_scale[:, 0].nan_to_num(-1))
    assert fine.tolist() == [True, True, True, False, False, False, True, True, True]


def test_a_row_that_is_no_number_stays_alone(rng) -> None:
    weight = weight_of(rng, 70, 200, 64, "int")
    x = torch.randn(5, 200, generator=rng).half()
    want = product(x, weight)
    x[2, 77] = torch.inf
    got = product(x, weight)
    assert got[2].isnan().all()
    assert torch.equal(got[[0, 1, 3, 4]], want[[0, 1, 3, 4]])


def test_zero_points_beyond_the_kernels_are_refused_and_fractions_become_offsets(rng) -> None:
    weight = weight_of(rng, 20, 256, 128, "int")
    assert weight.zeros is not None
    x = torch.randn(3, 256, generator=rng).half()
    weight.zeros[1, 1] = 31
    assert torch.equal(product(x, weight), chains(x, weight, 1).half())
    weight.zeros[1, 1] = 32
    with pytest.raises(UnsupportedWeightError, match="zero points up to 32"):
        product(x, weight)
    weight.zeros[1, 1] = 7.5
    assert torch.equal(product(x, weight), chains(x, weight, 1).half())


def test_a_checkpoint_that_rounds_to_8_bits_itself_keeps_its_own_top(rng) -> None:
    weight = weight_of(rng, 30, 256, 128, "none")
    own = replace(weight, format=replace(weight.format, act=ActivationFormat()))
    spec = MatrixSpec.of(own)
    assert carrier(KINDS, spec, 90).kind is W4A8
    x = torch.randn(4, 256, generator=rng).half()
    want = ref.quantized_linear(x.float(), own.dequantize(), None, ActivationFormat())
    got = W4A8.linear(
        x, W4A8.pack(own, x.dtype, CPU, False), None, None, None, ProductContext(Workspace(CPU))
    )
    # Two sums of float32 products, and one rounding to float16.
    bound = 2.0**-11 * want.abs() + 2.0**-16 * want.abs().max()
    assert ((got.float() - want).abs() <= bound).all()


def test_shapes_and_types_are_checked(rng) -> None:
    weight = weight_of(rng, 30, 256, 128, "none")
    packed = W4A8.pack(weight, torch.float16, CPU, False)
    q, d = quantize_inputs(torch.randn(4, 256, generator=rng), packed)
    with pytest.raises(KernelInputError, match="xq "):
        w4a8_linear(q[:, :128].contiguous(), d, packed, dtype=torch.float16)
    with pytest.raises(KernelInputError, match="sx "):
        w4a8_linear(q, d[:3], packed, dtype=torch.float16)
    with pytest.raises(KernelInputError, match="dtype is torch"):
        w4a8_linear(q, d, packed, dtype=torch.float32)
    assert w4a8_linear(q[:0], d[:0], packed, dtype=torch.float16).shape == (0, 30)
