"""Scales and offsets that stay as in the file: the bits of products with them in float32."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from cpu_support import (
    Kind,
    byte_kinds,
    library,
    make_case,
    naive_scales,
    needs_compiler,
    run,
    tokens,
)
from seeds import fresh_seed
from torch import Tensor

from halfbyte.engine.backends.cpu_c import CompiledOps
from halfbyte.kernels.cpu.enums import Added, NumberType
from halfbyte.kernels.cpu.pack import TiledLinear
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.kernels.formats.compact import CodedScales, FloatZeros
from halfbyte.kernels.formats.weight_format import InputRule

pytestmark = needs_compiler

HALF, BRAIN = torch.float16, torch.bfloat16
KINDS = [
    *(Kind(4, group, "table", compact=True) for group in (32, 64, -1)),
    *(Kind(4, 64, "float", scale, compact=True) for scale in (HALF, BRAIN, torch.float32)),
    Kind(8, 16, "float", HALF, compact=True),
    Kind(4, -1, "float", HALF, compact=True),
    *byte_kinds(),
]
# Straight from codes, and from a panel.
ROWS = (1, 2, 5, 8, 40)


def coded(kind: Kind, n: int, k: int, seed: int) -> QuantizedLinear:
    weight = make_case(kind, n, k, seed).weight
    assert isinstance(weight, QuantizedLinear) and weight.compact is not None
    return weight


def products(weight: QuantizedLinear, seed: int) -> list[Tensor]:
    """With float inputs and with rounded ones, for few rows and many, and a row of the matrix."""
    found = []
    rules: tuple[InputRule, InputRule] = ("float", "int8-block32")
    for activations in rules:
        ops = CompiledOps(library(), True, activations=activations)
        packed = ops.pack(weight)
        for t in ROWS:
            found.append(run(ops, ops.linear, tokens(seed + t, t, weight.in_features), packed))
        ids = torch.tensor([0, weight.shape[0] - 1])
        found.append(run(ops, ops.embed, ids, packed))
    return found


def packed_as(weight: QuantizedLinear) -> TiledLinear:
    return CompiledOps(library(), True, activations="float").pack(weight)


def is_compact(made: TiledLinear) -> bool:
    bytes_each = (NumberType.NESTED, NumberType.E8M0, NumberType.E4M3)
    return made.number in bytes_each or made.added == Added.FLOAT_ZERO


@pytest.mark.exact
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_products_have_the_bits_of_numbers_in_float32(kind: Kind) -> None:
    seed = fresh_seed()
    rng = random.Random(seed)
    n, k = rng.choice([1, 31, 33, 100]), rng.choice([1, 40, 96, 320, 576])
    weight = coded(kind, n, k, seed)
    assert is_compact(packed_as(weight)) and not is_compact(
        packed_as(replace(weight, compact=None))
    )
    plain = products(replace(weight, compact=None), seed)
    for got, want in zip(products(weight, seed), plain, strict=True):
        assert torch.equal(got, want), (n, k)


@pytest.mark.exact
def test_stacked_scales_keep_their_runs() -> None:
    """Parts that meet inside of a tile, one of them cut out of a taller matrix."""
    seed = fresh_seed()
    rng = random.Random(seed)
    k = 32 * rng.randrange(1, 20)
    parts = [coded(Kind(4, 32, "table", compact=True), n, k, seed + n) for n in (70, 9, 33)]
    first = parts[0].compact
    assert isinstance(first, CodedScales)
    for part in parts:
        # As of one model: one table of entries, of scales, and one length of runs.
        other = part.compact
        assert isinstance(other, CodedScales)
        part.format = parts[0].format
        runs = 1 + int(other.firsts[-1]) + k // 32 >> first.run_shift
        outer = torch.rand(runs + 1, 2, generator=torch.Generator().manual_seed(seed + runs))
        part.compact = replace(other, table=first.table, run_shift=first.run_shift, outer=outer)
        part.scales = naive_scales(part.compact)
    parts[0] = parts[0].rows(5, 64)
    whole = QuantizedLinear.concat(parts)
    assert is_compact(packed_as(whole))
    for got, want in zip(
        products(whole, seed), products(replace(whole, compact=None), seed), strict=True
    ):
        assert torch.equal(got, want), k


@pytest.mark.parametrize("kind", [KINDS[1], KINDS[3]], ids=str)
def test_numbers_that_were_changed_are_what_counts(kind: Kind) -> None:
    """A weight whose scales somebody multiplied and whose compact form nobody did."""
    weight = coded(kind, 40, 128, fresh_seed())
    weight.scales = weight.scales * 2
    made = packed_as(weight)
    assert not is_compact(made)
    assert torch.equal(made.data, packed_as(replace(weight, compact=None)).data)


def test_scales_of_two_tables_are_plain() -> None:
    seed = fresh_seed()
    parts = [coded(KINDS[1], 33, 128, seed + i) for i in range(2)]
    parts[1].format = parts[0].format
    whole = QuantizedLinear.concat(parts)
    assert whole.compact is None and not is_compact(packed_as(whole))


@pytest.mark.parametrize("scale", [HALF, BRAIN])
def test_zero_points_and_offsets_are_not_mixed(scale: torch.dtype) -> None:
    """Parts with zero points of one type stay so, all others become offsets."""
    seed = fresh_seed()
    weight = coded(Kind(4, 64, "float", scale, compact=True), 20, 128, seed)
    again = QuantizedLinear.concat([weight, weight])
    assert isinstance(again.compact, FloatZeros) and is_compact(packed_as(again))
    for other in (
        replace(weight, compact=None),
        coded(Kind(4, 64, "float", compact=True), 20, 128, seed),
    ):
        for order in ([weight, other], [other, weight]):
            assert QuantizedLinear.concat(order).compact is None
