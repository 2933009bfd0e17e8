"""A part of :mod:`.cpu_c`: the ops of blocks that keep a state once per sequence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor

from ...kernels.cpu.records import Op
from ...kernels.cpu.recurrence_ops import (
    ConvTail,
    GatedDelta,
    GatedNorm,
    Sequences,
    SigmoidMul,
)
from ..run.step import StepInputs
from .base import DeltaShape
from .scratch import Scratch

OpFields = ParamSpec("OpFields")


class CompiledRecurrence(ABC):
    """Implements ``RecurrentOps`` for a class that notes ops down."""

    _scratch: Scratch

    def conv_tail(self, x_TN: Tensor, weight_KC: Tensor, tails: Tensor, step: StepInputs) -> Tensor:
        """Causal convolution and SiLU of the first C columns, span by span -> [T, C]."""
        kernel, channels = weight_KC.shape
        out = self._scratch.take((x_TN.shape[0], channels))
        self._emit(
            ConvTail,
            sequences=_sequences(step),
            x=x_TN,
            weight=weight_KC,
            tails=tails,
            out=out,
            channels=channels,
            kernel=kernel,
            x_stride=x_TN.stride(0),
        )
        return out

    def gated_delta(
        self, x_TC: Tensor, ba_TG: Tensor, shape: DeltaShape, states: Tensor, step: StepInputs
    ) -> Tensor:
        """The gated delta rule on queries, keys and values side by side -> [T, V]."""
        out = self._scratch.take((x_TC.shape[0], shape.values))
        self._emit(
            GatedDelta,
            sequences=_sequences(step),
            x=x_TC,
            ba=ba_TG,
            rate=shape.rate,
            bias=shape.bias,
            states=states,
            out=out,
            key_heads=shape.key_heads,
            value_heads=shape.value_heads,
            key_dim=shape.key_dim,
            value_dim=shape.value_dim,
            tiled=shape.tiled,
        )
        return out

    def gated_norm(self, x_TV: Tensor, z_TN: Tensor, weight_E: Tensor, eps: float) -> Tensor:
        """RMSNorm of each head of E elements, times SiLU of the last columns of ``z``, [T, V]."""
        tokens, width = x_TV.shape
        out = self._activation(tokens, width)
        self._emit(
            GatedNorm,
            x=x_TV,
            z=z_TN,
            weight=weight_E,
            out=out,
            tokens=tokens,
            heads=width // weight_E.shape[0],
            dim=weight_E.shape[0],
            z_begin=z_TN.shape[1] - width,
            z_stride=z_TN.stride(0),
            out_stride=out.stride(0),
            half=out.dtype == torch.bfloat16,
            eps=eps,
        )
        return out

    def sigmoid_mul(self, x_TD: Tensor, gate_TD: Tensor) -> None:
        """``x *= sigmoid(gate)`` in place, for gates [T, D] or [T, 1]."""
        tokens, width = x_TD.shape
        self._emit(
            SigmoidMul,
            x=x_TD,
            gate=gate_TD,
            tokens=tokens,
            width=width,
            x_stride=x_TD.stride(0),
            gate_stride=gate_TD.stride(0),
            single=gate_TD.shape[1] == 1,
        )
        self._rewritten()

    @abstractmethod
    def _activation(self, tokens: int, width: int) -> Tensor:
        """Input [tokens, width] of a matrix product, in the type that its kernel reads."""

    @abstractmethod
    def _rewritten(self) -> None:
        """A tensor was written to: what was made of it is no longer true."""

    @abstractmethod
    def _emit(
        self, kind: Callable[OpFields, Op], *_: OpFields.args, **fields: OpFields.kwargs
    ) -> None:
        """Note an op down."""


def _sequences(step: StepInputs) -> Sequences:
    """Spans and slots; which of them begin a text is read from the positions at each replay."""
    assert step.states is not None
    count, spans = len(step.spans), None
    if len(step.token_ids) != count:
        ends = [(span.begin, span.end) for span in step.spans]
        spans = torch.tensor(ends, dtype=torch.int32)
    slots, positions = step.states, step.positions
    return Sequences(positions=positions, slots=slots, spans=spans, count=count)
