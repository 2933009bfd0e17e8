"""Projections that read the same input, as one matrix where the formats allow it."""

from __future__ import annotations

from typing import Generic

from torch import Tensor

from ..backends.base import Activation, Ops, P


class FusedLinear(Generic[P]):
    """q, k and v, or gate and up, stacked along N.

    Args:
        parts: one packed matrix when all formats are equal, else one for each projection
            (checkpoints with mixed bits); the caller sees the same output either way.
        activated: the product itself ends in ``act(gate) * up``; then :meth:`gated` must be used.
        activation: what :meth:`gated` applies to the gate.
    """

    __slots__ = ("activated", "activation", "parts")

    def __init__(
        self, parts: list[P], activated: bool = False, activation: Activation = "silu"
    ) -> None:
        self.parts = parts
        self.activated = activated
        self.activation: Activation = activation

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weights reads."""
        return sum(p.nbytes for p in self.parts)

    def gated(self, ops: Ops[P], x_TK: Tensor, reader: P) -> Tensor:
        """[T, K] -> ``act(gate) * up`` [T, I] of the two halves, for the products of a matrix."""
        if self.activated:
            return ops.linear(x_TK, self.parts[0])
        return ops.gated_mul(self(ops, x_TK), self.activation, [reader])

    def __call__(self, ops: Ops[P], x_TK: Tensor) -> Tensor:
        """[T, K] -> [T, sum of N]."""
        if len(self.parts) == 1:
            return ops.linear(x_TK, self.parts[0])
        widths = [p.shape[0] for p in self.parts]
        # Not the type of ``x``: a backend may have rounded that for its matrix product.
        out = x_TK.new_empty(x_TK.shape[0], sum(widths), dtype=ops.dtype)
        begin = 0
        for part, width in zip(self.parts, widths, strict=True):
            ops.linear(x_TK, part, out[:, begin : begin + width])
            begin += width
        return out
