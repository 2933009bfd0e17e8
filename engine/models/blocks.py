"""What a network is made of: blocks that add something to the residual, one after another.

A layer of today's families is two blocks, attention and an MLP or a mixture of experts. A block of
another kind is a class beside :class:`~.attention.AttentionBlock` and :class:`~.mlp.MlpBlock`, and
a case in :func:`.decoder.layer_blocks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

from torch import Tensor

from ...loaders.model.config import ModelConfig
from ..backends.base import Ops, PackedLinear
from ..run.kv_cache import BlockState, StateSpec
from ..run.step import StepInputs
from .weights import WeightSource


class Block(Protocol):
    """A part of a network."""

    @property
    def recordable(self) -> bool:
        """Whether its ops are the same whatever the step's numbers are."""
        ...

    @classmethod
    def load(cls, config: ModelConfig, layer: int, source: WeightSource) -> Self:
        """The block of a layer, with its weights packed."""
        ...

    @staticmethod
    def state(config: ModelConfig) -> StateSpec:
        """What the block keeps of a text; known before any weight is read."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one decode step reads."""
        ...

    def add(self, ops: Ops[Any], x_TD: Tensor, step: StepInputs, state: BlockState) -> None:
        """Compute from the residual [T, D], and add to it in place."""
        ...


def centered(ops: Ops[Any], config: ModelConfig, x_TD: Tensor) -> None:
    """Make an RMSNorm of the residual [T, D] the norm that the model has of it."""
    if config.centered_norms:
        ops.center(x_TD)


def pre_normed(
    ops: Ops[Any], x_TD: Tensor, norm_D: Tensor | None, eps: float, readers: Sequence[Any]
) -> Tensor:
    """What a block reads of the residual [T, D]: normed where it has a norm [D] for that.

    ``readers`` are the matrices that read it, see :meth:`~.base.Ops.rms_norm`.
    """
    return x_TD if norm_D is None else ops.rms_norm(x_TD, norm_D, eps, readers=readers)


def project_add(
    ops: Ops[Any],
    y_TK: Tensor,
    weight: PackedLinear,
    post_norm_D: Tensor | None,
    eps: float,
    x_TD: Tensor,
) -> None:
    """Project what a block made [T, K], norm it where ``post_norm`` [D] is given, and add it to
    the residual [T, D] in place.
    """
    if post_norm_D is None:
        ops.linear_add(y_TK, weight, x_TD)
    else:
        ops.add(ops.rms_norm(ops.linear(y_TK, weight), post_norm_D, eps), x_TD)
