"""A whole decode step of the 8B shape, from kernels alone, with random weights on the device.

Embedding and norm, then per layer: qkv (W4A16), rotation and KV write, paged attention, o, add and
norm, gate_up with silu (W4A16, fused), down, add and norm; then the head (W8A16) and the argmax.
Every layer has weights and KV of its own, so that a step reads what a real one reads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...kernels.attention import decode_attention
from ...kernels.device.workspace import Workspace
from ...kernels.fused import embed_norm, rms_norm, rope_write_kv
from ...kernels.sampling import argmax
from ...kernels.w4a16.layout import PackedW4
from ...kernels.w4a16.op import w4a16_linear
from ...kernels.w8a16 import pack_w8a16, w8a16_linear
from ..kernels.cases import random_w4


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model; defaults are those of Llama-3-8B.

    Attributes:
        hidden: width of the residual.
        inner: width between gate and down.
        heads: query heads.
        kv_heads: key and value heads.
        dim: of a head.
        layers: how many.
        vocabulary: token ids.
        page: tokens of a KV block.
    """

    hidden: int = 4096
    inner: int = 14336
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    layers: int = 32
    vocabulary: int = 128256
    page: int = 64

    def kv_bytes(self, batch: int, context: int) -> int:
        """Bytes of the KV of all layers."""
        return 4 * batch * context * self.layers * self.kv_heads * self.dim


TINY = Shape(128, 256, 2, 1, 64, 1, 256, 16)


class Model:
    """Random weights in fp16 and 4 bits.

    Args:
        shape: sizes.
        device: where they are made.
    """

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape, self.device = shape, device
        s = shape
        wide = (s.heads + 2 * s.kv_heads) * s.dim
        first = (
            random_w4(wide, s.hidden, device),
            random_w4(s.hidden, s.heads * s.dim, device),
            random_w4(2 * s.inner, s.hidden, device, gated=True),
            random_w4(s.hidden, s.inner, device),
        )
        self.layers: list[tuple[PackedW4, ...]] = [first]
        self.layers += [tuple(_clone(w) for w in first) for _ in range(s.layers - 1)]
        codes = torch.randint(-127, 128, (s.vocabulary, s.hidden), device=device, dtype=torch.int8)
        scales = torch.rand(s.vocabulary, 1, device=device) * 0.001
        self.head = pack_w8a16(codes, scales)
        del codes
        self.embedding = torch.randn(s.vocabulary, s.hidden, device=device, dtype=torch.float16)
        self.norm = torch.ones(s.hidden, device=device, dtype=torch.float16)
        self.space = Workspace(device)

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one step reads, without the embedding's rows."""
        return sum(w.nbytes for layer in self.layers for w in layer) + self.head.nbytes

    def step(self, batch: int, context: int) -> Step:
        """A step of ``batch`` rows, each with ``context`` tokens counting the new one."""
        return Step(self, batch, context)


class Step:
    """One decode step with its buffers.

    Args:
        model: weights.
        batch: rows.
        context: tokens of each row, counting the new one.
    """

    def __init__(self, model: Model, batch: int, context: int) -> None:
        s, device = model.shape, model.device
        self.model, self.context = model, context
        blocks = -(-context // s.page)
        size = (batch * blocks, s.kv_heads, s.page, s.dim)
        self.kv = [
            tuple(torch.zeros(size, device=device, dtype=torch.float16) for _ in range(2))
            for _ in range(s.layers)
        ]
        order = torch.randperm(batch * blocks, device=device)
        self.tables = order.to(torch.int32).view(batch, blocks)
        last = context - 1
        self.positions = torch.full((batch,), last, device=device, dtype=torch.int32)
        page, offset = divmod(last, s.page)
        self.slots = self.tables[:, page].to(torch.int64) * s.page + offset
        angles = torch.rand(batch, s.dim // 2, device=device)
        self.rope = torch.cat([angles.cos(), angles.sin()], 1).contiguous()
        self.ids = torch.randint(0, s.vocabulary, (batch,), device=device)

    def run(self) -> Tensor:
        """Launch it all -> the next ids, int64 [batch]."""
        m, s = self.model, self.model.shape
        residual, first = embed_norm(self.ids, m.embedding, weight_D=m.norm, eps=1e-5)
        assert first is not None
        x: Any = first.values
        for weights, (k, v) in zip(m.layers, self.kv, strict=True):
            qkv, o, gate_up, down = weights
            y = w4a16_linear(x, qkv, workspace=m.space)
            q = rope_write_kv(y, self.rope, self.slots, k, v, s.heads)
            mixed = decode_attention(
                *(q, k, v, self.tables, self.positions),
                max_length=self.context,
                scale=s.dim**-0.5,
            )
            y = w4a16_linear(mixed.flatten(1), o, workspace=m.space)
            x = rms_norm(y, m.norm, 1e-5, residual_TD=residual).values
            y = w4a16_linear(x, gate_up, activation="silu_mul", workspace=m.space)
            y = w4a16_linear(y, down, workspace=m.space)
            x = rms_norm(y, m.norm, 1e-5, residual_TD=residual).values
        return argmax(w8a16_linear(x, m.head, workspace=m.space))


def _clone(weight: PackedW4) -> PackedW4:
    return replace(weight, units=weight.units.clone(), table=weight.table.clone())
