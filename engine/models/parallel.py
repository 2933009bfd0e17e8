"""A layer whose attention and MLP read the same norm, as one block (Cohere)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...loaders.model.config import ModelConfig
from ..backends.base import Ops
from ..run.kv_cache import BlockState, StateSpec
from ..run.step import StepInputs
from .attention import AttentionBlock
from .blocks import centered, pre_normed, project_add
from .mlp import Mlp
from .weights import WeightSource


@dataclass(slots=True)
class ParallelBlock:
    """Norm, then attention and a gated MLP side by side.

    Attributes:
        config: the model's architecture.
        attention: with the norm of both.
        mlp: the MLP.
    """

    config: ModelConfig
    attention: AttentionBlock
    mlp: Mlp

    @classmethod
    def load(cls, config: ModelConfig, layer: int, source: WeightSource) -> ParallelBlock:
        """The whole of a layer."""
        attention = AttentionBlock.load(config, layer, source)
        return cls(config, attention, Mlp.load(config, f"model.layers.{layer}.mlp", source))

    @property
    def recordable(self) -> bool:
        """Its ops are the same whatever the step's numbers are."""
        return True

    @staticmethod
    def state(config: ModelConfig) -> StateSpec:
        """That of attention."""
        return AttentionBlock.state(config)

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one decode step reads."""
        return self.attention.nbytes + self.mlp.nbytes

    def add(self, ops: Ops[Any], x_TD: Tensor, step: StepInputs, state: BlockState) -> None:
        """Add what both make of the normed residual to the residual [T, D]."""
        own, mlp = self.attention, self.mlp
        centered(ops, self.config, x_TD)
        readers = (*own.qkv.parts, *mlp.gate_up.parts)
        h_TD = pre_normed(ops, x_TD, own.norm, own.eps, readers)
        a_TC = own.attend(ops, own.qkv(ops, h_TD), step, state)
        project_add(ops, a_TC, own.o, own.post_norm, own.eps, x_TD)
        act_TI = mlp.gate_up.gated(ops, h_TD, mlp.down)
        project_add(ops, act_TI, mlp.down, own.post_norm, own.eps, x_TD)
