"""Packing of 4-bit weights: any shape and group comes back exactly, in the promised order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_w4a16_support import random_weight

from halfbyte.errors import KernelInputError
from halfbyte.kernels.w4a16 import layout
from halfbyte.kernels.w4a16.reference import dequantize


def expected(codes, scales, zeros, zero, group):
    k = codes.shape[1]
    span = k if group == -1 else group

    def spread(t):
        return t.double().repeat_interleave(span, 1)[:, :k]

    if zero == "none":
        return spread(scales) * (codes.double() - 8)
    if zero == "int":
        return spread(scales) * (codes.double() - spread(zeros))
    return spread(scales) * codes.double() + spread(zeros)


@pytest.mark.parametrize("n", [2, 10, 128, 130, 200])
@pytest.mark.parametrize("row", ["first", "last gate", "first up", "last"])
def test_a_zero_point_is_common_only_if_every_row_has_it(n, row):
    """Gate and up are interleaved with padding, so that the last rows are not the last stored."""
    codes, scales, zeros = random_weight(n, 64, 32, "int", 7)
    assert zeros is not None
    zeros.fill_(3)
    packed = layout.pack_w4(codes, scales, zeros, zero="int", group=32, gated=True)
    assert packed.shift == 3
    index = {"first": 0, "last gate": n // 2 - 1, "first up": n // 2, "last": n - 1}[row]
    zeros[index, -1] = 4
    packed = layout.pack_w4(codes, scales, zeros, zero="int", group=32, gated=True)
    assert torch.equal(dequantize(packed), expected(codes, scales, zeros, "int", 32))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 290),
    k=st.integers(1, 420),
    group=st.sampled_from((32, 64, 96, 128, 160, 256, 384, -1)),
    zero=st.sampled_from(("none", "int", "float")),
    half=st.booleans(),
    gated=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_pack_keeps_the_meaning_of_every_weight(n, k, group, zero, half, gated, seed):
    n += n % 2 if gated else 0
    codes, scales, zeros = random_weight(n, k, group, zero, seed, half=half)
    packed = layout.pack_w4(codes, scales, zeros, zero=zero, group=group, gated=gated)
    assert packed.shape == (n, k)
    assert torch.equal(dequantize(packed), expected(codes, scales, zeros, zero, group))
    again, _, _ = layout.unpack_w4(packed)
    assert torch.equal(again, codes)


@settings(max_examples=30, deadline=None)
@given(half=st.integers(1, 300), extra=st.integers(1, 3))
def test_interleave_alternates_blocks_and_inverts(half, extra):
    rows = torch.arange(2 * half * extra).view(2 * half, extra)
    mixed = layout.interleave(rows)
    assert mixed.shape[0] % 128 == 0
    first = min(64, half)
    assert torch.equal(mixed[:first], rows[:first])
    assert torch.equal(mixed[64 : 64 + first], rows[half : half + first])
    assert torch.equal(layout.deinterleave(mixed, 2 * half), rows)


def test_one_lane_owns_sixteen_contiguous_bytes():
    # Row 16 a + 8 b + c, element 8 i + 2 t + half, plane j: only this unit's nibble j is set.
    for a, b, c, t, i, h, j in (
        (3, 1, 5, 2, 3, 1, 2),
        (0, 0, 7, 3, 0, 0, 3),
        (2, 1, 0, 0, 1, 1, 0),
    ):
        codes = torch.zeros(128, 256, dtype=torch.uint8)
        codes[64 + 16 * a + 8 * b + c, 128 + 32 * j + 8 * i + 2 * t + h] = 13
        units = layout.pack_units(codes, 128, 2)
        at = ((((b * 4 + a) * 8 + c) * 4 + t) * 4 + i) * 2 + h
        assert units.nonzero().tolist() == [[1, 1, at]]
        unit = int(units[1, 1, at]) & 0xFFFF
        assert (unit >> 2 | unit << 14) & 0xFFFF == 13 << (4 * j)


def test_entries_are_two_halves_only_when_that_is_exact():
    codes, scales, zeros = random_weight(8, 128, 64, "int", 1)
    assert layout.pack_w4(codes, scales, zeros, zero="int", group=64).table.dtype == torch.int32
    fine = scales.float() + 2.0**-26
    assert layout.pack_w4(codes, fine, zeros, zero="int", group=64).table.dtype == torch.int64


def test_a_common_zero_point_needs_no_offsets():
    codes, scales, _ = random_weight(8, 128, 64, "none", 1)
    zeros = torch.full_like(scales, 7.0)
    assert layout.pack_w4(codes, scales, zeros, zero="int", group=64).shift == 7
    zeros[3, 1] = 6.0
    assert layout.pack_w4(codes, scales, zeros, zero="int", group=64).shift == -1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"group": 48}, "group size 48"),
        ({"group": 128}, r"\(8, 2\)"),
        ({"zero": "none"}, "zeros are given"),
        ({"codes": torch.full((8, 128), 16, dtype=torch.uint8)}, "up to 16"),
        ({"codes": torch.zeros(8, 128)}, "uint8"),
    ],
)
def test_misfits_are_refused_with_their_numbers(change, words):
    codes, scales, zeros = random_weight(8, 128, 64, "int", 3)
    args = {"codes": codes, "group": 64, "zero": "int"} | change
    with pytest.raises(KernelInputError, match=words):
        layout.pack_w4(args["codes"], scales, zeros, zero=args["zero"], group=args["group"])
