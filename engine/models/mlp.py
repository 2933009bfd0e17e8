"""The gated MLP, alone as a block or as one expert of a mixture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...loaders.model.config import ModelConfig
from ..backends.base import Ops, PackedLinear
from ..run.kv_cache import BlockState, StateSpec
from ..run.step import StepInputs
from .blocks import pre_normed, project_add
from .projections import FusedLinear
from .weights import WeightSource


@dataclass(slots=True)
class Mlp:
    """A gated MLP, or one expert.

    Attributes:
        gate_up: gate and up projections as one.
        down: output projection.
    """

    gate_up: FusedLinear[Any]
    down: PackedLinear

    @classmethod
    def load(cls, config: ModelConfig, module: str, source: WeightSource) -> Mlp:
        """The MLP that a checkpoint has under the name ``module``."""
        bias, gate_up = config.mlp_bias, [f"{module}.{p}_proj" for p in ("gate", "up")]
        return cls(
            source.fused(gate_up, bias, config.activation),
            source.packed(f"{module}.down_proj", bias),
        )

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weights reads."""
        return self.gate_up.nbytes + self.down.nbytes


@dataclass(slots=True)
class MlpBlock:
    """Norm and a gated MLP.

    Attributes:
        norm: RMSNorm weight before the MLP, float32 [D], or None.
        mlp: the MLP.
        post_norm: RMSNorm weight [D] on what is added to the residual, or None.
        eps: epsilon of the norms.
    """

    norm: Tensor | None
    mlp: Mlp
    post_norm: Tensor | None
    eps: float

    @classmethod
    def load(cls, config: ModelConfig, layer: int, source: WeightSource) -> MlpBlock:
        """The MLP of a layer."""
        name = f"model.layers.{layer}"
        return cls(
            mlp_norm(config, layer, source) if config.pre_norms else None,
            Mlp.load(config, f"{name}.mlp", source),
            source.norm(f"{name}.post_feedforward_layernorm") if config.post_norms else None,
            config.rms_norm_eps,
        )

    @property
    def recordable(self) -> bool:
        """Its ops are the same whatever the step's numbers are."""
        return True

    @staticmethod
    def state(config: ModelConfig) -> StateSpec:
        """Nothing."""
        return StateSpec()

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one decode step reads."""
        return self.mlp.nbytes

    def add(self, ops: Ops[Any], x_TD: Tensor, step: StepInputs, state: BlockState) -> None:
        """Add the MLP's output to the residual [T, D]."""
        gate_up = self.mlp.gate_up
        h_TD = pre_normed(ops, x_TD, self.norm, self.eps, gate_up.parts)
        act_TI = gate_up.gated(ops, h_TD, self.mlp.down)
        project_add(ops, act_TI, self.mlp.down, self.post_norm, self.eps, x_TD)


def mlp_norm(config: ModelConfig, layer: int, source: WeightSource) -> Tensor:
    """RMSNorm weight [D] before the MLP of a layer, or before its experts."""
    # Where a block's output is normed, too, "post_attention" is that norm.
    name = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"
    return source.norm(f"model.layers.{layer}.{name}")
