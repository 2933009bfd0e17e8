"""The ops of blocks that keep a state once per sequence, by their meanings in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import reference as ref
from ..run.step import RowSpan, StepInputs
from .base import DeltaShape


class PlainRecurrence:
    """Implements ``RecurrentOps`` with :mod:`halfbyte.kernels.reference`, span by span."""

    def conv_tail(self, x_TN: Tensor, weight_KC: Tensor, tails: Tensor, step: StepInputs) -> Tensor:
        """Causal convolution and SiLU of the first C columns, span by span -> [T, C]."""
        x_TC = x_TN[:, : weight_KC.shape[1]]
        out = torch.zeros_like(x_TC)
        for span, slot in _kept(step):
            tail_LC = _before(tails, span, slot)
            part = slice(span.begin, span.end)
            out[part], tails[slot] = ref.conv_tail(x_TC[part], weight_KC, tail_LC)
        return out

    def gated_delta(
        self, x_TC: Tensor, ba_TG: Tensor, shape: DeltaShape, states: Tensor, step: StepInputs
    ) -> Tensor:
        """The gated delta rule on queries, keys and values side by side -> [T, V]."""
        decay_TH, beta_TH = ref.delta_gates(ba_TG, shape.rate, shape.bias)
        q, k, v = x_TC.split((shape.keys, shape.keys, shape.values), dim=-1)
        q, k = (x.unflatten(-1, (shape.key_heads, shape.key_dim)) for x in (q, k))
        v = v.unflatten(-1, (shape.value_heads, shape.value_dim))
        out = torch.zeros_like(v)
        for span, slot in _kept(step):
            state_HKV = _before(states, span, slot)
            part = slice(span.begin, span.end)
            inputs = q[part], k[part], v[part], decay_TH[part], beta_TH[part]
            out[part] = ref.gated_delta(*inputs, state_HKV, shape.tiled)
            states[slot] = state_HKV
        return out.flatten(1)

    def gated_norm(self, x_TV: Tensor, z_TN: Tensor, weight_E: Tensor, eps: float) -> Tensor:
        """RMSNorm of each head of E elements, times SiLU of the last columns of ``z``, [T, V]."""
        z_TV = z_TN[:, -x_TV.shape[1] :]
        heads = x_TV.unflatten(-1, (-1, weight_E.shape[0]))
        return ref.rms_norm(heads, weight_E, eps).flatten(1) * (z_TV * torch.sigmoid(z_TV))

    def sigmoid_mul(self, x_TD: Tensor, gate_TD: Tensor) -> None:
        """``x *= sigmoid(gate)`` in place, for gates [T, D] or [T, 1]."""
        x_TD *= torch.sigmoid(gate_TD)


def _kept(step: StepInputs) -> list[tuple[RowSpan, int]]:
    """The spans of a step that keep a state, and its slot."""
    assert step.states is not None
    pairs = zip(step.spans, step.states.tolist(), strict=True)
    return [(span, slot) for span, slot in pairs if slot >= 0]


def _before(kept: Tensor, span: RowSpan, slot: int) -> Tensor:
    """What is kept of a span's text before it, in memory of its own; zeros where it begins."""
    return kept[slot].clone() if span.start else torch.zeros_like(kept[slot])
