"""Device code that the W4A16 kernels share: planes of codes, scales, the end of a tile.

Words of a weight tile are read as 16-bit units. The unit of the pair (row n, element e of 32)
holds the codes of k = e, 32 + e, 64 + e and 96 + e of a 128-wide slice in its bits 2-5, 6-9,
10-13 and 14-15, 0-1: plane j is a [BN, 32] matrix for 32 consecutive k. See layout.py for the
order of the units, which is the order in which lanes of a tensor-core fragment own them.
"""

# Device code: a type checker takes constexpr parameters, and names bound under one, for mistakes.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from . import bits

# A code q becomes the float B + q by OR-ing its four bits into the mantissa of B, a power of
# two, where the lowest of the four weighs exactly 1. fp16 has 10 mantissa bits: four bits at
# bits 2-5 make B = 256, at bits 6-9 B = 16. bf16 has 7: bits 2-5 make B = 32. Units are stored
# so that two planes lie there as they are, and the other two after the bytes are swapped, which
# is one instruction for two units; bf16 shifts every second plane.


@triton.constexpr_function
def plane_bias(fp16: bool, j: int) -> float:
    """What plane ``j`` of :func:`planes` adds to each code."""
    if fp16:
        return 16.0 if j % 2 else 256.0
    return 32.0


@triton.constexpr_function
def _planes_asm(fp16: bool) -> str:
    logic = "lop3.b32 ${}, {}, {:#010x}, {:#010x}, 0xea;"  # 0xea: (a & b) | c
    if fp16:
        low, high = (0x003C003C, 0x5C005C00), (0x03C003C0, 0x4C004C00)
        return "\n".join(
            (
                "{ .reg .b32 b;",
                "prmt.b32 b, $4, $4, 0x2301;",
                logic.format(0, "$4", *low),
                logic.format(1, "$4", *high),
                logic.format(2, "b", *low),
                logic.format(3, "b", *high) + " }",
            )
        )
    low = (0x003C003C, 0x42004200)
    return "\n".join(
        (
            "{ .reg .b32 a, b, c;",
            "shr.u32 a, $4, 4;",
            "prmt.b32 b, $4, $4, 0x2301;",
            "shr.u32 c, b, 4;",
            logic.format(0, "$4", *low),
            logic.format(1, "a", *low),
            logic.format(2, "b", *low),
            logic.format(3, "c", *low) + " }",
        )
    )


@triton.jit
def planes(units, DTYPE: tl.constexpr, PTX: tl.constexpr):
    """Four planes of biased codes, ``plane_bias(j) + q``, as fp16 or bf16 of the units' shape.

    With PTX two units share a register; bits that a shift carries from one into the other fall
    outside the masks, so the result does not depend on which two were paired.
    """
    FP16: tl.constexpr = DTYPE == tl.float16  # noqa: SIM300
    if PTX:
        if FP16:
            return tl.inline_asm_elementwise(
                _planes_asm(True),
                constraints="=&r,=&r,=&r,=&r,r",
                args=[units],
                dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
                is_pure=True,
                pack=2,
            )
        else:
            return tl.inline_asm_elementwise(
                _planes_asm(False),
                constraints="=&r,=&r,=&r,=&r,r",
                args=[units],
                dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
                is_pure=True,
                pack=2,
            )
    swapped = (units << 8) | ((units >> 8) & 0xFF)
    if FP16:
        p0 = ((units & 0x003C) | 0x5C00).to(DTYPE, bitcast=True)
        p1 = ((units & 0x03C0) | 0x4C00).to(DTYPE, bitcast=True)
        p2 = ((swapped & 0x003C) | 0x5C00).to(DTYPE, bitcast=True)
        p3 = ((swapped & 0x03C0) | 0x4C00).to(DTYPE, bitcast=True)
    else:
        p0 = ((units & 0x003C) | 0x4200).to(DTYPE, bitcast=True)
        p1 = (((units >> 4) & 0x003C) | 0x4200).to(DTYPE, bitcast=True)
        p2 = ((swapped & 0x003C) | 0x4200).to(DTYPE, bitcast=True)
        p3 = (((swapped >> 4) & 0x003C) | 0x4200).to(DTYPE, bitcast=True)
    return p0, p1, p2, p3


@triton.jit
def unit_offsets(tiles_k, BN: tl.constexpr):
    """Offsets, in 16-bit units, of the first k slice of ``BN`` rows: int32 [BN * 32]."""
    f = tl.arange(0, BN * 32)
    return f // 2048 * (tiles_k * 2048) + f % 2048


@triton.jit
def first_lines(tiles_k, slices, BN: tl.constexpr):
    """Offsets of the lines of 128 bytes of the first four slices, or as many as there are."""
    f = tl.arange(0, BN // 64 * 128)
    inside = tl.minimum(f % 128, tl.maximum(slices * 32 - 1, 0))
    return f // 128 * (tiles_k * 2048) + inside * 64


@triton.jit
def word_offsets(tiles_k, BN: tl.constexpr):
    """Offsets, in words, of the first k slice of ``BN`` rows: int32 [BN * 16]."""
    f = tl.arange(0, BN * 16)
    return f // 1024 * (tiles_k * 1024) + f % 1024


@triton.jit
def unit_matrix(flat, BN: tl.constexpr):
    """Units as loaded, [BN * 32], to the matrix [BN, 32] of rows and elements.

    An atom stores, slowest first: row bit 3, row bits 5-4, row bits 2-0, quad lane t, i, half.
    Element e = 8 i + 2 t + half, so one lane's 16 bytes are its fragments of one row.
    """
    x = flat.reshape(BN // 64, 2, 4, 8, 4, 4, 2)
    return x.permute(0, 2, 1, 3, 5, 4, 6).reshape(BN, 32)


@triton.jit
def table_offsets(BN: tl.constexpr):
    """Offsets of the (scale, offset) entries of ``BN`` rows, each four times: int32 [BN * 4].

    Entries are stored per atom as row bits 5, 4, 2-0, 3. Four lanes of a fragment share a row:
    the repetition makes the order of this load the order of the accumulator, with no exchange.
    """
    f = tl.arange(0, BN * 4)
    return f // 8 * 2 + f % 2


@triton.jit
def table_matrix(entries, BN: tl.constexpr, BM: tl.constexpr):
    """Entries as loaded, [BN * 4], spread over the accumulator's shape [BN, BM]."""
    x = entries.reshape(BN // 64, 4, 8, 4, 2).permute(0, 1, 4, 2, 3).reshape(BN, 1, 4, 1)
    return tl.broadcast_to(x, (BN, BM // 8, 4, 2)).reshape(BN, BM)


@triton.jit
def table_values(entries, PTX: tl.constexpr):
    """(scale, offset) fp32 from packed entries: int32 = two fp16, int64 = two fp32; scale low."""
    HALF: tl.constexpr = entries.dtype == tl.int32
    if HALF and PTX:
        # Said like this, each half is converted where it lies, without being moved first.
        s, o = tl.inline_asm_elementwise(
            "{ .reg .b16 l, h; mov.b32 {l, h}, $2; cvt.f32.f16 $0, l; cvt.f32.f16 $1, h; }",
            constraints="=f,=f,r",
            args=[entries],
            dtype=(tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    elif HALF:
        low, high = bits.halves(entries, tl.float16)
        s = low.to(tl.float32)
        o = high.to(tl.float32)
    else:
        s = (entries & 0xFFFFFFFF).to(tl.uint32).to(tl.float32, bitcast=True)
        o = ((entries >> 32) & 0xFFFFFFFF).to(tl.uint32).to(tl.float32, bitcast=True)
    return s, o


@triton.jit
def dot(a, b, c, INTERPRET: tl.constexpr):
    """``a @ b + c`` in fp32; the interpreter multiplies bf16 operands wrongly, so they are cast."""
    if INTERPRET:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), c)
    return tl.dot(a, b, c)


@triton.jit
def repeat_rows(x, BN: tl.constexpr):
    """[R, BM] with equal rows to [BN, BM]; every lane already holds what it needs."""
    R: tl.constexpr = x.shape[0]
    BM: tl.constexpr = x.shape[1]
    return tl.broadcast_to(x[None, :, :], (BN // R, R, BM)).reshape(BN, BM)


@triton.constexpr_function
def joined_rows(bm: int) -> int:
    """Tokens of a tile of ``bm`` whose parts are joined at once."""
    return max(4, bm // 4)


JOINED_PARTS = 8
"""Parts of them that are loaded before the first is added: at most 128 registers of a lane."""

_JOINED_PARTS = tl.constexpr(JOINED_PARTS)


@triton.jit
def _put(
    acc,
    m,
    tile_n,
    out_ptr,
    bias_ptr,
    residual_ptr,
    M,
    N,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
):
    """Apply the epilogue to the sums [R, BN] of tokens ``m`` [R], and store those there are."""
    R: tl.constexpr = acc.shape[0]
    BN: tl.constexpr = acc.shape[1]
    rows = tile_n * BN + tl.arange(0, BN)
    if BIAS:
        if GATED:
            b = rows // 128 * 64 + rows % 64
            offset = b + tl.where(rows % 128 < 64, 0, N)
            bias = tl.load(bias_ptr + offset, mask=b < N, other=0.0)
        else:
            bias = tl.load(bias_ptr + rows, mask=rows < N, other=0.0)
        acc += bias.to(tl.float32)[None, :]
    if GATED:
        # Rows alternate in blocks of 64: gate, up, gate, up.
        pair = acc.reshape(R, BN // 128, 2, 64).permute(0, 1, 3, 2)
        gate, up = tl.split(pair)
        y = (gate * tl.sigmoid(gate) * up).reshape(R, BN // 2)
        n = tile_n * (BN // 2) + tl.arange(0, BN // 2)
    else:
        y = acc
        n = rows
    where = m.to(tl.int64)[:, None] * N + n[None, :]
    inside = (m < M)[:, None] & (n < N)[None, :]
    if RESIDUAL:
        y += tl.load(residual_ptr + where, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + where, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _join(ptrs, there, splits, PARTS: tl.constexpr, SIZE: tl.constexpr):
    """The sum of parts 0, 1, ... of a tile, in that order; ``there``: which sums are wanted."""
    # -0.0 changes no sum, and so stands for the parts that there are not.
    acc = tl.full(ptrs.shape, -0.0, tl.float32)
    first = tl.full((1, 1), 0, tl.int32)
    for start in range(0, splits, PARTS):
        parts = ()
        for j in tl.static_range(PARTS):
            mask = there & (first + (start + j) < splits)
            parts = parts + (  # noqa: RUF005
                tl.load(ptrs + j * SIZE, mask=mask, other=-0.0, cache_modifier=".cg"),
            )
        for j in tl.static_range(PARTS):
            acc += parts[j]
        ptrs += PARTS * SIZE
    return acc


@triton.jit
def arrives_last(count_ptr, parts):
    """Whether this program, whose part is stored, is the last of ``parts`` to say so.

    The counter is zero before the first arrival. The last program puts it back, and sees all that
    the others have stored; it has to load that from the second cache.
    """
    # All warps have stored before one lane announces it.
    tl.debug_barrier()
    return tl.atomic_add(count_ptr, 1, sem="acq_rel") == parts - 1


@triton.jit
def finish(
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
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
):
    """Sum the splits of a tile in order, apply the epilogue and store ``acc`` [BN, BM].

    Every split stores its part of the tokens that there are; the one that arrives last at the
    tile's counter adds all parts from split 0 upwards, so the sum does not depend on who was last,
    and sets the counter back to zero for the next launch. It loads as many parts at once as its
    registers hold, because each time it waits for the second cache, and takes the tokens in
    pieces, so that few cost little. ``N`` counts stored columns: half the rows when GATED.
    """
    BN: tl.constexpr = acc.shape[0]
    BM: tl.constexpr = acc.shape[1]
    SIZE: tl.constexpr = BM * BN
    STEP: tl.constexpr = joined_rows(BM)
    begin = tile_m * BM
    m = tl.arange(0, BM)
    acc = acc.trans()
    if splits == 1:
        _put(acc, begin + m, tile_n, out_ptr, bias_ptr, residual_ptr, M, N, BIAS, RESIDUAL, GATED)
    else:
        slot = tile_m * tl.num_programs(0) + tile_n
        parts = work_ptr + slot.to(tl.int64) * splits * SIZE
        n = tl.arange(0, BN)[None, :]
        live = tl.minimum(M - begin, BM)
        cell = m[:, None] * BN + n
        there = (m < live)[:, None]
        tl.store(parts + split * SIZE + cell, acc, mask=there, cache_modifier=".cg")
        if arrives_last(count_ptr + slot, splits):
            for first in range(0, live, STEP):
                some = first + tl.arange(0, STEP)
                ptrs = parts + (some[:, None] * BN + n)
                wanted = (some < live)[:, None] & (n >= 0)
                total = _join(ptrs, wanted, splits, _JOINED_PARTS, SIZE)
                _put(
                    total, begin + some, tile_n, out_ptr, bias_ptr, residual_ptr, M, N, BIAS,
                    RESIDUAL, GATED,
                )  # fmt: skip
            tl.store(count_ptr + slot, 0)
