"""W4A16 product for few rows: tensor cores on raw codes, scales applied to group sums.

Maths, per group g of a weight row n (S_g: sum of x over the group):

    y[m, n] = sum_g s[g, n] * (sum_k x[m, k] * q[n, k] - z[g, n] * S_g[m])        zero form
    y[m, n] = sum_g s[g, n] * sum_k x[m, k] * q[n, k] + o[g, n] * S_g[m]          additive form

Codes enter the product as B_j + q, exact floats made by one logic instruction (kernel_parts).
A second, small product of x with constant rows gives -sum_j B_j S_j, which is the start value of
the group's accumulator, and S_g itself; x is in registers then, so no producer has to sum it.

Shapes: x [M, K] fp16 or bf16, row-major; units and entries as in layout.py; out [M, N]; fp32
accumulators. Weights are the left operand: tokens fill the 8-wide side of the fragment.
Grid: (row tiles, splits of K, token tiles). Ragged: M (rows beyond M repeat row 0 and are not
stored), N (rows are padded in the packer), K (x reads as zero beyond K). Deterministic: fixed
order within a split, splits added in order.
"""

# Device code: a type checker takes constexpr parameters, and names bound under one, for mistakes.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from ..device.dependent import await_previous, fetch_lines, release_next
from ..device.parts import (
    dot,
    finish,
    first_lines,
    plane_bias,
    planes,
    repeat_rows,
    table_matrix,
    table_offsets,
    table_values,
    unit_matrix,
    unit_offsets,
)

_RUNTIME = ["M", "N", "atoms", "tiles_k", "tiles_split", "splits", "k_units", "per_expert"]


@triton.jit
def _group(
    acc,
    entries,
    p,
    x,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    SHIFT: tl.constexpr,
    ADDITIVE: tl.constexpr,
    ROWS: tl.constexpr,
    PTX: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Add one group, planes FIRST .. FIRST + COUNT - 1 of a slice, to ``acc`` [BN, BM].

    ``SHIFT`` is a zero point common to the whole matrix, taken off with the bias, or -1 when
    each entry has its own offset.
    """
    BN: tl.constexpr = acc.shape[0]
    BM: tl.constexpr = acc.shape[1]
    DTYPE: tl.constexpr = x[0].dtype
    FP16: tl.constexpr = tl.float16 == DTYPE
    # Sums of x over the planes of either bias, in all rows alike: what the biases added.
    COARSE: tl.constexpr = plane_bias(FP16, 0) + (SHIFT if SHIFT > 0 else 0)
    FINE: tl.constexpr = plane_bias(FP16, 1) + (SHIFT if SHIFT > 0 else 0)
    ones = tl.full((ROWS, 32), 1.0, tl.float32).to(DTYPE)
    coarse = tl.zeros((ROWS, BM), tl.float32)
    fine = tl.zeros((ROWS, BM), tl.float32)
    for j in tl.static_range(FIRST, FIRST + COUNT):
        if plane_bias(FP16, j) == plane_bias(FP16, 0):
            coarse = dot(ones, x[j], coarse, INTERPRET)
        else:
            fine = dot(ones, x[j], fine, INTERPRET)
    part = repeat_rows(tl.fma(coarse, -COARSE, fine * -FINE), BN)
    for j in tl.static_range(FIRST, FIRST + COUNT):
        part = dot(p[j], x[j], part, INTERPRET)
    s, o = table_values(entries, PTX)
    s = table_matrix(s, BN, BM)
    if SHIFT < 0:
        o = table_matrix(o, BN, BM)
        if ADDITIVE:
            acc = tl.fma(repeat_rows(coarse + fine, BN), o, acc)
        else:
            part = tl.fma(repeat_rows(-coarse - fine, BN), o, part)
    return tl.fma(part, s, acc)


@triton.jit(do_not_specialize=_RUNTIME)
def late_kernel(
    x_ptr,
    units_ptr,
    table_ptr,
    out_ptr,
    bias_ptr,
    residual_ptr,
    work_ptr,
    count_ptr,
    experts_ptr,
    M,
    N,
    atoms,
    tiles_k,
    tiles_split,
    splits,
    k_units,
    per_expert,
    BM: tl.constexpr,
    BN: tl.constexpr,
    GROUP: tl.constexpr,
    SHIFT: tl.constexpr,
    ADDITIVE: tl.constexpr,
    EVEN_K: tl.constexpr,
    K_UNIT: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    GROUPED: tl.constexpr,
    EARLY: tl.constexpr,
    PTX: tl.constexpr,
    INTERPRET: tl.constexpr,
    WARPS: tl.constexpr,
):
    """One [BN, BM] tile of one split; see the module.

    K = k_units * K_UNIT (K_UNIT 8 keeps rows of x 16-byte aligned). GROUP: 32, 64, a multiple
    of 128, or 0 for one group over all of K.

    GROUPED: the weight holds the rows of all experts, one after the other, and ``experts`` says
    whose rows of x each run of ``per_expert`` tiles has, -1 for nobody's.

    EARLY, not with GROUPED: it may start before the kernel that makes x ends, and brings the first
    slices of its weights near meanwhile.
    """
    release_next(EARLY)
    tile_n = tl.program_id(0)
    split = tl.program_id(1)
    tile_m = tl.program_id(2)
    tile_w = tile_n
    if GROUPED:
        expert = tl.load(experts_ptr + tile_m // per_expert)
        if expert < 0:
            return
        tile_w += expert * tl.num_programs(0)
        if BIAS:
            bias_ptr += expert.to(tl.int64) * (2 * N if GATED else N)
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    ROWS: tl.constexpr = 16 * WARPS
    K = k_units * K_UNIT
    first = split * tiles_split
    stop = tl.minimum(first + tiles_split, tiles_k)

    m = tile_m * BM + tl.arange(0, BM)
    m = tl.where(m < M, m, tile_m * BM)
    k = tl.arange(0, 32)
    x_ptrs = x_ptr + first * 128 + (m.to(tl.int64) * K)[None, :] + k[:, None]
    start = (tile_w * (BN // 64)).to(tl.int64) * tiles_k + first
    unit_ptrs = units_ptr + start * 2048 + unit_offsets(tiles_k, BN)
    if EARLY:
        fetch_lines(units_ptr + start * 2048 + first_lines(tiles_k, stop - first, BN))
    await_previous(EARLY)

    # One row of entries per group; the table ends with a spare row for the load ahead.
    PER_SLICE: tl.constexpr = 128 // GROUP if GROUP > 0 and GROUP < 128 else 1
    SLICES: tl.constexpr = GROUP // 128 if GROUP >= 128 else 1
    width = atoms * 64
    table_ptrs = table_ptr + tile_w.to(tl.int64) * BN + table_offsets(BN)
    if GROUP > 0:
        table_ptrs += first * PER_SLICE // SLICES * width

    # Entries are loaded one slice ahead, unless four wide ones a row would not fit the registers.
    AHEAD: tl.constexpr = PER_SLICE < 4 or table_ptr.dtype.element_ty == tl.int32
    acc = tl.zeros((BN, BM), tl.float32)
    if AHEAD:
        e0 = tl.load(table_ptrs)
        if PER_SLICE > 1:
            e1 = tl.load(table_ptrs + width)
        if PER_SLICE > 2:
            e2 = tl.load(table_ptrs + 2 * width)
            e3 = tl.load(table_ptrs + 3 * width)
    for i in range(first, stop):
        if not AHEAD:
            e0 = tl.load(table_ptrs)
            e1 = tl.load(table_ptrs + width)
            e2 = tl.load(table_ptrs + 2 * width)
            e3 = tl.load(table_ptrs + 3 * width)
        n0 = e0
        n1 = e1 if PER_SLICE > 1 else e0
        n2 = e2 if PER_SLICE > 2 else e0
        n3 = e3 if PER_SLICE > 2 else e0
        if GROUP > 0:
            if SLICES == 1:
                table_ptrs += width * PER_SLICE
            else:
                table_ptrs += tl.where((i + 1) % SLICES == 0, width, 0)
            if AHEAD:
                e0 = tl.load(table_ptrs)
                if PER_SLICE > 1:
                    e1 = tl.load(table_ptrs + width)
                if PER_SLICE > 2:
                    e2 = tl.load(table_ptrs + 2 * width)
                    e3 = tl.load(table_ptrs + 3 * width)
        flat = tl.load(unit_ptrs, eviction_policy="evict_first")
        if EVEN_K:
            x0 = tl.load(x_ptrs)
            x1 = tl.load(x_ptrs + 32)
            x2 = tl.load(x_ptrs + 64)
            x3 = tl.load(x_ptrs + 96)
        else:
            # Constant over K_UNIT elements, so that a vector load has one predicate.
            left = K - i * 128
            x0 = tl.load(x_ptrs, mask=(k < left)[:, None], other=0.0)
            x1 = tl.load(x_ptrs + 32, mask=(k + 32 < left)[:, None], other=0.0)
            x2 = tl.load(x_ptrs + 64, mask=(k + 64 < left)[:, None], other=0.0)
            x3 = tl.load(x_ptrs + 96, mask=(k + 96 < left)[:, None], other=0.0)
        p = planes(unit_matrix(flat, BN), DTYPE, PTX)
        n = (n0, n1, n2, n3)
        for g in tl.static_range(PER_SLICE):
            acc = _group(
                acc,
                n[g],
                p,
                (x0, x1, x2, x3),
                g * (4 // PER_SLICE),
                4 // PER_SLICE,
                SHIFT,
                ADDITIVE,
                ROWS,
                PTX,
                INTERPRET,
            )
        x_ptrs += 128
        unit_ptrs += 2048
    finish(
        acc,
        out_ptr,
        bias_ptr,
        residual_ptr,
        work_ptr,
        count_ptr,
        tile_m,
        tile_n,
        split,
        splits,
        M,
        N,
        BIAS,
        RESIDUAL,
        GATED,
    )
