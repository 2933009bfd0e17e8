"""``int8-block32``: the rule of inputs rounded in blocks of 32 columns."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from activation_support import hard_rows
from seeds import fresh_seed

from halfbyte.kernels.formats.activations import (
    BLOCK,
    byte_table,
    quantize_blocks,
    rounded_to_blocks,
)
from halfbyte.kernels.formats.code_tables import FP4, IQ4_NL, NF4

TIES = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5])


@pytest.mark.parametrize("width", [1, 31, 32, 33, 64, 577])
def test_codes_and_scales_follow_the_definition(width: int) -> None:
    """By exact fractions: the scale is a correctly rounded quotient, so is what is rounded."""
    x = hard_rows(fresh_seed(), width)
    codes, scales = quantize_blocks(x)
    assert codes.shape == x.shape and codes.dtype == torch.float32
    assert scales.shape == (len(x), -(-width // BLOCK)) and scales.dtype == torch.float32
    for row, (values, got) in enumerate(zip(x.tolist(), codes.tolist(), strict=True)):
        for block, start in enumerate(range(0, width, BLOCK)):
            part = values[start : start + BLOCK]
            reach = max(map(abs, part))
            scale = single(Fraction(reach) / 127) or 1.0
            assert scales[row, block] == scale
            for value, code in zip(part, got[start : start + BLOCK], strict=True):
                quotient = single(Fraction(value) / Fraction(scale))
                # Python's round is to even, too.
                assert code == round(min(max(quotient, -127.0), 127.0))


def single(value: Fraction) -> float:
    """The float32 nearest to a fraction, ties to even."""
    if value == 0:
        return 0.0
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if size < Fraction(2) ** exponent:
        exponent -= 1
    step = Fraction(2) ** (max(exponent, -126) - 23)
    return float(round(value / step) * step)


def test_ties_go_to_the_even_code() -> None:
    """With 127 in the block its scale is exactly 1."""
    x = torch.cat((TIES, torch.tensor([127.0]))).unsqueeze(0)
    codes, scales = quantize_blocks(x)
    assert scales.tolist() == [[1.0]]
    assert codes[0, :-1].tolist() == [0.0, 2.0, 2.0, 0.0, -2.0, -2.0, 126.0, -126.0]


def test_blocks_are_apart() -> None:
    """An outlier costs its own block its accuracy, and no other, also in a last short block."""
    x = torch.ones(1, 70)
    x[0, 40] = 1270.0
    codes, scales = quantize_blocks(x)
    assert torch.equal(codes[0, 32:64], torch.where(x[0, 32:64] > 1, 127.0, 0.0))
    assert (codes[0, :32] == 127).all() and (codes[0, 64:] == 127).all()
    assert torch.equal(rounded_to_blocks(x)[0, 64:], (127 * scales[0, 2]).expand(6))


def test_what_hardly_is_a_number() -> None:
    """Least denormals: a scale that would be 0 is 1, and one that is rounded down is clamped."""
    least = 2.0**-149
    x = torch.zeros(3, 2)
    x[0] = torch.tensor([63 * least, -least])
    x[1] = torch.tensor([190 * least, -190 * least])
    codes, scales = quantize_blocks(x)
    assert scales[:, 0].tolist() == [1.0, least, 1.0]
    assert codes.tolist() == [[0.0, 0.0], [127.0, -127.0], [0.0, 0.0]]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_stays_so_in_its_block(bad: float) -> None:
    x = torch.ones(2, 96)
    x[1, 50] = bad
    codes, scales = quantize_blocks(x)
    assert scales.isnan().tolist() == [[False] * 3, [False, True, False]]
    assert (codes[1, 32:64] == 0).all() and codes.isfinite().all()
    meant = rounded_to_blocks(x).isnan()
    assert not meant[0].any() and meant[1].tolist() == [32 <= i < 64 for i in range(96)]


def test_inputs_lose_at_most_half_a_step() -> None:
    x = torch.randn(9, 577, generator=torch.Generator().manual_seed(fresh_seed()))
    _, scales = quantize_blocks(x)
    step = scales.repeat_interleave(BLOCK, 1)[:, :577]
    assert ((rounded_to_blocks(x) - x).abs() <= step * (0.5 + 1e-4)).all()


def test_entries_of_a_table_become_whole_steps_of_the_largest() -> None:
    """Tables of bytes stay as they are, and none loses more than half a step."""
    assert byte_table(IQ4_NL) == IQ4_NL
    assert byte_table((0.0,) * 16) == (0.0,) * 16
    for table in (NF4, FP4, (-3.0, 0.01, 0.02, 1.0)):
        step = max(abs(entry) for entry in table) / 127
        for entry, kept in zip(table, byte_table(table), strict=True):
            assert abs(kept - entry) <= 0.5001 * step
            assert abs(kept / step - round(kept / step)) < 1e-4
    assert byte_table((-3.0, 0.01, 0.02, 1.0))[:3] == pytest.approx((-3.0, 0.0, 3 / 127))
