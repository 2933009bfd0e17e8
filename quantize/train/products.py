"""Products of matrices in training: a weight that stays as it is, seen by gradients of its input.

Shape letters: T tokens, N outputs, K inputs of a matrix.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ...kernels.formats.activations import quantize_activations
from ...kernels.formats.canonical import QuantizedLinear, Weight


class ModuleProduct(Protocol):
    """``x @ W.T + bias`` for some W.

    Attributes:
        shape: (N, K).
        nbytes: bytes that are kept.
    """

    shape: tuple[int, int]
    nbytes: int

    def __call__(self, x_TK: Tensor) -> Tensor:
        """Float32 [T, K] -> float32 [T, N]."""
        ...


class FrozenProduct:
    """A weight that is not trained. Codes are dequantized on every use, there and back.

    Where the format rounds inputs (W8A8) so does the product; gradients pass the rounding as if
    it were not there (the straight-through estimator; Bengio et al., 2013).

    Args:
        weight: [N, K], quantized or dense.
        bias: [N] or None.
        compute: type of the product.
    """

    def __init__(self, weight: Weight, bias: Tensor | None, compute: torch.dtype) -> None:
        quantized = isinstance(weight, QuantizedLinear)
        # A dense one is brought into that type once.
        self.weight: Weight = weight if quantized else weight.to(compute)
        self.bias, self._compute = bias, compute
        self.shape = int(weight.shape[0]), int(weight.shape[1])
        self.nbytes = weight.nbytes

    def __call__(self, x_TK: Tensor) -> Tensor:
        """Float32 [T, K] -> float32 [T, N]."""
        act = self.weight.format.act if isinstance(self.weight, QuantizedLinear) else None
        if act is not None:
            codes_TK, scale_T1 = quantize_activations(x_TK.detach(), act)
            x_TK = x_TK + (codes_TK * scale_T1 - x_TK).detach()
        y: Tensor = _Product.apply(x_TK, self.weight, self._compute)  # type: ignore[assignment]
        return y if self.bias is None else y + self.bias

    def rows(self, index_T: Tensor) -> Tensor:
        """Some rows of the weight, float32 [T, K]."""
        weight = self.weight
        if isinstance(weight, Tensor):
            return weight[index_T].float()
        zeros = None if weight.zeros is None else weight.zeros[index_T]
        picked = replace(
            weight, codes=weight.codes[index_T], scales=weight.scales[index_T], zeros=zeros
        )
        return picked.dequantize(torch.float32)


class _Product(torch.autograd.Function):
    """``x @ W.T`` that keeps W as it is stored, and nothing else, for the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, weight: Weight, compute: torch.dtype) -> Tensor:
        ctx.weight, ctx.compute = weight, compute
        return (x_TK.to(compute) @ _dense(weight, compute).T).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad_TN,) = grads
        dense = _dense(ctx.weight, ctx.compute)
        return (grad_TN.to(ctx.compute) @ dense).float(), None, None


def _dense(weight: Weight, dtype: torch.dtype) -> Tensor:
    return weight.dequantize(dtype) if isinstance(weight, QuantizedLinear) else weight
