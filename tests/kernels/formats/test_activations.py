"""Rounding of activations in Triton is the rule of ``formats.activations``, bit for bit.

That of the C kernels is compared in ``test_cpu_quantized_inputs``, on the same rows; what norm,
gate and rope round on the way, in ``test_triton_fused``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from activation_support import RULES, hard_rows
from statistics_support import fresh_seed

from halfbyte.kernels.formats.activations import quantize_activations
from halfbyte.kernels.formats.canonical import ActivationFormat
from halfbyte.kernels.w8a8 import op, quantize_rows


def arguments(rule: ActivationFormat) -> dict[str, Any]:
    """The rule as the kernel's face takes it."""
    floating = rule.kind == "e4m3"
    dtype, top = (torch.float8_e4m3fn, 448.0) if floating else (torch.int8, 127.5)
    if rule.scale is None:
        return {"asymmetric": not rule.symmetric, "dtype": dtype, "top": rule.top}
    zero = None if rule.symmetric else torch.tensor([rule.zero], dtype=torch.int32)
    return {"scale": torch.tensor([rule.scale]), "zero": zero, "dtype": dtype, "top": top}


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("block", [1024, 64])
@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
@pytest.mark.parametrize("width", [1, 17, 577])
def test_triton_rounds_by_the_rule(
    rule: ActivationFormat, width: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = hard_rows(fresh_seed(), width)
    want, want_scale = quantize_activations(x, rule)
    monkeypatch.setattr(op.cfg, "quantize_block", lambda k: (block, 1))
    codes, scale, zero = quantize_rows(x, **arguments(rule))
    got = codes[:, :width].float()
    if zero is not None:
        got = got - zero.reshape(-1, 1)
    assert torch.equal(got, want)
    assert torch.equal(scale.expand(len(x)), want_scale[:, 0])
