"""A mixture of experts in place of an MLP: each token goes through the few that a router picks.

Which experts run is known only when the router's scores are. A backend with products over all
experts at once is handed the scores. On others a step stops there: what was recorded so far is
computed, the tokens are sorted by expert, and the experts' products are recorded and computed in
turn. Such a step cannot be replayed, and it costs more Python than a dense one; the arithmetic of
the experts runs on the same kernels.

Source: Shazeer et al. 2017 (sparsely gated experts), in the form of Mixtral (Jiang et al. 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...loaders.model.config import ModelConfig
from ..backends.base import ExpertMixture, MixtureShape, Ops, PackedLinear, RecurrentOps
from ..run.kv_cache import BlockState, StateSpec
from ..run.step import StepInputs
from .mlp import Mlp, mlp_norm
from .weights import WeightSource


@dataclass(slots=True)
class MixtureBlock:
    """Norm, a router and its experts.

    Attributes:
        norm: RMSNorm weight before router and experts, float32 [D].
        router: matrix [E, D] whose products are the experts' scores.
        experts: E gated MLPs; none where ``mixture`` has them.
        shape: how experts are chosen.
        eps: epsilon of the norm.
        mixture: all experts as one, where the backend has that.
        shared: an MLP that all tokens go through as well, the matrix [1, D] of its share, and the
            op that takes that; or None.
    """

    norm: Tensor
    router: PackedLinear
    experts: list[Mlp]
    shape: MixtureShape
    eps: float
    mixture: ExpertMixture | None = None
    shared: tuple[Mlp, PackedLinear, RecurrentOps] | None = None

    @classmethod
    def load(cls, config: ModelConfig, layer: int, source: WeightSource) -> MixtureBlock:
        """The mixture of a layer."""
        name, experts = f"model.layers.{layer}.mlp", config.experts_of(layer)
        assert experts is not None
        made = cls(
            mlp_norm(config, layer, source),
            source.packed(f"{name}.gate", experts.router_bias),
            [Mlp.load(config, f"{name}.experts.{i}", source) for i in range(experts.count)],
            MixtureShape(experts.per_token, experts.normalize, config.activation),
            config.rms_norm_eps,
        )
        if experts.shared_size:
            shared = Mlp.load(config, f"{name}.shared_expert", source)
            made.shared = shared, source.packed(f"{name}.shared_expert_gate"), source.recurrent()
        pairs = [(expert.gate_up, expert.down) for expert in made.experts]
        made.mixture = source.mixture(pairs, made.shape)
        if made.mixture is not None:
            made.experts = []
        return made

    @property
    def recordable(self) -> bool:
        """Not where the router's scores choose the ops."""
        return self.mixture is not None

    @staticmethod
    def state(config: ModelConfig) -> StateSpec:
        """Nothing."""
        return StateSpec()

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one token reads."""
        own = self.router.nbytes
        if self.shared is not None:
            own += self.shared[0].nbytes + self.shared[1].nbytes
        if self.mixture is not None:
            return own + self.mixture.nbytes
        every = sum(expert.nbytes for expert in self.experts)
        return own + every * self.shape.per_token // len(self.experts)

    def add(self, ops: Ops[Any], x_TD: Tensor, step: StepInputs, state: BlockState) -> None:
        """Add the shares of the experts' outputs to the residual [T, D]."""
        h_TD = ops.rms_norm(x_TD, self.norm, self.eps)
        scores_TE = ops.linear(h_TD, self.router)
        if self.shared is not None:
            mlp, gate, recurrent = self.shared
            y_TD = ops.linear(mlp.gate_up.gated(ops, h_TD, mlp.down), mlp.down)
            recurrent.sigmoid_mul(y_TD, ops.linear(h_TD, gate))
            ops.add(y_TD, x_TD)
        if self.mixture is not None:
            self.mixture.add(h_TD, scores_TE, x_TD)
            return
        ops.flush()
        share_TK, expert_TK = route(scores_TE, self.shape.per_token, self.shape.normalize)
        # A backend may have rounded or padded its input of matrix products.
        h_TD = h_TD.to(ops.dtype)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for index in expert_TK.unique().tolist():
            token, place = (expert_TK == index).nonzero(as_tuple=True)
            expert = self.experts[index]
            act_SI = expert.gate_up.gated(ops, h_TD[token], expert.down)
            y_SD = ops.linear(act_SI, expert.down)
            parts.append((token, share_TK[token, place], y_SD))
        ops.flush()
        for token, share_S, y_SD in parts:
            x_TD.index_add_(0, token, (y_SD * share_S.unsqueeze(-1)).to(x_TD.dtype))


def route(scores_TE: Tensor, per_token: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """Each token's experts: float32 shares [T, K] and indices int64 [T, K], best first."""
    share_TK, expert_TK = scores_TE.to(torch.float32).softmax(-1).topk(per_token, dim=-1)
    if normalize:
        share_TK = share_TK / share_TK.sum(-1, keepdim=True)
    return share_TK, expert_TK
