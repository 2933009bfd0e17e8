"""The meaning of ``int8-token``: fused multiply-adds, whole numbers, what sums stand for."""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import replace

import pytest
import torch
from cpu_support import Kind, make_case, tokens
from seeds import fresh_seed

from halfbyte.kernels import reference as ref
from halfbyte.kernels.formats.activations import piece_columns, quantize_tokens
from halfbyte.kernels.formats.canonical import QuantizedLinear, WeightFormat, pack_codes
from halfbyte.kernels.formats.code_tables import NF4
from halfbyte.kernels.formats.weight_format import ZeroKind
from halfbyte.kernels.formats.whole import whole_numbers, zero_points


def test_multiply_adds_are_rounded_once() -> None:
    """As the C library's, over all exponents, with results that cancel, and none that are tied."""
    name = ctypes.util.find_library("m")
    if name is None:
        pytest.skip("no C library of mathematics")
    fmaf = ctypes.CDLL(name).fmaf
    fmaf.restype, fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    g = torch.Generator().manual_seed(fresh_seed())
    a, b, c = (
        torch.randn(6000, generator=g) * 2.0 ** torch.randint(-60, 50, (6000,), generator=g)
        for _ in range(3)
    )
    c[:2000] = -(a * b)[:2000]  # what is left is the rounding of the product
    c[2000:3000] *= 2.0**-40
    # Halves of a last place, and a bit that decides them, far below.
    a[3000:4000], b[3000:4000] = 1 + 2.0**-12, 1 + 2.0**-12
    c[3000:4000] = 2.0 ** torch.randint(-140, 40, (1000,), generator=g).float()
    a[4000:4500] *= 2.0**-70  # subnormal ones
    b[4000:4500] *= 2.0**-70
    c[4000:4500] *= 2.0**-100
    got = ref.fused_multiply_add(a, b, c)
    want = torch.tensor([fmaf(*three) for three in zip(*map(list, (a, b, c)), strict=True)])
    assert torch.equal(got, want)
    odd = torch.tensor([torch.nan, torch.inf, 1.0])
    assert ref.fused_multiply_add(odd, odd, odd).isfinite().tolist() == [False, False, True]


@pytest.mark.parametrize("zero", ["none", "int", "float"])
@pytest.mark.parametrize("group", [16, 48, 96, 128, 320, -1])
def test_what_the_sums_stand_for(group: int, zero: ZeroKind) -> None:
    """Against float64 of the rounded inputs: a rounding for each piece, and three more."""
    seed = fresh_seed()
    case = make_case(Kind(4, group, zero), 20, 333, seed)
    assert isinstance(case.weight, QuantizedLinear)
    x, bias = tokens(seed + 1, 5, 333), tokens(seed + 2, 1, 20)[0]
    q, d = quantize_tokens(x)
    rounded = q.double() * d.double()
    want = rounded @ case.weight.dequantize().double().T + bias.double()
    size = rounded.abs() @ case.size.T + bias.abs()
    steps = 2 * -(-333 // piece_columns(group, 333)) + 5
    got = ref.token_linear(x, case.weight, bias)
    assert ((got.double() - want).abs() <= steps * 2.0**-24 * size).all()
    perm = torch.randperm(333, generator=torch.Generator().manual_seed(seed)).int()
    moved = torch.empty_like(x)
    moved[:, perm.long()] = x
    again = ref.token_linear(moved, replace(case.weight, perm=perm), bias)
    assert torch.equal(again, got)


def test_pieces_are_whole_parts_of_groups() -> None:
    for group, k, size in [
        *((16, 999, 16), (32, 999, 32), (48, 999, 16), (64, 999, 64), (96, 999, 32)),
        *((128, 999, 128), (192, 999, 64), (1024, 9999, 128), (-1, 50, 128), (96, 96, 128)),
    ]:
        assert piece_columns(group, k) == size
    # 255 * 127 * 128 is below 2**24: a sum of a piece is a float32, whatever its codes are.
    assert 255 * 127 * piece_columns(-1, 1) < 2**24


def test_zero_points_that_are_no_whole_numbers_become_offsets() -> None:
    codes = pack_codes(torch.arange(16, dtype=torch.uint8).repeat(2, 2), 4)
    scales, zeros = torch.full((2, 1), 0.5), torch.tensor([[3.0], [7.25]])
    weight = QuantizedLinear("w", WeightFormat(4, -1, "int"), codes, scales, zeros, 32)
    assert zero_points(weight) is None
    whole, found, offsets = whole_numbers(weight)
    assert offsets is not None and offsets.flatten().tolist() == [-1.5, -3.625]
    assert torch.equal(whole * found + offsets, weight.dequantize())
    weight.zeros = torch.tensor([[3.0], [8.0]])
    whole, found, offsets = whole_numbers(weight)
    assert offsets is None and torch.equal(whole * found, weight.dequantize())


def test_entries_of_a_table_become_127ths() -> None:
    codes = pack_codes(torch.arange(16, dtype=torch.uint8).repeat(1, 2), 4)
    form = WeightFormat(4, -1, "table", NF4)
    weight = QuantizedLinear("w", form, codes, torch.ones(1, 1), None, 32)
    whole, scales, offsets = whole_numbers(weight)
    assert offsets is None and int(whole.abs().max()) == 127
    assert ((whole * scales)[0, :16] - torch.tensor(NF4)).abs().max() <= 0.5 / 127 + 1e-7
