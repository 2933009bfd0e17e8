"""A whole decode step of the 8B shape, from kernels alone, with random weights on the device.

Embedding and norm, then per layer: qkv, rotation and KV write, paged attention, o, add and norm,
gate_up with silu (fused), down, add and norm; then the head and the argmax. Layers have 4-bit
weights and the head 8-bit ones, each carried by the first kind that takes it.
Every layer has weights and KV of its own, so that a step reads what a real one reads.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.attention import decode_attention
from ...kernels.device import runtime
from ...kernels.device.workspace import Workspace
from ...kernels.formats.weight_format import WeightFormat
from ...kernels.fused import embed_norm, rms_norm, rope_write_kv
from ...kernels.kind import MatrixSpec, ProductContext, carrier
from ...kernels.kinds import KINDS
from ...kernels.random_weights import clone, random_weight
from ...kernels.sampling import argmax
from ..kernels.floors import BODY, HEAD


@dataclass(frozen=True, slots=True)
class ModelSizes:
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


TINY = ModelSizes(128, 256, 2, 1, 64, 1, 256, 16)


class StepProduct:
    """A random weight [N, K] of a format with the kind that carries it here.

    Args:
        form: the format.
        n: rows.
        k: columns.
        device: where it is made.
        gated: the product ends in ``silu(gate) * up``.
    """

    def __init__(
        self, form: WeightFormat, n: int, k: int, device: torch.device, gated: bool = False
    ) -> None:
        arch = runtime.arch(device.index or 0)
        self.kind = carrier(KINDS, MatrixSpec(n, k, form, gated=gated), arch).kind
        weight = random_weight(form, n, k, device)
        self.weight = self.kind.pack(weight, torch.float16, device, gated)

    def clone(self) -> StepProduct:
        """The same in memory of its own."""
        other = copy(self)
        other.weight = clone(self.weight)
        return other

    def run(self, x_MK: Tensor, context: ProductContext) -> Tensor:
        """-> [M, N], or [M, N / 2] when gated."""
        return self.kind.linear(x_MK, self.weight, None, None, None, context)


class StepModel:
    """Random weights in fp16 and 4 bits.

    Args:
        shape: sizes.
        device: where they are made.
    """

    def __init__(self, shape: ModelSizes, device: torch.device) -> None:
        self.shape, self.device = shape, device
        s = shape
        wide = (s.heads + 2 * s.kv_heads) * s.dim
        first = (
            StepProduct(BODY, wide, s.hidden, device),
            StepProduct(BODY, s.hidden, s.heads * s.dim, device),
            StepProduct(BODY, 2 * s.inner, s.hidden, device, gated=True),
            StepProduct(BODY, s.hidden, s.inner, device),
        )
        self.layers = [first, *(tuple(p.clone() for p in first) for _ in range(s.layers - 1))]
        self.head = StepProduct(HEAD, s.vocabulary, s.hidden, device)
        self.embedding = torch.randn(s.vocabulary, s.hidden, device=device, dtype=torch.float16)
        self.norm = torch.ones(s.hidden, device=device, dtype=torch.float16)
        self.context = ProductContext(Workspace(device))

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one step reads, without the embedding's rows."""
        every = [p for layer in self.layers for p in layer] + [self.head]
        return sum(p.weight.nbytes for p in every)

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

    def __init__(self, model: StepModel, batch: int, context: int) -> None:
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
            y = qkv.run(x, m.context)
            q = rope_write_kv(y, self.rope, self.slots, k, v, s.heads)
            mixed = decode_attention(
                *(q, k, v, self.tables, self.positions),
                max_length=self.context,
                scale=s.dim**-0.5,
                workspace=m.context.workspace,
            )
            y = o.run(mixed.flatten(1), m.context)
            x = rms_norm(y, m.norm, 1e-5, residual_TD=residual).values
            y = down.run(gate_up.run(x, m.context), m.context)
            x = rms_norm(y, m.norm, 1e-5, residual_TD=residual).values
        return argmax(m.head.run(x, m.context), workspace=m.context.workspace)
