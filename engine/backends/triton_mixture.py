"""The experts of a layer on the Triton backends: one product over all of them for each projection.

Nothing of it depends on the router's choice but numbers on the device, so a step with it can be
recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.device.expert_tiles import ExpertLoad, ExpertTiles
from ...kernels.experts import add_shares, arrange, gather_rows, route
from ...kernels.fused import gated_mul
from ...kernels.kind import ProductContext, TritonKind
from .base import MixtureShape
from .triton_weights import TritonLinear


@dataclass(frozen=True, slots=True)
class ExpertLinear:
    """The same projection of all experts.

    Attributes:
        kind: carries it.
        packed: all matrices, as :meth:`TritonKind.stack` makes them.
        gated: a product ends in ``silu(gate) * up``.
        bias: [E, N] in the activations' dtype, or None.
    """

    kind: TritonKind[Any]
    packed: Any
    gated: bool
    bias: Tensor | None

    @classmethod
    def of(cls, experts: Sequence[TritonLinear]) -> ExpertLinear | None:
        """From matrices that were packed each for itself; None where they differ too much."""
        first = experts[0]
        for one in experts:
            same = one.kind is first.kind and one.gated == first.gated and one.perm is None
            if not same or one.shape != first.shape:
                return None
        packed = first.kind.stack([one.packed for one in experts])
        if packed is None:
            return None
        biases = [one.bias for one in experts if one.bias is not None]
        if biases and len(biases) < len(experts):
            return None
        return cls(first.kind, packed, first.gated, torch.stack(biases) if biases else None)

    def product(self, x_PK: Tensor, tiles: ExpertTiles, context: ProductContext) -> Tensor:
        """Inputs [P, K], each with the matrix of its expert -> [P, N]."""
        return self.kind.grouped_linear(x_PK, self.packed, self.bias, tiles, context)


@dataclass(frozen=True, slots=True)
class TritonMixture:
    """All experts of a layer.

    Attributes:
        gate_up: gate over up of every expert.
        down: output projection of every expert.
        shape: how experts are chosen.
        count: experts E.
        context: of the backend's products.
    """

    gate_up: ExpertLinear
    down: ExpertLinear
    shape: MixtureShape
    count: int
    context: ProductContext

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one token reads."""
        every = self.gate_up.packed.nbytes + self.down.packed.nbytes
        return every * self.shape.per_token // self.count

    def add(self, h_TD: Tensor, scores_TE: Tensor, residual_TD: Tensor) -> None:
        """Add to the residual [T, D] what the experts make of ``h`` [T, D]."""
        shape, context = self.shape, self.context
        load = ExpertLoad.of(h_TD.shape[0], shape.per_token, self.count)
        rows = max(
            part.kind.tile_rows(part.packed, load, h_TD.dtype, context)
            for part in (self.gate_up, self.down)
        )
        routes = route(scores_TE, shape.per_token, shape.normalize)
        where = arrange(routes, rows)
        a_PI = self.gate_up.product(gather_rows(h_TD, where), where.tiles, context)
        if not self.gate_up.gated:
            values = gated_mul(a_PI, activation=shape.activation).values
            assert values is not None
            a_PI = values
        y_PD = self.down.product(a_PI, where.tiles, context)
        add_shares(y_PD, where, routes.shares, residual_TD)
