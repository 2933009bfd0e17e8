"""The ``reference`` backend: exact codes, plain torch, no tricks. Slow, and the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...kernels import reference as ref
from ...kernels.formats.activations import byte_table
from ...kernels.formats.canonical import ActivationFormat, QuantizedLinear, Weight
from ...kernels.formats.stored import settled
from ...kernels.formats.weight_format import InputRule, no_whole_numbers
from .activations import left_as_floats
from .plain import PlainOps


@dataclass(slots=True)
class ReferenceLinear:
    """A canonical weight [N, K] and its bias [N] as they came; dequantized on every use."""

    weight: Weight
    bias: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return int(self.weight.shape[0]), int(self.weight.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the canonical form."""
        return self.weight.nbytes

    @property
    def act(self) -> ActivationFormat | None:
        """How inputs are quantized, or None when they are not."""
        return self.weight.format.act if isinstance(self.weight, QuantizedLinear) else None

    def dense(self, dtype: torch.dtype) -> Tensor:
        """[N, K] in ``dtype``."""
        if isinstance(self.weight, QuantizedLinear):
            return self.weight.dequantize(dtype)
        return self.weight.to(dtype)


class ReferenceOps(PlainOps[ReferenceLinear]):
    """Implements a backend with :mod:`halfbyte.kernels.reference`.

    Args:
        dtype: activation type.
        activations: how inputs of weight-only quantized matrices are rounded.
    """

    name = "reference"
    detail = "exact codes, plain torch"

    def __init__(
        self, dtype: torch.dtype = torch.float32, activations: InputRule = "float"
    ) -> None:
        super().__init__(dtype)
        self.activations: InputRule = activations

    def supports(self, weight: Weight) -> str | None:
        """None but for contradictory formats, and those that ``int8-token`` has no meaning for."""
        reason = super().supports(weight)
        if reason is not None or isinstance(weight, Tensor):
            return reason
        rule = "float" if no_whole_numbers(weight.format) else self.activations
        return left_as_floats(self.activations, weight.format, rule)

    def pack(self, weight: Weight, bias: Tensor | None = None) -> ReferenceLinear:
        """Keep the canonical weight [N, K] and the bias [N].

        A weight that is still as its file has it is converted now, and thereby checked.
        """
        return ReferenceLinear(settled(weight), bias)

    def embed(self, ids_T: Tensor, table: ReferenceLinear, scale: float = 1.0) -> Tensor:
        """``scale`` times rows of [V, D] -> [T, D]."""
        if isinstance(table.weight, QuantizedLinear):
            # Only the wanted rows are dequantized.
            rows = [table.weight.rows(i, i + 1).dequantize(self.dtype) for i in ids_T.tolist()]
            return torch.cat(rows) * scale
        return table.weight[ids_T].to(self.dtype) * scale

    def linear(self, x_TK: Tensor, weight: ReferenceLinear, out: Tensor | None = None) -> Tensor:
        """``x @ W.T + bias`` -> [T, N]."""
        act, held = weight.act, weight.weight
        if act is not None:
            y = ref.quantized_linear(x_TK, weight.dense(torch.float32), weight.bias, act)
        elif self.activations == "float" or isinstance(held, Tensor):
            y = ref.linear(x_TK, weight.dense(self.dtype), weight.bias)
        elif self.activations == "int8-token":
            y = ref.token_linear(x_TK, held, weight.bias).to(self.dtype)
        else:
            if held.format.table:
                held = replace(
                    held, format=replace(held.format, table=byte_table(held.format.table))
                )
            dense = held.dequantize(torch.float32)
            y = ref.block_linear(x_TK, dense, weight.bias, held.perm)
        return y if out is None else out.copy_(y)
