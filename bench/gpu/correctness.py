"""Every kernel against float64, its bits across M, its bits across runs, poisoned workspaces.

Errors are relative to the root mean square of the true result: one fp16 rounding of an outlier of
five times that is 0.0024; weights rounded in fp16 add noise of the same order. Limits are four
times that; bf16 has an eighth of the resolution. Bit comparisons have the limit 0: the error is
the number of elements that differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...kernels.attention import (
    build_prefill_table,
    decode_attention,
    prefill_attention,
    prefill_block,
)
from ...kernels.attention.reference import paged_attention
from ...kernels.device import runtime
from ...kernels.device.workspace import Workspace
from ...kernels.formats.canonical import QuantizedLinear
from ...kernels.fused import embed_norm, gated_mul, rms_norm, rope_write_kv
from ...kernels.kind import MatrixSpec, ProductContext, TritonKind
from ...kernels.kinds import KINDS
from ...kernels.random_weights import random_weight
from ...kernels.sampling import argmax
from .part import Part

_LIMITS = {torch.float16: 1e-2, torch.bfloat16: 8e-2}
_ROWS = (1, 3, 8, 16, 17, 32, 64, 100, 128, 300, 1100)


def distance(y: Tensor, truth: Tensor) -> float:
    """Largest difference of two tensors of the same shape, in root mean squares of the truth."""
    if not bool(torch.isfinite(y).all()):
        return float("inf")
    true = truth.double()
    return float((y.double() - true).abs().max() / true.pow(2).mean().sqrt().clamp(min=1e-9))


def differing(a: Tensor, b: Tensor) -> float:
    """Elements whose bits differ, of two tensors of the same shape."""
    return float((a.view(torch.uint8) != b.view(torch.uint8)).sum())


def poisoned(device: torch.device) -> Workspace:
    """A workspace whose partial sums are NaN before the first launch."""
    space = Workspace(device)
    space.partials.fill_(float("nan"))
    return space


def _sizes(part: Part) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    if part.small:
        return (1, 17), ((128, 256),)
    return _ROWS, ((1024, 4096), (4096, 1024), (200, 1000))


def _linear(
    part: Part,
    label: str,
    kind: TritonKind[Any],
    weight: QuantizedLinear,
    gated: bool,
    rows: tuple[int, ...],
) -> None:
    """Float64, and repeated, and across M for one weight, in both dtypes."""
    device, k = part.device, weight.in_features
    for dtype in (torch.float16, torch.bfloat16):
        packed = kind.pack(weight, dtype, device, gated)
        x = torch.randn(max(rows), k, device=device).to(dtype)
        true = true_product(kind.seen(x, packed), weight, gated)

        def run(m: int, exact: bool, x: Tensor = x, packed: Any = packed) -> Tensor:
            context = ProductContext(poisoned(device), exact)
            return kind.linear(x[:m].contiguous(), packed, None, None, None, context)

        name = f"{label} {str(dtype).removeprefix('torch.')}"
        for m in rows:
            if part.left < 0:
                return

            def far(m: int = m, run=run, true: Tensor = true) -> tuple[float, float]:
                y, again = run(m, False), run(m, False)
                # A second run with other bits is as wrong as a number can be.
                error = float("inf") if differing(y, again) else distance(y, true[:m])
                return error, _LIMITS[y.dtype]

            part.check(f"{name} M={m}", far)
        if part.small and dtype == torch.bfloat16:
            continue  # Its tiles and the order of its sums are those of float16.

        def bits(run=run) -> tuple[float, float]:
            whole = run(max(rows), True)
            return sum(differing(run(m, True), whole[:m]) for m in rows[:-1]), 0.0

        part.check(f"{name} exact across M", bits)


def kind_check(kind: TritonKind[Any]) -> Callable[[Part], None]:
    """A check of every case of a kind: both dtypes, ragged sizes, each case on its own."""

    def check(part: Part) -> None:
        rows, sizes = _sizes(part)
        arch = runtime.arch(part.device.index or 0)
        for case in kind.cases[:2] if part.small else kind.cases:
            for n, k in sizes:
                if kind.accepts(MatrixSpec(n, k, case.format, gated=case.gated), arch):
                    continue
                weight = random_weight(case.format, n, k, torch.device("cpu"))
                zero, group = case.format.zero, case.format.group_size
                label = f"{kind.name} {n}x{k} {zero} g{group}{' gated' if case.gated else ''}"
                act = case.format.act
                if act is not None and not act.symmetric:
                    label += " zero point"
                _linear(part, label, kind, weight, case.gated, rows)

    return check


def true_product(x_MK: Tensor, weight: QuantizedLinear, gated: bool) -> Tensor:
    """float64 [M, N], or [M, N / 2] when gated, of inputs in float64."""
    y = x_MK @ weight.dequantize().to(x_MK.device).double().T
    if gated:
        gate, up = y.chunk(2, 1)
        y = gate * torch.sigmoid(gate) * up
    return y


def attention(part: Part) -> None:
    """Decode with splits, prefill with a cached prefix, and exact bits of a row alone."""
    d, page, space = part.device, 16 if part.small else 64, poisoned(part.device)
    lengths = (40, 7) if part.small else (1, 63, 700, 3000)
    for heads, kv_heads, dim in ((4, 2, 64),) if part.small else ((32, 8, 128), (14, 2, 64)):
        for dtype in (torch.float16, torch.bfloat16):
            width = -(-max(lengths) // page)
            count = len(lengths)
            size = (count * width, kv_heads, page, dim)
            k, v = (torch.randn(size, device=d).to(dtype) for _ in range(2))
            tables = torch.randperm(count * width, device=d).to(torch.int32).view(count, width)
            pos = torch.tensor(lengths, device=d, dtype=torch.int32) - 1
            q = torch.randn(count, heads, dim, device=d).to(dtype)
            line = torch.arange(count, device=d, dtype=torch.int32)
            scale = dim**-0.5

            def decode(
                exact: bool, some: slice, q=q, k=k, v=v, tables=tables, pos=pos, scale=scale
            ) -> Tensor:
                return decode_attention(
                    *(q[some].contiguous(), k, v, tables[some].contiguous(), pos[some]),
                    max_length=max(lengths), scale=scale, exact=exact, workspace=space,
                )  # fmt: skip

            def true(q=q, k=k, v=v, tables=tables, pos=pos, line=line, scale=scale) -> Tensor:
                return paged_attention(q.double(), k.double(), v.double(), tables, pos, line, scale)

            label = f"attention {heads}/{kv_heads} heads of {dim} {str(dtype)[6:]}"
            for exact in (False, True):
                part.check(
                    f"decode {label} exact={exact}",
                    lambda e=exact, f=decode, t=true, y=dtype: (
                        distance(f(e, slice(None)), t()), _LIMITS[y]),
                )  # fmt: skip
            part.check(
                f"decode {label} exact alone",
                lambda f=decode: (
                    sum(differing(f(True, slice(r, r + 1)), f(True, slice(None))[r : r + 1])
                        for r in range(len(lengths))), 0.0),
            )  # fmt: skip

            def prefill(
                k=k,
                v=v,
                tables=tables,
                scale=scale,
                dtype=dtype,
                heads=heads,
                kv_heads=kv_heads,
                dim=dim,
            ) -> tuple[float, float]:
                new = 5 if part.small else 150
                first = max(lengths) - new
                line = len(lengths) - 1
                arch = runtime.arch(runtime.device_index(k))
                block_q = prefill_block(arch, heads, kv_heads, page, dim, 2)
                spans = [(0, 0, 0)] * line + [(0, new, first)]
                work = build_prefill_table(spans, block_q).to(d)
                q = torch.randn(new, heads, dim, device=d).to(dtype)
                y = prefill_attention(q, k, v, tables, work, block_q=block_q, scale=scale)
                at = torch.arange(first, first + new, device=d, dtype=torch.int32)
                rows = torch.full_like(at, line)
                wide = q.double(), k.double(), v.double()
                return distance(y, paged_attention(*wide, tables, at, rows, scale)), _LIMITS[dtype]

            part.check(f"prefill {label}", prefill)


def fused(part: Part) -> None:
    """Norms, gated activation, rotation with its KV write, argmax."""
    d = part.device
    rows, wide = (3, 128) if part.small else (300, 4096)
    for dtype in (torch.float16, torch.bfloat16):
        kind = str(dtype)[6:]
        x, r = (torch.randn(rows, wide, device=d).to(dtype) for _ in range(2))
        w = torch.rand(wide, device=d).to(dtype)
        limit = _LIMITS[dtype]

        def norm(x=x, r=r, w=w, limit=limit) -> tuple[float, float]:
            residual = r.clone()
            y = rms_norm(x, w, 1e-5, residual_TD=residual).values
            h = residual.double()
            true = h / (h.pow(2).mean(1, keepdim=True) + 1e-5).sqrt() * w.double()
            error = max(distance(y, true), distance(residual, x.double() + r.double()))  # type: ignore[arg-type]
            return error, 2 * limit

        def gate(x=x, limit=limit) -> tuple[float, float]:
            y = gated_mul(x).values
            a, b = x.double().chunk(2, 1)
            return distance(y, a * torch.sigmoid(a) * b), 2 * limit  # type: ignore[arg-type]

        def embed(x=x, w=w) -> tuple[float, float]:
            ids = torch.randint(0, rows, (7,), device=d)
            y, _ = embed_norm(ids, x, weight_D=w, eps=1e-5)
            return differing(y, x[ids]), 0.0

        def rope(dtype=dtype, limit=limit) -> tuple[float, float]:
            heads, kv_heads, dim, page = 4, 2, 64, 16
            qkv = torch.randn(9, (heads + 2 * kv_heads) * dim, device=d).to(dtype)
            angles = torch.rand(9, dim // 2, device=d) * 6
            table = torch.cat([angles.cos(), angles.sin()], 1)
            k, v = (torch.zeros(4, kv_heads, page, dim, device=d, dtype=dtype) for _ in range(2))
            slots = torch.randperm(4 * page, device=d)[:9]
            q = rope_write_kv(qkv, table, slots, k, v, heads)
            every = qkv.double().view(9, -1, dim)
            c, s = (t.double()[:, None] for t in table.chunk(2, 1))
            a, b = every[:, : heads + kv_heads].chunk(2, 2)
            turned = torch.cat([a * c - b * s, b * c + a * s], 2)
            stored = k.permute(0, 2, 1, 3).reshape(-1, kv_heads, dim)[slots]
            kept = v.permute(0, 2, 1, 3).reshape(-1, kv_heads, dim)[slots]
            errors = (
                distance(q, turned[:, :heads]),
                distance(stored, turned[:, heads:]),
                distance(kept, every[:, heads + kv_heads :]),
            )
            return max(errors), limit

        def best(dtype=dtype) -> tuple[float, float]:
            logits = torch.randn(5, 300 if part.small else 128256, device=d).to(dtype)
            ids = torch.arange(logits.shape[1], device=d)
            top = logits == logits.amax(1, keepdim=True)
            lowest = torch.where(top, ids, logits.shape[1]).amin(1)
            return differing(argmax(logits), lowest), 0.0

        checks = {"add_norm": norm, "gated_mul": gate, "embed": embed, "rope": rope, "argmax": best}
        for name, run in checks.items():
            part.check(f"{name} {kind}", run)


FAMILIES: dict[str, Callable[[Part], None]] = {
    **{kind.name: kind_check(kind) for kind in KINDS if kind.cases},
    "attention": attention,
    "fused": fused,
}
"""Checks by kind of weight and by folder of kernels, each run in a separate process."""
