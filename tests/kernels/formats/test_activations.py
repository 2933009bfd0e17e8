"""Rounding of activations in Triton is the rule of ``formats.activations``, bit for bit.

That of the C kernels is compared in ``test_cpu_quantized_inputs``, on the same rows; what norm,
gate and rope round on the way, in ``test_triton_fused``.
"""

from __future__ import annotations

import pytest
import torch
from activation_support import RULES, hard_rows
from seeds import fresh_seed

from halfbyte.kernels.device.input_rounding import InputRounding
from halfbyte.kernels.formats.activations import quantize_activations
from halfbyte.kernels.formats.canonical import ActivationFormat
from halfbyte.kernels.w8a8 import op, quantize_rows


def rounding_of(rule: ActivationFormat) -> InputRounding:
    """The rule as the kernel's face takes it."""
    floating, scale, zero = rule.kind == "e4m3", None, None
    if rule.scale is not None:
        scale = torch.tensor([rule.scale])
        zero = None if rule.symmetric else torch.tensor([rule.zero], dtype=torch.int32)
    top = 448.0 if floating else rule.top if rule.scale is None else 127.5
    dtype = torch.float8_e4m3fn if floating else torch.int8
    return InputRounding(dtype, not rule.symmetric, top, scale, zero)


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
    made = quantize_rows(x, rounding_of(rule))
    scale, zero = made.scale, made.zero
    got = made.codes[:, :width].float()
    if zero is not None:
        got = got - zero.reshape(-1, 1)
    assert torch.equal(got, want)
    assert torch.equal(scale.expand(len(x)), want_scale[:, 0])
