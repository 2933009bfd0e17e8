"""W4A8 product: 4-bit codes by int8 inputs on tensor cores, scales applied to sums of integers.

Maths, for each piece p of at most 128 k that lies in a group g (formats.activations.piece_columns):

    t[m, n] = sum_k x[m, k] * q[n, k]             exact in int32; X_p[m] is the sum of x alone
    y[m, n] = fma(t - z[g, n] * X_p[m], s[g, n], y)                                zero form
    y[m, n] = fma(t, s[g, n], y), then fma(X_p[m], o[g, n], y)                     additive form

piece after piece, then ``y * d[m]`` with the scale of the token: the rule of
``kernels.reference.token_linear``, bit for bit where K is not split. Everything is 4 times as large
until the end, which no rounding notices: codes are used where they lie in a byte (codes.py).

X comes out of a small product of x with constant rows, in the same registers. Where x has many rows
(SIGNED) it costs less to take the zero points from the codes before the product.

Shapes: x int8 [M, slices * 128], 0 beyond K, in the order of the codes (device/column_order.py);
d float32 [M]; units and entries as in w4a16/layout.py; out [M, N]. Grid: (row tiles, splits of K,
token tiles). Ragged M (rows beyond it repeat one and are not stored) and N (the packer pads).
Splits are added in order.
"""

# Device code: a type checker takes constexpr parameters, and names bound under one, for mistakes.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from ..device.parts import (
    finish,
    repeat_rows,
    table_matrix,
    table_offsets,
    table_values,
    word_offsets,
)
from .codes import codes_apart, codes_together, less_zeros, zero_bytes


@triton.jit
def _add_piece(
    acc,
    s,
    o,
    codes,
    x,
    ones,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    SHIFT: tl.constexpr,
    ADDITIVE: tl.constexpr,
    SIGNED: tl.constexpr,
    PTX: tl.constexpr,
):
    """``acc`` [BN, BM] and a piece: COUNT matrices of codes from FIRST on."""
    BN: tl.constexpr = acc.shape[0]
    BM: tl.constexpr = acc.shape[1]
    part = tl.zeros((BN, BM), tl.int32)
    if not SIGNED:
        total = tl.zeros((ones.shape[0], BM), tl.int32)
        for j in tl.static_range(COUNT):
            total = tl.dot(ones, x[FIRST + j], total, out_dtype=tl.int32)
        if SHIFT > 0:
            part = repeat_rows(total, BN)
    for j in tl.static_range(COUNT):
        q = codes[FIRST + j]
        if SIGNED:
            if SHIFT >= 0:
                z = tl.full((BN, q.shape[1]), 4 * SHIFT, tl.int8)
            else:
                z = zero_bytes(o, BN, q.shape[1])
            q = less_zeros(q, z, PTX)
        part = tl.dot(q, x[FIRST + j], part, out_dtype=tl.int32)
    t = part.to(tl.float32)
    if not SIGNED and SHIFT < 0:
        o = table_matrix(o, BN, BM)
        sums = repeat_rows(total.to(tl.float32), BN)
        if not ADDITIVE:
            t = tl.fma(-sums, o, t)  # whole numbers below 2**24: exact
    acc = tl.fma(t, table_matrix(s, BN, BM), acc)
    if ADDITIVE:
        acc = tl.fma(sums, o, acc)
    return acc


@triton.jit(do_not_specialize=["M", "N", "atoms", "tiles_k", "tiles_split", "splits", "per_expert"])
def product_kernel(
    x_ptr,
    scales_ptr,
    words_ptr,
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
    per_expert,
    BM: tl.constexpr,
    BN: tl.constexpr,
    GROUP: tl.constexpr,
    SHIFT: tl.constexpr,
    ADDITIVE: tl.constexpr,
    SIGNED: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    GROUPED: tl.constexpr,
    PTX: tl.constexpr,
    WARPS: tl.constexpr,
):
    """One [BN, BM] tile of one split; see the module. GROUP: 32, 64, a multiple of 128, or 0.

    GROUPED: the weight holds the rows of all experts, one after the other, and ``experts`` says
    whose rows of x each run of ``per_expert`` tiles has, -1 for nobody's.
    """
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
    first = split * tiles_split
    stop = tl.minimum(first + tiles_split, tiles_k)

    PIECES: tl.constexpr = 128 // GROUP if GROUP > 0 and GROUP < 128 else 1
    SLICES: tl.constexpr = GROUP // 128 if GROUP >= 128 else 1
    # Matrices of codes of a slice, and their columns.
    MATRICES: tl.constexpr = 2 if PIECES == 1 else 4
    COUNT: tl.constexpr = MATRICES // PIECES
    WIDTH: tl.constexpr = 128 // MATRICES
    m = tile_m * BM + tl.arange(0, BM)
    m = tl.where(m < M, m, tile_m * BM)
    k = tl.arange(0, WIDTH)
    x_ptrs = x_ptr + first * 128 + (m.to(tl.int64) * tiles_k * 128)[None, :] + k[:, None]
    start = (tile_w * (BN // 64)).to(tl.int64) * tiles_k + first
    word_ptrs = words_ptr + start * 1024 + word_offsets(tiles_k, BN)

    # One row of entries per group; the table ends with a spare row for the load ahead.
    width = atoms * 64
    table_ptrs = table_ptr + tile_w.to(tl.int64) * BN + table_offsets(BN)
    if GROUP > 0:
        table_ptrs += first * PIECES // SLICES * width
    ones = tl.full((16 * WARPS, WIDTH), -4 * SHIFT if SHIFT > 0 else 4, tl.int8)
    acc = tl.zeros((BN, BM), tl.float32)
    e0 = tl.load(table_ptrs)
    if PIECES > 1:
        e1 = tl.load(table_ptrs + width)
    if PIECES > 2:
        e2 = tl.load(table_ptrs + 2 * width)
        e3 = tl.load(table_ptrs + 3 * width)
    for i in range(first, stop):
        s0, o0 = table_values(e0, PTX)
        s1, o1 = table_values(e1 if PIECES > 1 else e0, PTX)
        s2, o2 = table_values(e2 if PIECES > 2 else e0, PTX)
        s3, o3 = table_values(e3 if PIECES > 2 else e0, PTX)
        if GROUP > 0:
            if SLICES == 1:
                table_ptrs += width * PIECES
            else:
                table_ptrs += tl.where((i + 1) % SLICES == 0, width, 0)
            e0 = tl.load(table_ptrs)
            if PIECES > 1:
                e1 = tl.load(table_ptrs + width)
            if PIECES > 2:
                e2 = tl.load(table_ptrs + 2 * width)
                e3 = tl.load(table_ptrs + 3 * width)
        words = tl.load(word_ptrs, eviction_policy="evict_first")
        x0 = tl.load(x_ptrs)
        x1 = tl.load(x_ptrs + WIDTH)
        if MATRICES == 4:
            x2 = tl.load(x_ptrs + 2 * WIDTH)
            x3 = tl.load(x_ptrs + 3 * WIDTH)
            x = (x0, x1, x2, x3)
        else:
            x = (x0, x1)
        codes = codes_apart(words, PTX) if PIECES > 1 else codes_together(words, PTX)
        s = (s0, s1, s2, s3)
        o = (o0, o1, o2, o3)
        for p in tl.static_range(PIECES):
            acc = _add_piece(
                acc, s[p], o[p], codes, x, ones, p * COUNT, COUNT, SHIFT, ADDITIVE, SIGNED, PTX
            )
        x_ptrs += 128
        word_ptrs += 1024
    acc *= (tl.load(scales_ptr + m) * 0.25)[None, :]
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
