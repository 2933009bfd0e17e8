"""Product of fp16 or bf16 activations with 8-bit or codebook weights, and their dequantization.

Maths, per group g of a weight row n, with v the decoded codes (integers, float8, table entries):

    y[m, n] = sum_g s[g, n] * sum_k x[m, k] * v[n, k] + o[g, n] * sum_k x[m, k]

Integers are exact in either type, and scales and offsets multiply fp32 sums. Offsets are optional.
Scales of one byte become fp32 on the way; a factor of each row that e4m3 ones have comes last.

Weights are the left operand of the tensor core and stay in registers: words are stored in the
order in which lanes own them (:mod:`.layout`). x [M, K] row-major, out [M, N]; M, N and K may
be ragged (rows of the weight are padded in the packer). Deterministic: fixed order of sums.
Grid: (row tiles, splits of K, token tiles).
"""

# Device code: a type checker takes constexpr parameters, and names bound under one, for mistakes.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from ..device.parts import (
    dot,
    finish,
    repeat_rows,
    table_matrix,
    table_offsets,
    word_offsets,
)
from .decode import byte_planes, byte_scales, table_planes

_RUNTIME = ["M", "N", "atoms", "tiles_k", "tiles_split", "splits", "k_units", "per_expert"]


@triton.jit
def word_matrix(flat, BN: tl.constexpr):
    """Words as loaded, [BN * 16], to the matrix [BN, 16] of rows and pairs of k.

    An atom stores, slowest first: row bit 3, row bits 5-4, row bits 2-0, quad lane t, i; the pair
    is 4 i + t.
    """
    x = flat.reshape(BN // 64, 2, 4, 8, 4, 4)
    return x.permute(0, 2, 1, 3, 5, 4).reshape(BN, 16)


@triton.jit
def word_halves(flat, BN: tl.constexpr):
    """:func:`word_matrix` in two matrices [BN, 8]: k 0 to 15 of each plane, and k 16 to 31."""
    x = flat.reshape(BN // 64, 2, 4, 8, 4, 2, 2)
    low, high = tl.split(x.permute(0, 2, 1, 3, 6, 4, 5))
    return low.reshape(BN, 8), high.reshape(BN, 8)


@triton.jit
def load_x(x_ptrs, BEGIN: tl.constexpr, k, left, EVEN_K: tl.constexpr):
    """x of one plane, or half of one: rows BEGIN + k of a slice."""
    if EVEN_K:
        return tl.load(x_ptrs + BEGIN)
    else:
        return tl.load(x_ptrs + BEGIN, mask=(k + BEGIN < left)[:, None], other=0.0)


@triton.jit
def load_lut(lut_ptr, row, BN: tl.constexpr, LUT_ROWS: tl.constexpr, PTX: tl.constexpr):
    """(eight registers of a table, pointers to entry 0) for ``BN`` rows from ``row`` on."""
    SIZE: tl.constexpr = 8 if PTX else 16
    at = lut_ptr
    if LUT_ROWS:
        at += ((row + tl.arange(0, BN)) * SIZE)[:, None]
    if PTX:
        lut = (
            tl.load(at),
            tl.load(at + 1),
            tl.load(at + 2),
            tl.load(at + 3),
            tl.load(at + 4),
            tl.load(at + 5),
            tl.load(at + 6),
            tl.load(at + 7),
        )
    else:
        lut = (0, 0, 0, 0, 0, 0, 0, 0)
    return lut, at


@triton.jit
def add_group(
    acc,
    s,
    o,
    p,
    x,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Add parts FIRST .. FIRST + COUNT - 1 of k, which share a scale, to ``acc`` [BN, BM]."""
    BN: tl.constexpr = acc.shape[0]
    BM: tl.constexpr = acc.shape[1]
    part = tl.zeros((BN, BM), tl.float32)
    for j in tl.static_range(FIRST, FIRST + COUNT):
        part = dot(p[j], x[j], part, INTERPRET)
    if OFFSET:
        ones = tl.full((ROWS, x[0].shape[0]), 1.0, tl.float32).to(x[0].dtype)
        total = tl.zeros((ROWS, BM), tl.float32)
        for j in tl.static_range(FIRST, FIRST + COUNT):
            total = dot(ones, x[j], total, INTERPRET)
        o_matrix = table_matrix(o.to(tl.float32), BN, BM)
        acc = tl.fma(repeat_rows(total, BN), o_matrix, acc)
    return tl.fma(part, table_matrix(s.to(tl.float32), BN, BM), acc)


@triton.jit(do_not_specialize=_RUNTIME)
def product_kernel(
    x_ptr,
    words_ptr,
    scale_ptr,
    offset_ptr,
    lut_ptr,
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
    PLANES: tl.constexpr,
    GROUP: tl.constexpr,
    OFFSET: tl.constexpr,
    SCALE: tl.constexpr,
    FLOAT8: tl.constexpr,
    LUT_ROWS: tl.constexpr,
    EVEN_K: tl.constexpr,
    K_UNIT: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GROUPED: tl.constexpr,
    PTX: tl.constexpr,
    INTERPRET: tl.constexpr,
    WARPS: tl.constexpr,
):
    """One [BN, BM] tile of one split. PLANES 2: int8, or float8_e4m3fn with FLOAT8; 4: a
    16-entry table.

    GROUP: 32, 64, a multiple of the slice (32 * PLANES), or 0 = one scale a row; also 16, for
    which planes are taken in halves: with PLANES 2, and with 4 where SCALE says so.
    SCALE: "" for fp16 or fp32; ``e8m0`` and ``e4m3``: groups of 32 or 16 whose scales are bytes,
    four to a word, and offset_ptr has a factor of each row for e4m3.
    K = k_units * K_UNIT; K_UNIT 8 promises 16-byte aligned rows of x.

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
            bias_ptr += expert.to(tl.int64) * N
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    ROWS: tl.constexpr = 16 * WARPS
    SLICE: tl.constexpr = 32 * PLANES
    K = k_units * K_UNIT
    first = split * tiles_split
    stop = tl.minimum(first + tiles_split, tiles_k)

    m = tile_m * BM + tl.arange(0, BM)
    m = tl.where(m < M, m, tile_m * BM)
    STEP: tl.constexpr = 16 if GROUP == 16 else 32
    PARTS: tl.constexpr = SLICE // STEP
    k = tl.arange(0, STEP)
    x_ptrs = x_ptr + first * SLICE + (m.to(tl.int64) * K)[None, :] + k[:, None]
    start = (tile_w * (BN // 64)).to(tl.int64) * tiles_k + first
    word_ptrs = words_ptr + start * 1024 + word_offsets(tiles_k, BN)

    # Scales are loaded one slice ahead; the table ends with spare groups for that.
    PER_SLICE: tl.constexpr = SLICE // GROUP if GROUP > 0 and GROUP < SLICE else 1
    ENTRIES: tl.constexpr = PER_SLICE // 4 if SCALE != "" else PER_SLICE
    SLICES: tl.constexpr = GROUP // SLICE if GROUP >= SLICE else 1
    width = atoms * 64
    at = tile_w.to(tl.int64) * BN + table_offsets(BN)
    if GROUP > 0:
        at += (first * ENTRIES // SLICES).to(tl.int64) * width
    s_ptrs = scale_ptr + at
    o_ptrs = offset_ptr + at
    LAST: tl.constexpr = GROUP == 0 and not OFFSET  # one scale, applied after the loop
    AHEAD: tl.constexpr = ENTRIES < 4 and not LAST
    if AHEAD:
        s0 = tl.load(s_ptrs)
        o0 = tl.load(o_ptrs) if OFFSET else s0
        if ENTRIES > 1:
            s1 = tl.load(s_ptrs + width)
            o1 = tl.load(o_ptrs + width) if OFFSET else s1
    if PLANES == 4:
        lut, lut_ptrs = load_lut(lut_ptr, tile_w * BN, BN, LUT_ROWS, PTX)

    acc = tl.zeros((BN, BM), tl.float32)
    for i in range(first, stop):
        if AHEAD:
            s = (s0, s1, s0, s0) if ENTRIES > 1 else (s0, s0, s0, s0)
            o = (o0, o1, o0, o0) if ENTRIES > 1 else (o0, o0, o0, o0)
        elif not LAST:
            s = (
                tl.load(s_ptrs),
                tl.load(s_ptrs + width),
                tl.load(s_ptrs + 2 * width),
                tl.load(s_ptrs + 3 * width),
            )
            o = s
            if OFFSET:
                o = (
                    tl.load(o_ptrs),
                    tl.load(o_ptrs + width),
                    tl.load(o_ptrs + 2 * width),
                    tl.load(o_ptrs + 3 * width),
                )
        if GROUP > 0:
            step = width * ENTRIES
            if SLICES > 1:
                step = tl.where((i + 1) % SLICES == 0, width, 0)
            s_ptrs += step
            o_ptrs += step
            if AHEAD:
                s0 = tl.load(s_ptrs)
                o0 = tl.load(o_ptrs) if OFFSET else s0
                if ENTRIES > 1:
                    s1 = tl.load(s_ptrs + width)
                    o1 = tl.load(o_ptrs + width) if OFFSET else s1
        flat = tl.load(word_ptrs, eviction_policy="evict_first")
        left = K - i * SLICE
        x0 = load_x(x_ptrs, 0, k, left, EVEN_K)
        x1 = load_x(x_ptrs, STEP, k, left, EVEN_K)
        if PARTS >= 4:
            x2 = load_x(x_ptrs, 2 * STEP, k, left, EVEN_K)
            x3 = load_x(x_ptrs, 3 * STEP, k, left, EVEN_K)
            x = (x0, x1, x2, x3)
        else:
            x = (x0, x1)
        if PARTS == 8:
            x4 = load_x(x_ptrs, 4 * STEP, k, left, EVEN_K)
            x5 = load_x(x_ptrs, 5 * STEP, k, left, EVEN_K)
            x6 = load_x(x_ptrs, 6 * STEP, k, left, EVEN_K)
            x7 = load_x(x_ptrs, 7 * STEP, k, left, EVEN_K)
            x = (x0, x1, x2, x3, x4, x5, x6, x7)
        if PARTS == 8:
            low, high = word_halves(flat, BN)
            l0, l1, l2, l3 = table_planes(low, lut, lut_ptrs, DTYPE, PTX)
            h0, h1, h2, h3 = table_planes(high, lut, lut_ptrs, DTYPE, PTX)
            p = (l0, h0, l1, h1, l2, h2, l3, h3)
        elif PLANES == 4:
            p = table_planes(word_matrix(flat, BN), lut, lut_ptrs, DTYPE, PTX)
        elif GROUP == 16:
            low, high = word_halves(flat, BN)
            l0, l1 = byte_planes(low, DTYPE, FLOAT8, PTX)
            h0, h1 = byte_planes(high, DTYPE, FLOAT8, PTX)
            p = (l0, h0, l1, h1)
        else:
            p = byte_planes(word_matrix(flat, BN), DTYPE, FLOAT8, PTX)
        if LAST:
            for j in tl.static_range(PARTS):
                acc = dot(p[j], x[j], acc, INTERPRET)
        else:
            for g in tl.static_range(PER_SLICE):
                acc = add_group(
                    acc,
                    byte_scales(s[g // 4], g % 4, SCALE) if SCALE != "" else s[g],
                    o[g // 4 if SCALE != "" else g],
                    p,
                    x,
                    g * (PARTS // PER_SLICE),
                    PARTS // PER_SLICE,
                    OFFSET,
                    ROWS,
                    INTERPRET,
                )
        x_ptrs += SLICE
        word_ptrs += 1024
    if LAST:
        acc *= table_matrix(tl.load(s_ptrs).to(tl.float32), BN, BM)
    if SCALE == "e4m3":
        factors = tl.load(offset_ptr + tile_w * BN + table_offsets(BN))
        acc *= table_matrix(factors, BN, BM)
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
        False,
    )


@triton.jit(do_not_specialize=["first_atom", "atoms", "tiles_k", "k_units"])
def dequantize_kernel(
    words_ptr,
    scale_ptr,
    offset_ptr,
    lut_ptr,
    out_ptr,
    first_atom,
    atoms,
    tiles_k,
    k_units,
    PLANES: tl.constexpr,
    GROUP: tl.constexpr,
    OFFSET: tl.constexpr,
    SCALE: tl.constexpr,
    FLOAT8: tl.constexpr,
    LUT_ROWS: tl.constexpr,
    K_UNIT: tl.constexpr,
    PTX: tl.constexpr,
):
    """``w = s * v + o`` in fp32, rounded once, into out [rows, K].

    Grid: (atoms of 64 rows from ``first_atom`` on, slices of K).
    """
    atom = tl.program_id(0)
    i = tl.program_id(1)
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    SLICE: tl.constexpr = 32 * PLANES
    PER_SLICE: tl.constexpr = SLICE // GROUP if GROUP > 0 and GROUP < SLICE else 1
    K = k_units * K_UNIT
    from_atom = first_atom + atom
    at = words_ptr + (from_atom.to(tl.int64) * tiles_k + i) * 1024
    words = word_matrix(tl.load(at + tl.arange(0, 1024)), 64)
    if PLANES == 4:
        lut, lut_ptrs = load_lut(lut_ptr, from_atom * 64, 64, LUT_ROWS, PTX)
        p = table_planes(words, lut, lut_ptrs, DTYPE, PTX)
    else:
        p = byte_planes(words, DTYPE, FLOAT8, PTX)
    row = tl.arange(0, 64)
    e = tl.arange(0, 32)
    # Entries of an atom are stored as row bits 5, 4, 2-0, 3.
    entry = from_atom * 64 + row // 16 * 16 + row % 8 * 2 + row // 8 % 2
    out_row = (atom * 64 + row).to(tl.int64) * K
    for j in tl.static_range(PLANES):
        group = i * 0 + e * 0
        if GROUP > 0:
            group = i * SLICE // GROUP + e * 0
            if GROUP < SLICE:
                group = i * PER_SLICE + (j * 32 + (e if GROUP == 16 else e * 0)) // GROUP
        where = group.to(tl.int64)[None, :] * (atoms * 64) + entry[:, None]
        if SCALE != "":
            # Four groups share a word.
            where = (group // 4).to(tl.int64)[None, :] * (atoms * 64) + entry[:, None]
            s = byte_scales(tl.load(scale_ptr + where), (group % 4)[None, :], SCALE)
        else:
            s = tl.load(scale_ptr + where).to(tl.float32)
        if SCALE == "e4m3":
            s *= tl.load(offset_ptr + entry)[:, None]
        w = p[j].to(tl.float32) * s
        if OFFSET:
            w += tl.load(offset_ptr + where).to(tl.float32)
        k = i * SLICE + 32 * j + e
        tl.store(out_ptr + out_row[:, None] + k[None, :], w.to(DTYPE), mask=(k < K)[None, :])
