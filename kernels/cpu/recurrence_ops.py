"""Ops of layers that keep a state once per sequence, and of the attention beside them.

Shape letters as in :mod:`.ops`; C channels, H value heads, R spans of a step. A span of a text that
begins at position 0 finds zeros, whatever its slot holds; one whose slot is negative keeps nothing,
and its outputs are zeros.
"""

from __future__ import annotations

from .records import Flag, Float, Floats, Int, Memory, Op, ReadFloats, ReadInts


class Sequences(Op):
    """The spans of a step, and where their states are.

    Attributes:
        positions: [T].
        slots: [R].
        spans: [R, 2] first token and last + 1, or None: each token is one.
        count: R.
    """

    positions: ReadInts
    slots: ReadInts
    spans: ReadInts | None
    count: Int


class ConvTail(Op):
    """A causal convolution of each channel and SiLU to ``out`` [T, C].

    Attributes:
        sequences: spans and slots.
        x: [T, at least C].
        weight: [kernel, C], the oldest input's first.
        tails: [slots, kernel - 1, C], inputs before a span; replaced by those at its end.
    """

    sequences: Sequences
    x: ReadFloats
    weight: ReadFloats
    tails: Floats
    out: Floats
    channels: Int
    kernel: Int
    x_stride: Int


class GatedDelta(Op):
    """The gated delta rule, token by token, to ``out`` [T, H * value_dim].

    Attributes:
        sequences: spans and slots.
        x: queries, keys, values of each token, [T, C].
        ba: what beta and decay are made of, [T, 2 H].
        rate: [H], below 0.
        bias: [H].
        states: [slots, H, key_dim, value_dim], replaced.
        tiled: value head h goes with key head ``h % key_heads``, not with its share of them.
    """

    sequences: Sequences
    x: ReadFloats
    ba: ReadFloats
    rate: ReadFloats
    bias: ReadFloats
    states: Floats
    out: Floats
    key_heads: Int
    value_heads: Int
    key_dim: Int
    value_dim: Int
    tiled: Flag


class GatedNorm(Op):
    """RMSNorm of each head of ``x`` [T, heads * dim], times SiLU of ``z``, to ``out``.

    ``out`` is float or (``half``) blocks. ``z`` begins ``z_begin`` columns into its rows.
    """

    x: ReadFloats
    z: ReadFloats
    weight: ReadFloats
    out: Memory
    tokens: Int
    heads: Int
    dim: Int
    z_begin: Int
    z_stride: Int
    out_stride: Int
    half: Flag
    eps: Float


class SigmoidMul(Op):
    """``x *= sigmoid(gate)``, both [T, D], or a gate [T, 1] for whole rows (``single``)."""

    x: Floats
    gate: ReadFloats
    tokens: Int
    width: Int
    x_stride: Int
    gate_stride: Int
    single: Flag


RECURRENCE_OPS: tuple[type[Op], ...] = (ConvTail, GatedDelta, GatedNorm, SigmoidMul)
