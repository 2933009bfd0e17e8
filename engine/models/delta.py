"""A layer of the gated delta rule as a block: linear attention whose state has a fixed size.

Source: Yang, Kautz and Hatamizadeh 2024, in the form of Qwen3-Next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...loaders.model.config import ModelConfig
from ..backends.base import DeltaShape, Ops, PackedLinear, RecurrentOps
from ..run.kv_cache import BlockState, StateSpec
from ..run.step import StepInputs
from .blocks import project_add
from .projections import FusedLinear
from .weights import WeightSource


@dataclass(slots=True)
class DeltaBlock:
    """Norm, projections, a short convolution, the gated delta rule, a gated norm, a projection.

    Attributes:
        norm: RMSNorm weight before the projections, float32 [D].
        qkvz: queries, keys, values and the gates of the output as one projection.
        ba: what beta and decay are made of, as one projection.
        conv: weights of the convolution, float32 [K, C], those of the oldest input first.
        shape: head counts, sizes and the heads' own numbers.
        out_norm: RMSNorm weight of a value head, float32 [E].
        out: output projection.
        eps: epsilon of the norms.
        recurrent: the backend's ops for it.
    """

    norm: Tensor
    qkvz: FusedLinear[Any]
    ba: FusedLinear[Any]
    conv: Tensor
    shape: DeltaShape
    out_norm: Tensor
    out: PackedLinear
    eps: float
    recurrent: RecurrentOps

    @classmethod
    def load(cls, config: ModelConfig, layer: int, source: WeightSource) -> DeltaBlock:
        """The gated delta rule of a layer."""
        name, delta = f"model.layers.{layer}", config.delta
        assert delta is not None
        module = f"{name}.linear_attn"
        if delta.rates:
            rate = source.vector(f"{module}.A")
        else:
            rate = -torch.exp(source.vector(f"{module}.A_log"))
        shape = DeltaShape(
            delta.key_heads,
            delta.value_heads,
            delta.key_dim,
            delta.value_dim,
            rate,
            source.vector(f"{module}.dt_bias"),
            delta.tiled,
        )
        return cls(
            source.norm(f"{name}.input_layernorm"),
            source.fused([f"{module}.in_proj_{part}" for part in "qkvz"], False),
            source.fused([f"{module}.in_proj_{part}" for part in "ba"], False),
            source.vector(f"{module}.conv1d.weight").flatten(1).T.contiguous(),
            shape,
            source.vector(f"{module}.norm.weight"),
            source.packed(f"{module}.out_proj"),
            config.rms_norm_eps,
            source.recurrent(),
        )

    @property
    def recordable(self) -> bool:
        """Where the ops read slots and positions from tensors."""
        return True

    @staticmethod
    def state(config: ModelConfig) -> StateSpec:
        """The last inputs of the convolution, and each head's matrix."""
        delta = config.delta
        assert delta is not None
        tail = (delta.kernel - 1, delta.mixed)
        return StateSpec(per_sequence=(tail, (delta.value_heads, delta.key_dim, delta.value_dim)))

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one decode step reads."""
        return self.qkvz.nbytes + self.ba.nbytes + self.out.nbytes

    def add(self, ops: Ops[Any], x_TD: Tensor, step: StepInputs, state: BlockState) -> None:
        """Add the layer's output to the residual [T, D]; the states of the step's rows go on."""
        tails, states = state.sequences
        recurrent = self.recurrent
        readers = [*self.qkvz.parts, *self.ba.parts]
        h_TD = ops.rms_norm(x_TD, self.norm, self.eps, readers=readers)
        qkvz_TN = self.qkvz(ops, h_TD)
        qkv_TC = recurrent.conv_tail(qkvz_TN, self.conv, tails, step)
        out_TV = recurrent.gated_delta(qkv_TC, self.ba(ops, h_TD), self.shape, states, step)
        out_TV = recurrent.gated_norm(out_TV, qkvz_TN, self.out_norm, self.eps)
        project_add(ops, out_TV, self.out, None, self.eps, x_TD)
