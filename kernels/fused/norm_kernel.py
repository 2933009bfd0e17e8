"""Residual add or embedding look-up, RMSNorm, group sums and 8-bit codes of one row.

``h = x + residual`` (or ``h = table[id] * scale``), rounded to the dtype of the stored residual;
``y = h / sqrt(mean(h**2) + eps) * w``, rounded after the division and after the product, or once
with Gemma's ``1 + w``; ``sums[g]`` = float32 sum of group g of the rounded ``y``;
codes of the rounded ``y`` as ``device.rounding`` makes them, zeros up to a multiple of 16.

Grid (rows,): one program holds a whole row of D <= BLOCK values. Any D; masks fill the tile. x,
residual, table fp16, bf16 or fp32; w any float; sums and scales float32. Deterministic.
"""

# Device code: triton's stubs do not know that constants become constexprs and kernels tensors.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportAttributeAccessIssue=false, reportOptionalOperand=false

from __future__ import annotations

import triton
import triton.language as tl

from ..device.dependent import await_previous, release_next
from ..device.rounding import codes_of, narrow, row_scale
from .row import store_sums


@triton.jit
def normalize(
    h, w_ptr, columns, inside, eps, D: tl.constexpr, DTYPE: tl.constexpr, PLUS_ONE: tl.constexpr
):
    """RMSNorm of a row in float32, rounded as ``DTYPE`` would be."""
    w = tl.load(w_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(h * h, 0) * (1.0 / D)
    y = h * tl.div_rn(tl.full((), 1.0, tl.float32), tl.sqrt_rn((mean + eps).to(tl.float32)))
    plain = narrow(y, DTYPE).to(tl.float32) * narrow(w, DTYPE).to(tl.float32)
    y = y * (1.0 + w) if PLUS_ONE else plain
    return narrow(y, DTYPE).to(tl.float32)


@triton.jit
def put(
    y,
    row,
    columns,
    inside,
    out_ptr,
    sums_ptr,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    STORE: tl.constexpr,
    SUMS: tl.constexpr,
):
    """Store a normalised row and the sums of its groups, where they are wanted."""
    groups: tl.constexpr = (D + GROUP - 1) // GROUP
    if STORE:
        tl.store(out_ptr + row * D + columns, narrow(y, out_ptr.dtype.element_ty), mask=inside)
    if SUMS:
        store_sums(sums_ptr + row * groups, y, groups, GROUP)


@triton.jit
def norm_kernel(
    x_ptr,
    residual_ptr,
    rows_ptr,
    w_ptr,
    out_ptr,
    sums_ptr,
    codes_ptr,
    scales_ptr,
    zeros_ptr,
    eps,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    ADD: tl.constexpr,
    PICK: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    STORE: tl.constexpr,
    SUMS: tl.constexpr,
    QUANT: tl.constexpr,
    STATIC: tl.constexpr,
    HAS_Z: tl.constexpr,
    TOP: tl.constexpr,
    EARLY: tl.constexpr,
):
    """ADD: ``residual += x`` in place first. PICK: program i takes row ``rows[i]``."""
    release_next(EARLY)
    await_previous(EARLY)
    row = tl.program_id(0).to(tl.int64)
    source = tl.load(rows_ptr + row).to(tl.int64) if PICK else row
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    h = tl.load(x_ptr + source * D + columns, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        r = tl.load(residual_ptr + source * D + columns, mask=inside, other=0.0)
        total = narrow(h + r.to(tl.float32), r.dtype)
        tl.store(residual_ptr + source * D + columns, total, mask=inside)
        h = total.to(tl.float32)
    y = normalize(h, w_ptr, columns, inside, eps, D, out_ptr.dtype.element_ty, PLUS_ONE)
    put(y, row, columns, inside, out_ptr, sums_ptr, D, GROUP, STORE, SUMS)
    if QUANT:
        PADDED: tl.constexpr = (D + 15) // 16 * 16
        high = tl.max(y if HAS_Z else tl.abs(y), 0)
        poison = tl.sum(y * 0.0, 0)
        scale, zero = row_scale(
            high, tl.min(y, 0), poison, scales_ptr, zeros_ptr, row, STATIC, HAS_Z, TOP
        )
        codes = codes_of(y, scale, zero, -128.0, codes_ptr.dtype.element_ty)
        tl.store(codes_ptr + row * PADDED + columns, codes, mask=columns < PADDED)


@triton.jit(do_not_specialize=["vocabulary"])
def embed_norm_kernel(
    ids_ptr,
    table_ptr,
    residual_ptr,
    w_ptr,
    out_ptr,
    sums_ptr,
    vocabulary,
    scale,
    eps,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    SCALED: tl.constexpr,
    NORM: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    STORE: tl.constexpr,
    SUMS: tl.constexpr,
):
    """``residual[t] = table[ids[t]]`` (zeros for an id outside of the table), then its norm."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(ids_ptr + row).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    there = tl.where((token >= 0) & (token < vocabulary), D, 0)
    h = tl.load(table_ptr + token * D + columns, mask=columns < there, other=0.0)
    if SCALED:
        h = narrow(h.to(tl.float32) * scale, h.dtype)
    h = narrow(h.to(tl.float32), residual_ptr.dtype.element_ty)
    tl.store(residual_ptr + row * D + columns, h, mask=inside)
    if NORM:
        h = h.to(tl.float32)
        y = normalize(h, w_ptr, columns, inside, eps, D, out_ptr.dtype.element_ty, PLUS_ONE)
        put(y, row, columns, inside, out_ptr, sums_ptr, D, GROUP, STORE, SUMS)
