"""What backends share: ``CpuParts`` on every CPU, ``PlainOps`` in plain torch, helpers for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic

import torch
from torch import Tensor

from ...kernels import reference as ref
from ...kernels.formats.activations import dequantize_kv, quantize_kv
from ...kernels.formats.canonical import QuantizedLinear, Weight
from ..run.kv_cache import LayerKV
from ..run.sampling import RowSampling
from ..run.step import StepInputs
from .base import Activation, AttentionShape, ExpertMixture, MixtureShape, P
from .plain_recurrence import PlainRecurrence


class CpuParts(ABC, Generic[P]):
    """What the CPU's backends have in common: few limits, and draws that are left to the host."""

    device = torch.device("cpu")
    reads_late = False

    def supports(self, weight: Weight) -> str | None:
        """None but for contradictory formats: every canonical weight can be run."""
        return unsupported(weight)

    def supports_heads(self, head_dim: int) -> str | None:
        """Heads of every size will do."""
        return None

    @abstractmethod
    def pack(self, weight: Weight, bias: Tensor | None = None) -> P:
        """Pack a linear weight [N, K] once."""

    def pack_embedding(self, weight: Weight) -> P:
        """A table [V, D] is packed like any other matrix."""
        return self.pack(weight)

    def pack_gated(
        self, weight: Weight, bias: Tensor | None = None, activation: Activation = "silu"
    ) -> P | None:
        """None for every weight [N, K]: the activation is a separate op here."""
        return None

    def pack_mixture(
        self, experts: Sequence[tuple[P, P]], shape: MixtureShape
    ) -> ExpertMixture | None:
        """None for all matrices [N, K]: experts are gone through one by one."""
        return None

    def sample(self, logits_SV: Tensor, rows: Sequence[RowSampling]) -> Tensor | None:
        """None for every [S, V]: the host draws."""
        return None


class PlainOps(CpuParts[P], PlainRecurrence):
    """A backend by :mod:`halfbyte.kernels.reference`, without packing and matrix products.

    Args:
        dtype: activation type.
    """

    name = "plain"
    detail = ""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = self.kv_dtype = dtype

    @abstractmethod
    def embed(self, ids_T: Tensor, table: P, scale: float = 1.0) -> Tensor:
        """``scale`` times rows of a packed [V, D] matrix -> residual [T, D]."""

    @abstractmethod
    def linear(self, x_TK: Tensor, weight: P, out: Tensor | None = None) -> Tensor:
        """``x @ W.T + bias`` -> [T, N], into ``out`` when given."""

    def rms_norm(
        self,
        x_TD: Tensor,
        weight_D: Tensor,
        eps: float,
        rows: Tensor | None = None,
        readers: Sequence[P] = (),
    ) -> Tensor:
        """RMSNorm -> [T, D], or of some rows [S, D]."""
        return ref.rms_norm(x_TD if rows is None else x_TD[rows], weight_D, eps)

    def linear_add(self, x_TK: Tensor, weight: P, residual_TN: Tensor) -> None:
        """``residual += x @ W.T + bias`` in place, for residual [T, N]."""
        residual_TN += self.linear(x_TK, weight)

    def rope_write_kv(
        self, qkv_TC: Tensor, shape: AttentionShape, kv: LayerKV, step: StepInputs
    ) -> Tensor:
        """Norm and rotate q and k, store k and v -> q [T, H, E]."""
        q, k, v = split_heads(qkv_TC, shape)
        if shape.q_norm is not None and shape.k_norm is not None:
            own_q, own_k = (x.flatten(1) if shape.whole_norms else x for x in (q, k))
            q = ref.rms_norm(own_q, shape.q_norm, shape.eps).view_as(q)
            k = ref.rms_norm(own_k, shape.k_norm, shape.eps).view_as(k)
        cos, sin = rope_of(shape, step).chunk(2, dim=-1)
        q, k = (ref.apply_rope(x, cos, sin, shape.interleaved) for x in (q, k))
        if step.query_factors is not None:
            q = q * step.query_factors[:, None, None].to(q.dtype)
        if kv.k_scale is not None and kv.v_scale is not None:
            (k, k_scale), (v, v_scale) = (quantize_kv(x, kv.k.dtype) for x in (k, v))
            ref.write_scales(k_scale, v_scale, kv.k_scale, kv.v_scale, step.slots)
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
                gather(kv.k, kv.k_scale, blocks, span.length),
                gather(kv.v, kv.v_scale, blocks, span.length),
                step.positions[span.begin : span.end],
                shape.scale,
                shape.window,
                shape.softcap,
                shape.sinks,
            )
        return out.flatten(1)

    def center(self, x_TD: Tensor) -> None:
        """Subtract from each row of [T, D] its mean, in place."""
        x_TD -= x_TD.mean(-1, keepdim=True)

    def add(self, x_TD: Tensor, residual_TD: Tensor) -> None:
        """``residual += x`` in place, for x [T, D]."""
        residual_TD += x_TD

    def gated_mul(
        self,
        gate_up_TI2: Tensor,
        activation: Activation = "silu",
        readers: Sequence[P] = (),
    ) -> Tensor:
        """``act(gate) * up`` -> [T, I]."""
        return ref.gated_mul(gate_up_TI2, activation)

    def argmax(self, logits_SV: Tensor) -> Tensor:
        """Index of each row's largest logit, int64 [S]; -1 for NaN or no finite largest."""
        best, index = logits_SV.max(-1)  # NaN when any is
        return torch.where(best.isfinite(), index, -1)

    def flush(self) -> None:
        """Nothing: every op was computed at once."""


def gather(cache: Tensor, scale: Tensor | None, blocks: Tensor, length: int) -> Tensor:
    """What is kept of the first ``length`` tokens of a row, [J, length, E]; codes times scales."""
    kept = ref.gather_kv(cache, blocks, length)
    if scale is None:
        return kept
    return dequantize_kv(kept, ref.gather_kv(scale.unsqueeze(-1), blocks, length).squeeze(-1))


def unsupported(weight: Weight) -> str | None:
    """Why a weight [N, K] has no meaning that could be computed, or None."""
    act = weight.format.act if isinstance(weight, QuantizedLinear) else None
    if act is not None and act.kind == "e4m3" and (not act.symmetric or act.zero):
        return "float8 activations with a zero point"
    if act is not None and act.kind == "int8" and act.symmetric and act.zero:
        return f"symmetric activations with the zero point {act.zero}"
    return None


def rope_of(shape: AttentionShape, step: StepInputs) -> Tensor:
    """Cosines and sines [T, 2 F] by which a layer rotates q and k of [T, H, E]."""
    if not shape.local_rope:
        return step.rope
    assert step.rope_local is not None
    return step.rope_local


def whole_norms(qkv_TC: Tensor, shape: AttentionShape) -> list[tuple[Tensor, Tensor]]:
    """Views of q [T, H E] and k [T, J E] beside the weights of norms over all of their heads.

    None where norms are per head, or there are none.
    """
    if shape.q_norm is None or shape.k_norm is None or not shape.whole_norms:
        return []
    q, k, _ = split_heads(qkv_TC, shape)
    return [(q.flatten(1), shape.q_norm), (k.flatten(1), shape.k_norm)]


def split_heads(qkv_TC: Tensor, shape: AttentionShape) -> tuple[Tensor, Tensor, Tensor]:
    """[T, (H + 2 J) E] -> q [T, H, E], k [T, J, E], v [T, J, E] as views."""
    heads_TXE = qkv_TC.view(qkv_TC.shape[0], -1, shape.head_dim)
    q, k, v = heads_TXE.split((shape.heads, shape.kv_heads, shape.kv_heads), dim=1)
    return q, k, v
