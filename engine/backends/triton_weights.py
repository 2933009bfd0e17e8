"""Weights of the Triton backends: each packed by the first kind that accepts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from halfbyte.errors import UnsupportedWeightError

from ...kernels.device.input_rounding import InputRounding, RoundedRows
from ...kernels.formats.canonical import QuantizedLinear, Weight
from ...kernels.formats.stored import settled
from ...kernels.formats.weight_format import InputRule, input_rounding
from ...kernels.kind import MatrixSpec, ProductContext, TritonKind, carrier
from ...kernels.kinds import KINDS
from .activations import left_as_floats


@dataclass(slots=True)
class TritonLinear:
    """A weight [N, K] on the device, packed by its kind.

    Attributes:
        shape: (N, K).
        kind: carries it.
        packed: in the layout of the kind, which alone looks inside.
        gated: a product ends in ``silu(gate) * up``.
        bias: [N] in the activations' dtype, or None.
        perm: int64 [K], order of the input columns that the codes expect, or None.
    """

    shape: tuple[int, int]
    kind: TritonKind[Any]
    packed: Any
    gated: bool
    bias: Tensor | None
    perm: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        return self.packed.nbytes


def pack(
    weight: Weight,
    bias: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
    *,
    gated: bool = False,
    table: bool = False,
    arch: int = 0,
    rule: InputRule = "float",
) -> TritonLinear:
    """A weight [N, K] and bias [N], packed by the first kind that accepts them on ``sm_<arch>``.

    Dense weights and the bias get ``dtype``, float16 or bfloat16; everything goes to ``device``.
    ``gated`` asks for a product that ends in ``silu(gate) * up``, ``table`` for one whose rows
    can be read, and ``rule`` is that of the run for inputs. Raises UnsupportedWeightError when no
    kind takes it.
    """
    spec = MatrixSpec.of(weight, gated, table).under(rule)
    found = carrier(KINDS, spec, arch)
    if not isinstance(weight, Tensor) and weight.format.under(rule) != weight.format and not table:
        whole = settled(weight)
        assert isinstance(whole, QuantizedLinear)
        weight = replace(whole, format=whole.format.under(rule))
    bias = None if bias is None else bias.to(device, dtype)
    packed = found.kind.pack(weight, dtype, device, found.spec.gated)
    perm = None
    if not isinstance(weight, Tensor) and weight.perm is not None and found.kind.reorders:
        perm = weight.perm.to(device, torch.int64)
    shape = int(weight.shape[0]), int(weight.shape[1])
    return TritonLinear(shape, found.kind, packed, found.spec.gated, bias, perm)


def shared_rounding(readers: Sequence[TritonLinear]) -> InputRounding | None:
    """How all readers of an input round it; None where they differ, or there is none."""
    rules = [w.kind.rounding(w.packed) if w.perm is None else None for w in readers]
    first = rules[0] if rules else None
    alike = first is not None and all(rule is not None and rule.agrees(first) for rule in rules)
    return first if alike else None


def refused(spec: MatrixSpec, arch: int, rule: InputRule) -> str | None:
    """Why a matrix cannot be carried on ``sm_<arch>`` in a run with a rule, or None."""
    try:
        found = carrier(KINDS, spec.under(rule), arch)
    except UnsupportedWeightError as error:
        if spec.under(rule) == spec:
            return error.message
        return f"activations is {rule!r}, but {error.message}; use activations='auto'"
    if spec.table:
        return None
    taken = input_rounding(found.spec.format if found.kind.rounds else None, "float")
    return left_as_floats(rule, spec.format, taken)


def linear(
    x_TK: Tensor | RoundedRows,
    weight: TritonLinear,
    residual: Tensor | None,
    out: Tensor | None,
    context: ProductContext,
) -> Tensor:
    """``x @ W.T + bias``, ``silu(gate) * up`` of it when gated, ``+ residual`` -> [T, N].

    ``x`` [T, K] may be rounded already, as :func:`shared_rounding` says; ``out`` may be
    ``residual``, and its rows may be strided.
    """
    strided = out is not None and not out.is_contiguous()
    rest = weight.packed, weight.bias, residual, None if strided else out, context
    if isinstance(x_TK, RoundedRows):
        y = weight.kind.rounded_linear(x_TK, *rest)
    else:
        y = weight.kind.linear(x_TK if weight.perm is None else x_TK[:, weight.perm], *rest)
    return out.copy_(y) if out is not None and strided else y
