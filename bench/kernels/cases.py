"""What is timed: a layer of one kind with all its peers, or attention, at one size.

Weights are random: time does not depend on their values. Their copies are distinct memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from halfbyte.errors import ConfigError

from ...kernels.attention import (
    build_prefill_table,
    decode_attention,
    prefill_attention,
    prefill_block,
)
from ...kernels.device import runtime
from ...kernels.device.workspace import Workspace
from ...kernels.w4a16.layout import PackedW4, pack_w4
from ...kernels.w4a16.op import explain, w4a16_linear
from ...kernels.w8a8 import pack_w8a8, quantize_rows, w8a8_linear
from ...kernels.w8a16 import pack_w8a16, w8a16_linear
from .floors import Layer, attention_cost, linear_bytes
from .measure import Call, copies_for, reason
from .peers import PEERS

OURS = "ours"


@dataclass(slots=True)
class Case:
    """One thing to time.

    Attributes:
        kind: ``w4a16``, ``w8a8``, ``w8a16``, ``decode`` or ``prefill``.
        name: the layer, or the size of the attention.
        m: rows.
        calls: ours and the peers.
        copies: distinct copies of what is read.
        size: bytes that the floor counts.
        operations: arithmetic that the floor counts.
        read: bytes that ours really moves.
        absent: peers that there are not, with reasons.
        note: the choice of kernel, for the report.
    """

    kind: str
    name: str
    m: int
    calls: dict[str, Call]
    copies: int
    size: float
    operations: float
    read: float
    absent: dict[str, str] = field(default_factory=dict)
    note: str = ""


def random_w4(n: int, k: int, device: torch.device, gated: bool = False) -> PackedW4:
    """A symmetric 4-bit weight [N, K] in groups of 128."""
    codes = torch.randint(0, 16, (n, k), device=device, dtype=torch.uint8)
    scales = (torch.rand(n, -(-k // 128), device=device) * 0.01 + 0.005).to(torch.float16)
    return pack_w4(codes, scales, gated=gated)


class LinearCases:
    """All M of one layer: weights are made once.

    Args:
        kind: ``w4a16``, ``w8a8`` or ``w8a16``.
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
        if kind not in PEERS:
            raise ConfigError(f"no kind of layer is called {kind!r}; known: {', '.join(PEERS)}")
        self.kind, self.layer, self.device = kind, layer, device
        self.space = Workspace(device)
        first: Any = _weight(kind, layer, device)
        self.copies = copies_for(first.nbytes, l2)
        self.weights: list[Any] = [first] + [_clone(first) for _ in range(self.copies - 1)]
        self.peers: dict[str, Callable[[Tensor], Call]] = {}
        self.absent: dict[str, str] = {}
        for name, (make, each) in PEERS[kind].items() if peers else ():
            count = copies_for(each * layer.n * layer.k, l2)
            try:
                self.peers[name] = make(layer.n, layer.k, min(count, self.copies), device)
            # Peers are optional, and break in ways of their own.
            except Exception as error:
                self.absent[name] = reason(error)

    def case(self, m: int) -> Case:
        """The case of ``m`` rows, in fp16."""
        layer = self.layer
        x = torch.randn(m, layer.k, device=self.device).to(torch.float16)
        calls: dict[str, Call] = {OURS: self._ours(x)}
        absent = dict(self.absent)
        for name, bind in self.peers.items():
            try:
                calls[name] = bind(x)
            except Exception as error:
                absent[name] = reason(error)
        size = linear_bytes(self.kind, m, layer.n, layer.k)
        width = layer.n // 2 if self.kind == "w4a16" and layer.gated else layer.n
        each = 1 if self.kind == "w8a8" else 2
        read = self.weights[0].nbytes + each * m * layer.k + 2 * m * width
        work = 2.0 * m * layer.n * layer.k
        note = ""
        if self.kind == "w4a16":
            choice = explain(x, self.weights[0], workspace=self.space)
            note = f"{choice.kernel} {_short(choice.config)}"
        return Case(self.kind, layer.name, m, calls, self.copies, size, work, read, absent, note)

    def tuned(self, m: int, table: dict[str, dict[str, Any]]) -> Call:
        """Ours for ``m`` rows with overrides (w4a16 only)."""
        x = torch.randn(m, self.layer.k, device=self.device).to(torch.float16)
        return self._ours(x, table)

    def _ours(self, x: Tensor, table: dict[str, dict[str, Any]] | None = None) -> Call:
        w, m = self.weights, x.shape[0]
        if self.kind == "w8a8":
            q, s, _ = quantize_rows(x)
            out = x.new_empty(m, self.layer.n)
            return lambda i: w8a8_linear(q, s, w[i], out=out)
        if self.kind == "w8a16":
            out = x.new_empty(m, self.layer.n)
            return lambda i: w8a16_linear(x, w[i], out=out, workspace=self.space)
        out = x.new_empty(m, w[0].out_features)
        gate = "silu_mul" if self.layer.gated else None
        space = self.space
        return lambda i: w4a16_linear(
            x, w[i], activation=gate, out=out, workspace=space, overrides=table
        )


def _weight(kind: str, layer: Layer, device: torch.device) -> Any:
    n, k = layer.n, layer.k
    if kind == "w4a16":
        return random_w4(n, k, device, layer.gated)
    codes = torch.randint(-127, 128, (n, k), device=device, dtype=torch.int8)
    scales = torch.rand(n, device=device) * 0.001
    return pack_w8a8(codes, scales) if kind == "w8a8" else pack_w8a16(codes, scales[:, None])


def _clone(weight: Any) -> Any:
    """The same weight in memory of its own."""
    names = {"units", "table", "words", "scales", "codes"}
    have = {name for name in names if isinstance(getattr(weight, name, None), Tensor)}
    return replace(weight, **{name: getattr(weight, name).clone() for name in have})


def _short(config: Any) -> str:
    return f"{config.bm}x{config.bn} w{config.warps} s{config.stages} /{config.splits}"


@dataclass(frozen=True, slots=True)
class AttentionShape:
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
    shape: AttentionShape | None = None,
) -> Case:
    """``decode``: one token in each of ``batch`` rows; ``prefill``: rows of ``context`` tokens."""
    s = shape or AttentionShape()
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
        positions = torch.full((batch,), context - 1, device=device, dtype=torch.int32)
        ours: Call = lambda i: decode_attention(  # noqa: E731
            q, *caches[i], tables, positions, max_length=context, scale=scale, out=out
        )
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
    calls: dict[str, Call] = {OURS: ours}
    absent: dict[str, str] = {}
    try:
        calls["sdpa"] = _sdpa(kind, batch, context, s, q, caches)
    except Exception as error:
        absent["sdpa"] = reason(error)
    name = f"batch {batch}, {context} tokens"
    moved, work = moved * batch, work * batch
    return Case(kind, name, tokens, calls, copies, moved, work, moved, absent)


def _sdpa(
    kind: str, batch: int, context: int, s: AttentionShape, q: Tensor, caches: list[Any]
) -> Call:
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
