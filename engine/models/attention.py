"""Self-attention with grouped key/value heads as a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...loaders.model.config import ModelConfig
from ..backends.base import AttentionShape, Ops, PackedLinear
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
    """

    norm: Tensor | None
    qkv: FusedLinear[Any]
    shape: AttentionShape
    o: PackedLinear
    post_norm: Tensor | None
    eps: float

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
        return cls(
            source.norm(f"{name}.input_layernorm") if config.pre_norms else None,
            source.fused([f"{attn}.{p}_proj" for p in "qkv"], config.qkv_bias),
            shape,
            source.packed(f"{attn}.o_proj", config.o_bias),
            source.norm(f"{name}.post_attention_layernorm") if config.post_norms else None,
            config.rms_norm_eps,
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
        return self.qkv.nbytes + self.o.nbytes

    def add(self, ops: Ops[Any], x_TD: Tensor, step: StepInputs, state: BlockState) -> None:
        """Add attention's output to the residual [T, D]; write the tokens' keys and values."""
        # What the last projection reads is all that is held: quantizing stops here with each batch.
        a_TC = self.attend(
            ops,
            self.qkv(ops, pre_normed(ops, x_TD, self.norm, self.eps, self.qkv.parts)),
            *(step, state),
        )
        project_add(ops, a_TC, self.o, self.post_norm, self.eps, x_TD)

    def attend(self, ops: Ops[Any], qkv_TC: Tensor, step: StepInputs, state: BlockState) -> Tensor:
        """From projections [T, (H + 2 J) E] to what the last one reads, [T, H E]."""
        kv = LayerKV(*state.tokens)
        q_THE = ops.rope_write_kv(qkv_TC, self.shape, kv, step)
        return ops.attention(q_THE, self.shape, kv, step)
