"""Self-attention with grouped key/value heads as a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...loaders.model.config import ModelConfig
from ..backends.base import AttentionShape, Ops, PackedLinear, RecurrentOps
from ..run.kv_cache import BlockState, LayerKV, StateSpec
from ..run.step import StepInputs
from .blocks import pre_normed, project_add
from .projections import FusedLinear
from .weights import WeightSource


@dataclass(slots=True)
class AttentionBlock:
    """Norm, q, k and v with rotary positions, attention over the cache, output projection.

    Attributes:
        norm: RMSNorm weight before the projections, float32 [D], or None.
        qkv: query, key and value projections as one.
        shape: head counts, scale, window, norms and sinks of the heads.
        o: output projection.
        post_norm: RMSNorm weight [D] on what is added to the residual, or None.
        eps: epsilon of the norms.
        gate: projection to what the attention's output is multiplied by the sigmoid of, and the
            op that does so; None = it has none.
    """

    norm: Tensor | None
    qkv: FusedLinear[Any]
    shape: AttentionShape
    o: PackedLinear
    post_norm: Tensor | None
    eps: float
    gate: tuple[PackedLinear, RecurrentOps] | None = None

    @classmethod
    def load(cls, config: ModelConfig, layer: int, source: WeightSource) -> AttentionBlock:
        """The attention of a layer."""
        name = f"model.layers.{layer}"
        attn = f"{name}.self_attn"
        shape = AttentionShape(
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.score_scale,
            config.window(layer),
            source.norm(f"{attn}.q_norm") if config.qk_norm else None,
            source.norm(f"{attn}.k_norm") if config.qk_norm else None,
            config.rms_norm_eps,
            config.attn_softcap,
            config.local_rope(layer),
            config.interleaved_rope,
            source.vector(f"{attn}.sinks") if config.sinks else None,
        )
        gated = config.delta is not None
        query = "query" if gated else "q"
        return cls(
            source.norm(f"{name}.input_layernorm") if config.pre_norms else None,
            source.fused([f"{attn}.{p}_proj" for p in (query, "k", "v")], config.qkv_bias),
            shape,
            source.packed(f"{attn}.o_proj", config.o_bias),
            source.norm(f"{name}.post_attention_layernorm") if config.post_norms else None,
            config.rms_norm_eps,
            (source.packed(f"{attn}.output_gate_proj"), source.recurrent()) if gated else None,
        )

    @property
    def recordable(self) -> bool:
        """Its ops are the same whatever the step's numbers are."""
        return True

    @staticmethod
    def state(config: ModelConfig) -> StateSpec:
        """Keys and values of every token."""
        side = (config.num_kv_heads, config.head_dim)
        return StateSpec(per_token=(side, side))

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one decode step reads."""
        return self.qkv.nbytes + self.o.nbytes + (self.gate[0].nbytes if self.gate else 0)

    def add(self, ops: Ops[Any], x_TD: Tensor, step: StepInputs, state: BlockState) -> None:
        """Add attention's output to the residual [T, D]; write the tokens' keys and values."""
        # What the last projection reads is all that is held: quantizing stops here with each batch.
        readers = [*self.qkv.parts, *(self.gate[:1] if self.gate else ())]
        h_TD = pre_normed(ops, x_TD, self.norm, self.eps, readers)
        a_TC = self._attend(ops, h_TD, step, state)
        project_add(ops, a_TC, self.o, self.post_norm, self.eps, x_TD)

    def _attend(self, ops: Ops[Any], h_TD: Tensor, step: StepInputs, state: BlockState) -> Tensor:
        """Attention of the normed residual [T, D], and its gate -> [T, H E]."""
        qkv_TC = self.qkv(ops, h_TD)
        if self.gate is None:
            del h_TD  # its memory may serve what follows
            return self.attend(ops, qkv_TC, step, state)
        weight, recurrent = self.gate
        gate_TC = ops.linear(h_TD, weight)
        a_TC = self.attend(ops, qkv_TC, step, state)
        recurrent.sigmoid_mul(a_TC, gate_TC)
        return a_TC

    def attend(self, ops: Ops[Any], qkv_TC: Tensor, step: StepInputs, state: BlockState) -> Tensor:
        """From projections [T, (H + 2 J) E] to what the last one reads, [T, H E]."""
        kv = LayerKV(*state.tokens)
        q_THE = ops.rope_write_kv(qkv_TC, self.shape, kv, step)
        return ops.attention(q_THE, self.shape, kv, step)
