"""Launching the gated activations."""

# Launches: num_warps and num_stages are no parameters of the kernel that pyright sees.
# pyright: reportCallIssue=false

from __future__ import annotations

from torch import Tensor

from ..device.checks import check_tensor, require
from ..device.input_rounding import InputRounding
from .activation_kernel import gated_kernel, gated_quant_kernel
from .config import gated_tile
from .outputs import FLOATS, RowOutputs, allocate, code_pointers

_ACTIVATIONS = ("silu", "gelu_tanh", "clipped_swiglu")


def gated_mul(
    gate_up_TI2: Tensor,
    *,
    activation: str = "silu",
    group: int = 0,
    rounding: InputRounding | None = None,
    values: bool = True,
    out: RowOutputs | None = None,
) -> RowOutputs:
    """``act(gate) * up`` -> [T, I].

    Args:
        gate_up_TI2: [T, 2 I], first half gate; float16, bfloat16 or float32.
        activation: ``silu``, ``gelu_tanh`` or ``clipped_swiglu``.
        group: also write float32 sums of groups of this many rounded values (a power of two).
        rounding: also write the values rounded so.
        values: write the values themselves.
        out: buffers to fill; missing ones are allocated.

    Raises:
        KernelInputError: shapes, types or the name do not fit.
    """
    check_tensor("gate_up", gate_up_TI2, (None, None), FLOATS)
    tokens, twice = gate_up_TI2.shape
    require(
        twice % 2 == 0 and twice > 0,
        lambda: f"gate_up has {twice} columns; expected an even number",
    )
    require(
        activation in _ACTIVATIONS,
        lambda: f"activation is {activation!r}; expected one of {', '.join(_ACTIVATIONS)}",
    )
    width = twice // 2
    written = allocate(tokens, width, gate_up_TI2, out, group, rounding, values)
    if tokens == 0:
        return written
    block, num_warps = gated_tile(width, group)
    stand_in = gate_up_TI2
    target = written.values if written.values is not None else stand_in
    sums = written.sums if written.sums is not None else stand_in
    if written.rounded is not None:
        assert rounding is not None
        gated_quant_kernel[(tokens,)](
            gate_up_TI2,
            target,
            sums,
            *code_pointers(written.rounded, stand_in),
            WIDTH=width,
            BLOCK=block,
            GROUP=max(group, 1),
            GELU=activation == "gelu_tanh",
            CLIPPED=activation == "clipped_swiglu",
            STORE=values,
            SUMS=group > 0,
            **rounding.constants,
            num_warps=num_warps,
        )
    else:
        gated_kernel[(tokens, -(-width // block))](
            gate_up_TI2,
            target,
            sums,
            WIDTH=width,
            BLOCK=block,
            GROUP=max(group, 1),
            GELU=activation == "gelu_tanh",
            CLIPPED=activation == "clipped_swiglu",
            SUMS=group > 0,
            num_warps=num_warps,
        )
    return written
