"""Weights without codes, and those whose codes have no kernel: dense, in 16 bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..formats.canonical import Weight
from ..fused import embed_norm
from ..kind import (
    NO_GATE,
    QUANTIZED_INPUTS,
    Chosen,
    Conditions,
    KindCase,
    MatrixSpec,
    ProductContext,
    TritonKind,
)

if TYPE_CHECKING:
    from ..codegen.variant import Variant


class DenseKind(TritonKind[Tensor]):
    """[N, K] in the activations' dtype; what accepts the rest must come last."""

    name = "dense"
    reorders = False
    cases: tuple[KindCase, ...] = ()

    def accepts(self, spec: MatrixSpec, arch: int) -> str | None:
        """All but int8 inputs; those of float8 weights stay in 16 bits, which is more accurate."""
        form = spec.format
        rounds = form is not None and form.act is not None and form.zero != "e4m3"
        if rounds and not spec.table:
            return QUANTIZED_INPUTS
        return NO_GATE if spec.gated else None

    def packed_bytes(self, spec: MatrixSpec) -> int:
        """Two bytes a weight."""
        return 2 * spec.n * spec.k

    def choose(self, spec: MatrixSpec, m: int, where: Conditions) -> Chosen:
        """The library's product; row by row when exact."""
        return (
            Chosen("torch", {"rows": 1}, "exact") if where.exact else Chosen("torch", {}, "library")
        )

    def pack(self, weight: Weight, dtype: torch.dtype, device: torch.device, gated: bool) -> Tensor:
        """[N, K] in ``dtype``, columns in the order of the inputs."""
        if isinstance(weight, Tensor):
            return weight.to(device, dtype)
        return weight.dequantize(dtype).to(device)

    def linear(
        self,
        x_MK: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        out: Tensor | None,
        context: ProductContext,
    ) -> Tensor:
        """-> [M, N]."""
        if context.exact:
            # A library chooses its kernel by the number of rows; one row at a time it cannot.
            rows = [F.linear(x_MK[m : m + 1], weight, bias) for m in range(x_MK.shape[0])]
            y = torch.cat(rows) if rows else x_MK.new_empty(0, weight.shape[0])
        else:
            y = F.linear(x_MK, weight, bias)
        if residual is not None:
            y = y + residual
        return y if out is None else out.copy_(y)

    def gather(self, ids_T: Tensor, weight: Tensor, dtype: torch.dtype, factor: float) -> Tensor:
        """-> [T, D]."""
        residual, _ = embed_norm(ids_T, weight, scale=factor)
        return residual

    def variants(self, arch: int) -> Iterator[Variant]:
        """None: the kernels are torch's."""
        return iter(())


DENSE = DenseKind()
