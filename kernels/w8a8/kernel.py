"""Device code of W8A8: matrix product of 8-bit activations and weights, and row quantization.

Both operands are int8 (int32 accumulator, exact) or float8 e4m3 (float32 accumulator).
"""

# Device code is not Python to a type checker: constexpr and tensor operators have no stubs.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportArgumentType=false
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from ..device.column_order import column_at
from ..device.parts import arrives_last
from ..device.rounding import codes_of, row_scale


@triton.jit
def tile_of(pid, M, N, BM: tl.constexpr, BN: tl.constexpr, GROUP_M: tl.constexpr):
    """(m tile, n tile) of a program: ``GROUP_M`` m tiles share the n tiles that they walk.

    Neighbours in time so read the same weights and the same few activations (L2 reuse).
    """
    m_tiles = tl.cdiv(M, BM)
    n_tiles = tl.cdiv(N, BN)
    first = pid // (GROUP_M * n_tiles) * GROUP_M
    size = min(m_tiles - first, GROUP_M)
    inner = pid % (GROUP_M * n_tiles)
    return first + inner % size, inner // size


@triton.jit
def dot8(x, w, acc, IMPRECISE: tl.constexpr, INTERPRET: tl.constexpr):
    """``acc + x @ w`` for int8 (acc int32) or float8 (acc float32)."""
    if acc.dtype == tl.int32:
        acc = tl.dot(x, w, acc, out_dtype=tl.int32)
    elif INTERPRET:
        acc = tl.dot(x.to(tl.float32), w.to(tl.float32), acc)
    elif x.shape[1] == IMPRECISE:
        # The same sums as with the option below. Triton's code for that reads the sums of a
        # product that still runs, which is undefined; the assembler happens to put a wait there.
        acc += tl.dot(x, w)
    else:
        acc = tl.dot(x, w, acc, max_num_imprecise_acc=IMPRECISE)
    return acc


@triton.jit(do_not_specialize=["M", "SX_STEP", "ZX_STEP", "per_expert"])
def gemm(
    x_ptr,
    w_ptr,
    sx_ptr,
    sw_ptr,
    zx_ptr,
    colsum_ptr,
    bias_ptr,
    res_ptr,
    y_ptr,
    work_ptr,
    count_ptr,
    experts_ptr,
    M,
    N,
    K,
    W_STEP,
    SX_STEP,
    ZX_STEP,
    per_expert,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,
    HAS_ZX: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RES: tl.constexpr,
    GROUPED: tl.constexpr,
    IMPRECISE: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """``y = sx * sw * (x @ w.T - zx * colsum) + bias + residual``.

    x [M, K] and y, residual [M, N] row-major; w [N, W_STEP] row-major with W_STEP >= K, loaded as
    [BN, BK] and transposed: the form in which int8 needs no byte shuffles before the tensor core.
    sx float32 [M] (SX_STEP 1) or [1] (0), zx int32 likewise; sw float32, colsum int32, bias [N].

    Grid (m tiles * n tiles, SPLIT); M, N and K may be ragged. With SPLIT > 1 every program
    leaves its sums in ``work`` [tiles, SPLIT, BM, BN], and the last one of a tile to arrive, told
    by ``count`` [tiles] (zero before and after), adds them in order of split: deterministic, and
    for int8 exact, whatever the tiles. Sums of int8 wrap only beyond K of 131071.

    GROUPED: the weight holds the rows of all experts, one after the other, and ``experts`` says
    whose rows of x each run of ``per_expert`` tiles has, -1 for nobody's.
    """
    pid = tl.program_id(0)
    ps = tl.program_id(1)
    pm, pn = tile_of(pid, M, N, BM, BN, GROUP_M)
    if GROUPED:
        expert = tl.load(experts_ptr + pm // per_expert)
        if expert < 0:
            return
        before = expert.to(tl.int64) * N
        w_ptr += before * W_STEP
        sw_ptr += before
        colsum_ptr += before
        bias_ptr += before
    rm = pm * BM + tl.arange(0, BM)
    rn = pn * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    # Rows beyond N repeat the last one: their results are never stored, and no mask is needed.
    last = tl.minimum(tl.arange(0, BN), N - 1 - pn * BN)
    x_ptrs = x_ptr + (pm.to(tl.int64) * BM * K + ps * BK)
    x_ptrs += tl.arange(0, BM)[:, None] * K + rk[None, :]
    w_ptrs = w_ptr + (pn.to(tl.int64) * BN * W_STEP + ps * BK)
    w_ptrs += last[:, None] * W_STEP + rk[None, :]
    rows = rm[:, None] < M
    if work_ptr.dtype.element_ty == tl.int32:
        acc = tl.zeros((BM, BN), tl.int32)
    else:
        acc = tl.zeros((BM, BN), tl.float32)
    # Splits take k tiles in turn (s, s + SPLIT, ...), so that they differ by one tile at most.
    for k in range(ps * BK, K, SPLIT * BK):
        if EVEN_K:
            x = tl.load(x_ptrs, mask=rows, other=0.0)
            w = tl.load(w_ptrs)
        else:
            inside = rk[None, :] < K - k
            x = tl.load(x_ptrs, mask=rows & inside, other=0.0)
            w = tl.load(w_ptrs, mask=inside, other=0.0)
        acc = dot8(x, w.T, acc, IMPRECISE, INTERPRET)
        x_ptrs += SPLIT * BK
        w_ptrs += SPLIT * BK

    if SPLIT > 1:
        tile = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
        parts = work_ptr + pid.to(tl.int64) * (SPLIT * BM * BN) + tile
        tl.store(parts + ps * (BM * BN), acc)
        if not arrives_last(count_ptr + pid, SPLIT):
            return
        tl.debug_barrier()
        acc = tl.load(parts, cache_modifier=".cg")
        for s in tl.static_range(1, SPLIT):
            acc += tl.load(parts + s * (BM * BN), cache_modifier=".cg")
        tl.store(count_ptr + pid, 0)

    in_n = rn < N
    if HAS_ZX:
        zx = tl.load(zx_ptr + rm * ZX_STEP, mask=rm < M, other=0)
        colsum = tl.load(colsum_ptr + rn, mask=in_n, other=0)
        # Exact although both terms may wrap: the difference fits, and wrapping is modular.
        acc -= zx[:, None] * colsum[None, :]
    sx = tl.load(sx_ptr + rm * SX_STEP, mask=rm < M, other=0.0)
    sw = tl.load(sw_ptr + rn, mask=in_n, other=0.0)
    y = acc.to(tl.float32) * sx[:, None] * sw[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + rn, mask=in_n, other=0.0).to(tl.float32)[None, :]
    y_at = pm.to(tl.int64) * BM * N + tl.arange(0, BM)[:, None] * N + rn[None, :]
    stored = rows & in_n[None, :]
    if HAS_RES:
        y += tl.load(res_ptr + y_at, mask=stored, other=0.0).to(tl.float32)
    tl.store(y_ptr + y_at, y.to(y_ptr.dtype.element_ty), mask=stored)


@triton.jit
def quantize(
    x_ptr,
    q_ptr,
    s_ptr,
    z_ptr,
    K,
    K_OUT,
    BLOCK: tl.constexpr,
    ONE_PASS: tl.constexpr,
    STATIC: tl.constexpr,
    HAS_Z: tl.constexpr,
    TOP: tl.constexpr,
    ORDER: tl.constexpr,
):
    """Rows of x [M, K] to 8 bits: q [M, K_OUT] (zeros beyond K), one scale (and zero) a row.

    The rules are those of ``formats.activations``: symmetric with a scale of each row's own, HAS_Z
    with a zero point, too; STATIC: s (and z) are read, one for all rows. float8 has a TOP of 448.
    A NaN or an infinity makes its row's scale NaN, unless that is static. ORDER is that of the
    columns of q; where it is not plain, a TOP of 127 is ``int8-token``: codes begin at -127.

    Grid (M,). Rows up to BLOCK long stay in registers; longer ones are read twice.
    """
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * K
    q_ptr += row * K_OUT
    rk = tl.arange(0, BLOCK)
    at = column_at(rk, ORDER)
    CODES: tl.constexpr = q_ptr.dtype.element_ty
    # Also for a TOP of 127: a subnormal scale, rounded far, leaves quotients beyond 127.
    LOW: tl.constexpr = -127.0 if TOP == 127.0 and ORDER != "plain" else -128.0
    if ONE_PASS:
        x = tl.load(x_ptr + at, mask=at < K, other=0.0).to(tl.float32)
    high = 0.0
    low = 0.0
    poison = 0.0
    if not STATIC:
        if ONE_PASS:
            high = tl.max(x if HAS_Z else tl.abs(x), 0)
            low = tl.min(x, 0)
            # 0 * x is 0 for every number, and NaN for infinities and NaN.
            poison = tl.sum(x * 0.0, 0)
        else:
            high_v = tl.zeros((BLOCK,), tl.float32)
            low_v = tl.zeros((BLOCK,), tl.float32)
            poison_v = tl.zeros((BLOCK,), tl.float32)
            for k in range(0, K, BLOCK):
                v = tl.load(x_ptr + k + rk, mask=rk < K - k, other=0.0).to(tl.float32)
                high_v = tl.maximum(high_v, v if HAS_Z else tl.abs(v))
                low_v = tl.minimum(low_v, v)
                poison_v += v * 0.0
            high = tl.max(high_v, 0)
            low = tl.min(low_v, 0)
            poison = tl.sum(poison_v, 0)
    s, z = row_scale(high, low, poison, s_ptr, z_ptr, row, STATIC, HAS_Z, TOP)
    if ONE_PASS:
        tl.store(q_ptr + rk, codes_of(x, s, z, LOW, CODES), mask=rk < K_OUT)
    else:
        for k in range(0, K_OUT, BLOCK):
            v = tl.load(x_ptr + k + at, mask=at < K - k, other=0.0).to(tl.float32)
            tl.store(q_ptr + k + rk, codes_of(v, s, z, LOW, CODES), mask=rk < K_OUT - k)
