"""Self-attention with grouped key/value heads as a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...loaders.model.config import ModelConfig
from ..backends.base import AttentionShape, Ops, PackedLinear, RecurrentOps
from ..run.kv_cache import BlockState, LayerKV, StateSpec
from ..run.step import StepInputs
from .blocks import project_add
from .projections import FusedLinear
from .weights import WeightSource


@dataclass(slots=True)
class AttentionBlock:
    """Norm, q, k and v with rotary positions, attention over the cache, output projection.

    Attributes:
        norm: RMSNorm weight before the projections, float32 [D].
        qkv: query, key and value projections as one.
        shape: head counts, scale, window and norms of the heads.
        o: output projection.
        post_norm: RMSNorm weight [D] on what is added to the residual, or None.
        eps: epsilon of the norms.
        gate: projection to what the attention's output is multiplied by the sigmoid of, and the
            op that does so; None = it has none.
    """

    norm: Tensor
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
        )
        gated = config.delta is not None
        query = "query" if gated else "q"
        return cls(
            source.norm(f"{name}.input_layernorm"),
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
        kv = LayerKV(*state.tokens)
        # What the last projection reads is all that is held: quantizing stops here with each batch.
        a_TC = self._attend(ops, x_TD, step, kv)
        project_add(ops, a_TC, self.o, self.post_norm, self.eps, x_TD)

    def _attend(self, ops: Ops[Any], x_TD: Tensor, step: StepInputs, kv: LayerKV) -> Tensor:
        """Attention of the normed residual, and its gate -> [T, H * E]."""
        readers = [*self.qkv.parts, *(self.gate[:1] if self.gate else ())]
        h_TD = ops.rms_norm(x_TD, self.norm, self.eps, readers=readers)
        q_THE = ops.rope_write_kv(self.qkv(ops, h_TD), self.shape, kv, step)
        if self.gate is None:
            del h_TD  # its memory may serve what follows
            return ops.attention(q_THE, self.shape, kv, step)
        weight, recurrent = self.gate
        gate_TC = ops.linear(h_TD, weight)
        a_TC = ops.attention(q_THE, self.shape, kv, step)
        recurrent.sigmoid_mul(a_TC, gate_TC)
        return a_TC
