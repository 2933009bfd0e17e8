"""The ``reference`` backend: exact codes, plain torch, no tricks. Slow, and the truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halfbyte.errors import ConfigError

from ...kernels import reference as ref
from ...loaders.canonical import QuantizedLinear, Weight
from ..kv_cache import LayerKV
from ..step import StepInputs
from .base import AttentionShape, Program


@dataclass(slots=True)
class ReferenceLinear:
    """A canonical weight as it came; dequantized on every use."""

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

    def dense(self, dtype: torch.dtype) -> Tensor:
        """[N, K] in ``dtype``."""
        if isinstance(self.weight, QuantizedLinear):
            return self.weight.dequantize(dtype)
        return self.weight.to(dtype)


class ReferenceOps:
    """Implements ``Ops`` with :mod:`halfbyte.kernels.reference`.

    Args:
        dtype: activation and KV type.
        exact: compute each token alone.
    """

    name = "reference"
    detail = "exact codes, plain torch"
    records = False

    def __init__(self, dtype: torch.dtype = torch.float32, exact: bool = False) -> None:
        self.dtype = dtype
        self.alone = exact
        self.kv_dtype = dtype

    def supports(self, weight: Weight) -> str | None:
        """Every canonical weight can be run."""
        return None

    def pack(self, weight: Weight, bias: Tensor | None = None) -> ReferenceLinear:
        """Keep the canonical weight."""
        return ReferenceLinear(weight, bias)

    def embed(self, ids_T: Tensor, table: ReferenceLinear) -> Tensor:
        """Rows of [V, D] -> [T, D]."""
        if isinstance(table.weight, QuantizedLinear):
            # Only the wanted rows are dequantized.
            rows = [table.weight.rows(i, i + 1).dequantize(self.dtype) for i in ids_T.tolist()]
            return torch.cat(rows)
        return table.weight[ids_T].to(self.dtype)

    def rms_norm(
        self, x_TD: Tensor, weight_D: Tensor, eps: float, rows: Tensor | None = None
    ) -> Tensor:
        """RMSNorm -> [T, D], or of some rows [S, D]."""
        return ref.rms_norm(x_TD if rows is None else x_TD[rows], weight_D, eps)

    def linear(self, x_TK: Tensor, weight: ReferenceLinear, out: Tensor | None = None) -> Tensor:
        """``x @ W.T + bias`` -> [T, N]."""
        y = ref.linear(x_TK, weight.dense(self.dtype), weight.bias)
        return y if out is None else out.copy_(y)

    def linear_add(self, x_TK: Tensor, weight: ReferenceLinear, residual_TN: Tensor) -> None:
        """``residual += x @ W.T + bias`` in place."""
        residual_TN += self.linear(x_TK, weight)

    def rope_write_kv(
        self, qkv_TC: Tensor, shape: AttentionShape, kv: LayerKV, step: StepInputs
    ) -> Tensor:
        """Norm and rotate q and k, store k and v -> q [T, H, E]."""
        q, k, v = split_heads(qkv_TC, shape)
        if shape.q_norm is not None:
            q = ref.rms_norm(q, shape.q_norm, shape.eps)
        if shape.k_norm is not None:
            k = ref.rms_norm(k, shape.k_norm, shape.eps)
        cos, sin = step.rope.chunk(2, dim=-1)
        q, k = ref.apply_rope(q, cos, sin), ref.apply_rope(k, cos, sin)
        ref.write_kv(k, v, kv.k, kv.v, step.slots)
        return q

    def attention(
        self, q_THE: Tensor, shape: AttentionShape, kv: LayerKV, step: StepInputs
    ) -> Tensor:
        """Causal attention row by row -> [T, H * E]."""
        out = torch.empty_like(q_THE)
        for row, span in enumerate(step.spans):
            blocks = step.block_tables[row]
            out[span.begin : span.end] = ref.attend_row(
                q_THE[span.begin : span.end],
                ref.gather_kv(kv.k, blocks, span.length),
                ref.gather_kv(kv.v, blocks, span.length),
                step.positions[span.begin : span.end],
                shape.scale,
                shape.window,
            )
        return out.flatten(1)

    def silu_mul(self, gate_up_TI2: Tensor) -> Tensor:
        """``silu(gate) * up`` -> [T, I]."""
        return ref.silu_mul(gate_up_TI2)

    def argmax(self, logits_SV: Tensor) -> Tensor:
        """Index of each row's largest logit, int64 [S]."""
        return logits_SV.argmax(-1)

    def begin_record(self) -> None:
        """Refused: ``records`` is False."""
        raise ConfigError("the reference backend cannot record steps")

    def end_record(self) -> Program:
        """Refused: ``records`` is False."""
        raise ConfigError("the reference backend cannot record steps")


def split_heads(qkv_TC: Tensor, shape: AttentionShape) -> tuple[Tensor, Tensor, Tensor]:
    """[T, (H + 2 J) E] -> q [T, H, E], k [T, J, E], v [T, J, E] as views."""
    heads_TXE = qkv_TC.view(qkv_TC.shape[0], -1, shape.head_dim)
    q, k, v = heads_TXE.split((shape.heads, shape.kv_heads, shape.kv_heads), dim=1)
    return q, k, v
