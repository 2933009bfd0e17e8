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
from ...kernels.codebook.layout import pack_codebook
from ...kernels.codebook.op import codebook_linear
from ...kernels.codebook.reference import dequantize as dequantize_codebook
from ...kernels.device import runtime
from ...kernels.device.workspace import Workspace
from ...kernels.formats.code_tables import NF4
from ...kernels.fused import embed_norm, gated_mul, rms_norm, rope_write_kv
from ...kernels.sampling import argmax
from ...kernels.w4a16.layout import pack_w4
from ...kernels.w4a16.op import w4a16_linear
from ...kernels.w4a16.reference import w4a16_linear_reference
from ...kernels.w8a8 import pack_w8a8, quantize_rows, w8a8_linear
from ...kernels.w8a8.reference import w8a8_linear as w8a8_reference
from ...kernels.w8a16 import pack_w8a16, w8a16_linear
from ...kernels.w8a16.reference import dequantize as dequantize_w8
from .part import Part

LIMITS = {torch.float16: 1e-2, torch.bfloat16: 8e-2}
ROWS = (1, 3, 8, 16, 17, 32, 64, 100, 128, 300, 1100)


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
    return ROWS, ((1024, 4096), (4096, 1024), (200, 1000))


def _linear(
    part: Part,
    label: str,
    run: Callable[..., Tensor],
    truth: Callable[[Tensor], Tensor],
    rows: tuple[int, ...],
    k: int,
    exact: bool,
) -> None:
    """Float64, and repeated, and across M for one weight, in both dtypes."""
    device = part.device
    for dtype in (torch.float16, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        x = torch.randn(max(rows), k, device=device).to(dtype)
        true = truth(x)
        for m in rows:
            if part.left < 0:
                return

            def far(m: int = m, x: Tensor = x, true: Tensor = true) -> tuple[float, float]:
                y = run(x[:m].contiguous(), poisoned(device), False)
                again = run(x[:m].contiguous(), poisoned(device), False)
                # A second run with other bits is as wrong as a number can be.
                error = float("inf") if differing(y, again) else distance(y, true[:m])
                return error, LIMITS[x.dtype]

            part.check(f"{label} {kind} M={m}", far)
        if not exact:
            continue

        def bits(x: Tensor = x) -> tuple[float, float]:
            whole = run(x, poisoned(device), True)
            parts = [run(x[:m].contiguous(), poisoned(device), True) for m in rows]
            return sum(differing(p, whole[: p.shape[0]]) for p in parts), 0.0

        part.check(f"{label} {kind} exact across M", bits)


def w4a16(part: Part) -> None:
    """W4A16: zero forms, groups, gated and plain, ragged sizes."""
    rows, sizes = _sizes(part)
    forms: tuple[tuple[str, int, bool], ...] = (
        ("none", 128, False),
        ("none", 128, True),
        ("int", 128, False),
        ("float", 64, False),
        ("int", 32, False),
        ("none", -1, False),
    )
    for zero, group, gated in forms[:2] if part.small else forms:
        for n, k in sizes:
            d = part.device
            codes = torch.randint(0, 16, (n, k), device=d, dtype=torch.uint8)
            groups = 1 if group == -1 else -(-k // group)
            scales = (torch.rand(n, groups, device=d) * 0.02 + 0.01).to(torch.float16)
            zeros: Any = None
            if zero == "int":
                zeros = torch.randint(0, 16, (n, groups), device=d).float()
            elif zero == "float":
                zeros = torch.randn(n, groups, device=d).to(torch.float16) * 0.1
            w = pack_w4(codes, scales, zeros, zero=zero, group=group, gated=gated)  # type: ignore[arg-type]
            gate: Any = "silu_mul" if gated else None

            def run(x: Tensor, space: Workspace, exact: bool, w=w, gate=gate) -> Tensor:
                return w4a16_linear(x, w, activation=gate, exact=exact, workspace=space)

            label = f"w4a16 {n}x{k} {zero} g{group}{' gated' if gated else ''}"
            _linear(part, label, run, lambda x, w=w: w4a16_linear_reference(x, w), rows, k, True)


def w8a16(part: Part) -> None:
    """W8A16: by channel and by group, with and without zero points."""
    rows, sizes = _sizes(part)
    for zero, group in (("none", -1),) if part.small else (("none", -1), ("int", 128)):
        for n, k in sizes:
            d = part.device
            codes = torch.randint(0, 256, (n, k), device=d, dtype=torch.uint8)
            groups = 1 if group == -1 else -(-k // group)
            scales = torch.rand(n, groups, device=d) * 0.001 + 0.001
            zeros = torch.full_like(scales, 120.0) if zero == "int" else None
            w = pack_w8a16(codes, scales, zeros, zero=zero, group=group)  # type: ignore[arg-type]
            dense = dequantize_w8(codes, scales, zeros, zero, group)  # type: ignore[arg-type]

            def run(x: Tensor, space: Workspace, exact: bool, w=w) -> Tensor:
                return w8a16_linear(x, w, exact=exact, workspace=space)

            label = f"w8a16 {n}x{k} {zero} g{group}"
            _linear(part, label, run, lambda x, t=dense: x.double() @ t.T, rows, k, True)


def codebook(part: Part) -> None:
    """Codebook weights: NF4 in blocks of 64."""
    rows, _ = _sizes(part)
    n, k = (128, 256) if part.small else (1024, 4096)
    codes = torch.randint(0, 16, (n, k), device=part.device, dtype=torch.uint8)
    scales = torch.rand(n * k // 64, device=part.device) * 0.1
    table = torch.tensor(NF4, device=part.device)
    w = pack_codebook(codes, scales, table)
    for dtype in (torch.float16, torch.bfloat16):
        dense = dequantize_codebook(codes, scales, table, 64, dtype)
        for m in rows:
            x = torch.randn(m, k, device=part.device).to(dtype)

            def far(x: Tensor = x, dense: Tensor = dense) -> tuple[float, float]:
                y = codebook_linear(x, w, workspace=poisoned(part.device))
                return distance(y, x.double() @ dense.T), LIMITS[x.dtype]

            part.check(f"codebook {n}x{k} {str(dtype)[6:]} M={m}", far)


def w8a8(part: Part) -> None:
    """W8A8 int8, symmetric and with zero points, and across M."""
    rows, sizes = _sizes(part)
    for n, k in sizes:
        d = part.device
        codes = torch.randint(-127, 128, (n, k), device=d, dtype=torch.int8)
        scales = torch.rand(n, device=d) * 0.001 + 0.001
        for dtype in (torch.float16, torch.bfloat16):
            w = pack_w8a8(codes, scales, dtype=dtype)
            for asymmetric in (False, True):
                x = torch.randn(max(rows), k, device=d).to(dtype)
                q, sx, zx = quantize_rows(x, asymmetric=asymmetric)
                whole = w8a8_reference(q[:, :k], sx, codes, scales, zx)

                def run(m: int, q=q, sx=sx, zx=zx, w=w) -> Tensor:
                    zero = None if zx is None else zx[:m]
                    return w8a8_linear(q[:m], sx[:m], w, zero)

                for m in rows:
                    part.check(
                        f"w8a8 {n}x{k} {str(dtype)[6:]} zero={asymmetric} M={m}",
                        lambda m=m, r=run, t=whole, y=dtype: (distance(r(m), t[:m]), LIMITS[y]),
                    )
                part.check(
                    f"w8a8 {n}x{k} {str(dtype)[6:]} zero={asymmetric} exact across M",
                    lambda r=run: (
                        sum(differing(r(m), r(max(rows))[:m]) for m in rows),
                        0.0,
                    ),
                )


def attention(part: Part) -> None:
    """Decode with splits, prefill with a cached prefix, and exact bits of a row alone."""
    d, page = part.device, 16 if part.small else 64
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
                    max_length=max(lengths), scale=scale, exact=exact,
                )  # fmt: skip

            def true(q=q, k=k, v=v, tables=tables, pos=pos, line=line, scale=scale) -> Tensor:
                return paged_attention(q.double(), k.double(), v.double(), tables, pos, line, scale)

            label = f"attention {heads}/{kv_heads} heads of {dim} {str(dtype)[6:]}"
            for exact in (False, True):
                part.check(
                    f"decode {label} exact={exact}",
                    lambda e=exact, f=decode, t=true, y=dtype: (
                        distance(f(e, slice(None)), t()), LIMITS[y]),
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
                return distance(y, paged_attention(*wide, tables, at, rows, scale)), LIMITS[dtype]

            part.check(f"prefill {label}", prefill)


def fused(part: Part) -> None:
    """Norms, gated activation, rotation with its KV write, argmax."""
    d = part.device
    rows, wide = (3, 128) if part.small else (300, 4096)
    for dtype in (torch.float16, torch.bfloat16):
        kind = str(dtype)[6:]
        x, r = (torch.randn(rows, wide, device=d).to(dtype) for _ in range(2))
        w = torch.rand(wide, device=d).to(dtype)
        limit = LIMITS[dtype]

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
    "w4a16": w4a16,
    "w8a8": w8a8,
    "attention": attention,
    "fused": fused,
    "w8a16": w8a16,
    "codebook": codebook,
}
"""Checks by kernel family, each of which runs in a process of its own."""
