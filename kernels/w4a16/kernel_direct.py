"""W4A16 with weights scaled in registers: the product for middle M, and dequantization for large M.

Maths: w[n, k] = s (q - z) or s q + o, rounded once to the activations' dtype, then
y = x @ w.T in fp32 accumulators. In fp16 with two fp16 per entry, q - z is an exact small
integer, so two half-precision instructions a pair give the same bits as float32 arithmetic.

Weights are the left operand and never leave the registers: on compute capability 9.0 this
becomes a warp-group product with a register operand, before it the ordinary tensor-core one.
Before each product warp groups fence their registers and shared memory, and wait for the last one,
so there two planes are one product of 64 k.
Shapes, layout and raggedness as in kernel_late. Deterministic.
"""

# Device code: a type checker takes constexpr parameters, and names bound under one, for mistakes.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from ..device import bits
from ..device.dependent import await_previous, fetch_lines, release_next
from ..device.parts import (
    dot,
    finish,
    first_lines,
    plane_bias,
    planes,
    table_matrix,
    table_offsets,
    table_values,
    unit_matrix,
    unit_offsets,
)

_RUNTIME = ["M", "N", "atoms", "tiles_k", "tiles_split", "splits", "k_units", "per_expert"]


@triton.jit
def scaled(
    p,
    entries,
    J: tl.constexpr,
    SHIFT: tl.constexpr,
    ADDITIVE: tl.constexpr,
    PTX: tl.constexpr,
):
    """Plane ``J`` [BN, 32] of biased codes to weights of the same dtype and shape.

    ``entries`` [BN * 4] as loaded through ``table_offsets``.
    """
    BN: tl.constexpr = p.shape[0]
    DTYPE: tl.constexpr = p.dtype
    FP16: tl.constexpr = DTYPE == tl.float16  # noqa: SIM300
    HALVES: tl.constexpr = entries.dtype == tl.int32
    BIAS: tl.constexpr = plane_bias(FP16, J)
    if FP16 and HALVES and not ADDITIVE:
        s, z = bits.halves(entries, tl.float16)
        if SHIFT < 0:
            # Whole numbers below 2048, so the sum and the difference are exact in fp16.
            d = p - table_matrix(z + BIAS, BN, 32)
        else:
            d = p - tl.full((1, 1), BIAS + SHIFT, DTYPE)
        w = d * table_matrix(s, BN, 32)
    else:
        s, o = table_values(entries, PTX)
        s = table_matrix(s, BN, 32)
        # Biased codes are whole numbers below 512: every difference here is exact.
        f = p.to(tl.float32)
        if SHIFT >= 0:
            w = ((f - (BIAS + SHIFT)) * s).to(DTYPE)
        elif ADDITIVE:
            w = tl.fma(f - BIAS, s, table_matrix(o, BN, 32)).to(DTYPE)
        else:
            w = ((f - table_matrix(o + BIAS, BN, 32)) * s).to(DTYPE)
    return w


@triton.jit(do_not_specialize=_RUNTIME)
def direct_kernel(
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
    PLANES: tl.constexpr,
    PTX: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """One [BN, BM] tile of one split. Grid: (row tiles, splits of K, token tiles).

    PLANES: planes of codes that one product takes, 1 or 2.

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
    K = k_units * K_UNIT
    first = split * tiles_split
    stop = tl.minimum(first + tiles_split, tiles_k)

    m = tile_m * BM + tl.arange(0, BM)
    m = tl.where(m < M, m, tile_m * BM)
    k = tl.arange(0, 32 * PLANES)
    x_ptrs = x_ptr + first * 128 + (m.to(tl.int64) * K)[None, :] + k[:, None]
    start = (tile_w * (BN // 64)).to(tl.int64) * tiles_k + first
    unit_ptrs = units_ptr + start * 2048 + unit_offsets(tiles_k, BN)
    if EARLY:
        fetch_lines(units_ptr + start * 2048 + first_lines(tiles_k, stop - first, BN))
    await_previous(EARLY)

    PER_SLICE: tl.constexpr = 128 // GROUP if GROUP > 0 and GROUP < 128 else 1
    SLICES: tl.constexpr = GROUP // 128 if GROUP >= 128 else 1
    width = atoms * 64
    table_ptrs = table_ptr + tile_w.to(tl.int64) * BN + table_offsets(BN)

    acc = tl.zeros((BN, BM), tl.float32)
    for i in range(first, stop):
        flat = tl.load(unit_ptrs, eviction_policy="evict_first")
        left = K - i * 128
        p = planes(unit_matrix(flat, BN), DTYPE, PTX)
        row = i * PER_SLICE // SLICES if GROUP > 0 else 0
        row_ptrs = table_ptrs + row * width
        entries = tl.load(row_ptrs)
        for j in tl.static_range(4):
            if j > 0 and j * PER_SLICE % 4 == 0:
                entries = tl.load(row_ptrs + j * PER_SLICE // 4 * width)
            w = scaled(p[j], entries, j, SHIFT, ADDITIVE, PTX)
            if PLANES == 2 and j % 2 == 0:
                even = w
            else:
                begin = 32 * (j + 1 - PLANES)
                if EVEN_K:
                    x = tl.load(x_ptrs + begin)
                else:
                    x = tl.load(x_ptrs + begin, mask=(k + begin < left)[:, None], other=0.0)
                if PLANES == 2:
                    # Side by side along k. No element changes its lane.
                    w = tl.join(even, w).permute(0, 2, 1).reshape(BN, 64)
                acc = dot(w, x, acc, INTERPRET)
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


@triton.jit(do_not_specialize=["first_atom", "atoms", "tiles_k", "k_units"])
def dequantize_kernel(
    units_ptr,
    table_ptr,
    out_ptr,
    first_atom,
    atoms,
    tiles_k,
    k_units,
    GROUP: tl.constexpr,
    SHIFT: tl.constexpr,
    ADDITIVE: tl.constexpr,
    EVEN_K: tl.constexpr,
    K_UNIT: tl.constexpr,
    PTX: tl.constexpr,
):
    """Weights of 64 rows and one slice to ``out`` [rows, K]; rows in stored order.

    Grid: (atoms, slices). ``out`` starts at row 0 of ``first_atom``.
    """
    atom = tl.program_id(0)
    i = tl.program_id(1)
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    K = k_units * K_UNIT
    start = ((first_atom + atom).to(tl.int64) * tiles_k + i) * 2048
    flat = tl.load(units_ptr + start + tl.arange(0, 2048), eviction_policy="evict_first")
    p = planes(unit_matrix(flat, 64), DTYPE, PTX)

    PER_SLICE: tl.constexpr = 128 // GROUP if GROUP > 0 and GROUP < 128 else 1
    SLICES: tl.constexpr = GROUP // 128 if GROUP >= 128 else 1
    width = atoms * 64
    row_ptrs = table_ptr + (first_atom + atom) * 64 + table_offsets(64)
    if GROUP > 0:
        row_ptrs += i * PER_SLICE // SLICES * width
    entries = tl.load(row_ptrs)

    k = tl.arange(0, 32)
    rows = (atom * 64 + tl.arange(0, 64)).to(tl.int64)
    out_ptrs = out_ptr + (rows * K)[:, None] + i * 128 + k[None, :]
    for j in tl.static_range(4):
        if j > 0 and j * PER_SLICE % 4 == 0:
            entries = tl.load(row_ptrs + j * PER_SLICE // 4 * width)
        w = scaled(p[j], entries, j, SHIFT, ADDITIVE, PTX)
        if EVEN_K:
            tl.store(out_ptrs + 32 * j, w)
        else:
            tl.store(out_ptrs + 32 * j, w, mask=(i * 128 + k + 32 * j < K)[None, :])
