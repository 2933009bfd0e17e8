"""What is timed: a layer of one kind with all its peers, or attention, at one size.

Weights are random: time does not depend on their values. Their copies are distinct memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.attention import (
    build_prefill_table,
    decode_attention,
    prefill_attention,
    prefill_block,
)
from ...kernels.device import runtime
from ...kernels.device.gpus import Device
from ...kernels.device.workspace import Workspace
from ...kernels.kind import Conditions, MatrixSpec, ProductContext
from ...kernels.random_weights import clone, random_weight
from .floors import Layer, attention_cost, kind_named, linear_bytes, narrow_inputs
from .measure import Launch, copies_for, reason
from .peers import DENSE_PEER, PEERS

OURS = "ours"


@dataclass(slots=True)
class KernelCase:
    """One thing to time.

    Attributes:
        kind: name of a kind of weight, ``decode`` or ``prefill``.
        name: the layer, or the size of the attention.
        m: rows.
        calls: ours and the peers.
        copies: distinct copies of what is read.
        size: bytes that the floor counts.
        operations: arithmetic that the floor counts.
        read: bytes that ours really moves.
        absent: peers that there are not, with reasons.
        note: the choice of kernel, for the report.
        narrow: products are of 8-bit numbers.
    """

    kind: str
    name: str
    m: int
    calls: dict[str, Launch]
    copies: int
    size: float
    operations: float
    read: float
    absent: dict[str, str] = field(default_factory=dict)
    note: str = ""
    narrow: bool = False


class LinearCases:
    """All M of one layer: weights are made once.

    Args:
        kind: its name.
        layer: its size.
        device: of the weights.
        l2: bytes of last-level cache, which the copies exceed more than three times.
        peers: whether to make the peers too.

    Raises:
        ConfigError: another kind.
    """

    def __init__(
        self, kind: str, layer: Layer, device: torch.device, l2: int, peers: bool = True
    ) -> None:
        self.kind, self.layer, self.device = kind_named(kind), layer, device
        self.space = Workspace(device)
        cases = self.kind.cases
        case = next((c for c in cases if c.gated and layer.gated), cases[0])
        self.spec = MatrixSpec(layer.n, layer.k, case.format, gated=case.gated)
        index = device.index or 0
        place = Device("here", runtime.arch(index), runtime.multiprocessors(index))
        self.where = Conditions(place, fp16=True)
        weight = random_weight(case.format, layer.n, layer.k, device)
        first: Any = self.kind.pack(weight, torch.float16, device, case.gated)
        del weight
        self.copies = copies_for(first.nbytes, l2)
        self.weights: list[Any] = [first] + [clone(first) for _ in range(self.copies - 1)]
        self.peers: dict[str, Callable[[Tensor], Launch]] = {}
        self.absent: dict[str, str] = {}
        for name in (DENSE_PEER, *self.kind.peers) if peers else ():
            make, each = PEERS[name]
            count = copies_for(each * layer.n * layer.k, l2)
            try:
                self.peers[name] = make(layer.n, layer.k, min(count, self.copies), device)
            # Peers are optional, and break in different ways.
            except Exception as error:
                self.absent[name] = reason(error)

    def case(self, m: int) -> KernelCase:
        """The case of ``m`` rows, in fp16."""
        layer, name = self.layer, self.kind.name
        x = torch.randn(m, layer.k, device=self.device).to(torch.float16)
        calls: dict[str, Launch] = {OURS: self._ours(x)}
        absent = dict(self.absent)
        for peer, bind in self.peers.items():
            try:
                calls[peer] = bind(x)
            except Exception as error:
                absent[peer] = reason(error)
        size, narrow = linear_bytes(name, m, layer.n, layer.k), narrow_inputs(name)
        each = 1 if narrow else 2
        read = self.weights[0].nbytes + each * m * layer.k + 2 * m * self._width
        work = 2.0 * m * layer.n * layer.k
        chosen = self.kind.choose(self.spec, m, self.where)
        note = " ".join([chosen.kernel, *(f"{k}={v}" for k, v in chosen.config.items())])
        return KernelCase(
            *(name, layer.name, m, calls, self.copies, size, work, read, absent, note, narrow)
        )

    def tuned(self, m: int, table: Mapping[str, Mapping[str, Any]]) -> Launch:
        """Ours for ``m`` rows with overrides."""
        x = torch.randn(m, self.layer.k, device=self.device).to(torch.float16)
        return self._ours(x, table)

    @property
    def _width(self) -> int:
        return self.layer.n // 2 if self.spec.gated else self.layer.n

    def _ours(self, x: Tensor, table: Mapping[str, Mapping[str, Any]] | None = None) -> Launch:
        context = ProductContext(self.space, overrides=table)
        out = x.new_empty(x.shape[0], self._width)
        run, weights = self.kind.prepared(x, self.weights[0], out, context), self.weights
        return lambda index: run(weights[index])


@dataclass(frozen=True, slots=True)
class AttentionSizes:
    """Sizes of attention; defaults are those of Llama-3-8B.

    Attributes:
        heads: query heads.
        kv_heads: key and value heads.
        dim: of a head.
        page: tokens of a block.
    """

    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    page: int = 64


def attention_case(
    kind: str,
    batch: int,
    context: int,
    device: torch.device,
    l2: int,
    shape: AttentionSizes | None = None,
) -> KernelCase:
    """``decode``: one token in each of ``batch`` rows; ``prefill``: rows of ``context`` tokens."""
    s = shape or AttentionSizes()
    blocks = -(-context // s.page)
    row = 4 * context * s.kv_heads * s.dim
    copies = copies_for(batch * row, l2)
    size = (batch * blocks, s.kv_heads, s.page, s.dim)
    half = torch.float16
    caches = [
        (torch.randn(size, device=device, dtype=half), torch.randn(size, device=device, dtype=half))
        for _ in range(copies)
    ]
    tables = torch.randperm(batch * blocks, device=device).to(torch.int32).view(batch, blocks)
    tokens = batch if kind == "decode" else batch * context
    q = torch.randn(tokens, s.heads, s.dim, device=device, dtype=half)
    out = torch.empty_like(q)
    scale = s.dim**-0.5
    if kind == "decode":
        space = Workspace(device)
        positions = torch.full((batch,), context - 1, device=device, dtype=torch.int32)
        ours: Launch = lambda i: decode_attention(  # noqa: E731
            *(q, *caches[i], tables, positions),
            max_length=context, scale=scale, workspace=space, out=out,
        )  # fmt: skip
        moved, work = attention_cost(1, context - 1, s.heads, s.kv_heads, s.dim)
    else:
        arch = runtime.arch(runtime.device_index(q))
        block_q = prefill_block(arch, s.heads, s.kv_heads, s.page, s.dim, 2)
        spans = [(r * context, (r + 1) * context, 0) for r in range(batch)]
        lines = build_prefill_table(spans, block_q).to(device)
        ours = lambda i: prefill_attention(  # noqa: E731
            q, *caches[i], tables, lines, block_q=block_q, scale=scale, out=out
        )
        moved, work = attention_cost(context, 0, s.heads, s.kv_heads, s.dim)
    calls: dict[str, Launch] = {OURS: ours}
    absent: dict[str, str] = {}
    try:
        calls["sdpa"] = _sdpa(kind, batch, context, s, q, caches)
    except Exception as error:
        absent["sdpa"] = reason(error)
    name = f"batch {batch}, {context} tokens"
    moved, work = moved * batch, work * batch
    return KernelCase(kind, name, tokens, calls, copies, moved, work, moved, absent)


def _sdpa(
    kind: str, batch: int, context: int, s: AttentionSizes, q: Tensor, caches: list[Any]
) -> Launch:
    """torch's attention over contiguous keys in the memory of the caches."""
    long = 1 if kind == "decode" else context
    q_BHLE = q.view(batch, long, s.heads, s.dim).transpose(1, 2)
    flat = [
        tuple(t.view(-1)[: batch * s.kv_heads * context * s.dim].view(
            batch, s.kv_heads, context, s.dim) for t in pair)
        for pair in caches
    ]  # fmt: skip
    causal = kind != "decode"
    return lambda i: F.scaled_dot_product_attention(
        q_BHLE, flat[i][0], flat[i][1], is_causal=causal, enable_gqa=True
    )
