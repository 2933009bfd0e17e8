"""The arithmetic of quantizing by the C kernels, against the same in plain torch."""

from __future__ import annotations

import random

import pytest
import torch
from cpu_support import library, needs_compiler
from statistics_support import fresh_seed

from halfbyte.kernels.calibrator import PlainCalibrator
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
