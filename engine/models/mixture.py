"""A mixture of experts in place of an MLP: each token goes through the few that a router picks.

Which experts run is known only when the router's scores are, so a step stops there: what was
recorded so far is computed, the tokens are sorted by expert, and the experts' products are
recorded and computed in turn. Such a step cannot be replayed, and it costs more Python than
a dense one; the arithmetic of the experts runs on the same kernels.

Source: Shazeer et al. 2017 (sparsely gated experts), in the form of Mixtral (Jiang et al. 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backends.base import Ops, PackedLinear
from .projections import FusedLinear


@dataclass(slots=True)
class Mlp:
    """A gated MLP, or one expert.

    Attributes:
        gate_up: gate and up projections as one.
        down: output projection.
    """

    gate_up: FusedLinear[Any]
    down: PackedLinear

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weights reads."""
        return self.gate_up.nbytes + self.down.nbytes


@dataclass(slots=True)
class Mixture:
    """A router and its experts.

    Attributes:
        router: matrix [E, D] whose products are the experts' scores.
        experts: E gated MLPs.
        per_token: how many experts a token goes through.
        normalize: the shares of a token's experts are scaled to a sum of 1.
    """

    router: PackedLinear
    experts: list[Mlp]
    per_token: int
    normalize: bool

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one token reads."""
        every = sum(expert.nbytes for expert in self.experts)
        return self.router.nbytes + every * self.per_token // len(self.experts)

    def add(self, ops: Ops[Any], h_TD: Tensor, x_TD: Tensor) -> None:
        """Add the shares of the experts' outputs for ``h`` [T, D] to the residual [T, D]."""
        scores_TE = ops.linear(h_TD, self.router)
        _compute(ops)
        share_TK, expert_TK = route(scores_TE, self.per_token, self.normalize)
        # A backend may have rounded or padded its input of matrix products.
        h_TD = h_TD.to(ops.dtype)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for index in expert_TK.unique().tolist():
            token, place = (expert_TK == index).nonzero(as_tuple=True)
            expert = self.experts[index]
            y_SD = ops.linear(expert.gate_up.gated(ops, h_TD[token]), expert.down)
            parts.append((token, share_TK[token, place], y_SD))
        _compute(ops)
        for token, share_S, y_SD in parts:
            x_TD.index_add_(0, token, (y_SD * share_S.unsqueeze(-1)).to(x_TD.dtype))


def route(scores_TE: Tensor, per_token: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """Each token's experts: float32 shares [T, K] and indices int64 [T, K], best first."""
    share_TK, expert_TK = scores_TE.to(torch.float32).softmax(-1).topk(per_token, dim=-1)
    if normalize:
        share_TK = share_TK / share_TK.sum(-1, keepdim=True)
    return share_TK, expert_TK


def _compute(ops: Ops[Any]) -> None:
    """Compute what was recorded so far, so that its results can be looked at."""
    if not ops.eager:
        ops.end_record().run()
        ops.begin_record()
