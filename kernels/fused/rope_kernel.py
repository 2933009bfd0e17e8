"""q/k RMSNorm, RoPE, KV write and its rounding to codes from one row of the fused qkv product.

Per head of q and k: ``x = x / sqrt(mean(x**2) + eps) * w`` where the model has such norms (first
rounded, then multiplied, as :func:`reference.rms_norm`), then ``(a, b) = (a cos - b sin, b cos +
a sin)`` on the pairs of the first 2 F dimensions, F apart or (INTERLEAVED) neighbours; v passes
through. All in float32, rounded once at the end. int8 and float8 e4m3: ``codes = round(y / (max|y|
/ TOP))`` of the rounded head, one scale each, TOP being 127 and 448.

Grid (T, heads / HEADS): a program takes HEADS of the H + 2 J heads of a token, whatever their
kind. qkv [T, (H + 2 J) E]; rope float32 [T, 2 F], cosines then sines; slots int64 [T], negative
for no token; caches [B, J, S, E], whose blocks may be strided. Ragged: H + 2 J, F, E. No two
programs write one place, so long as no slot is given twice. Deterministic.
"""

# Device code: triton's stubs do not know that constants become constexprs and kernels tensors.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportAttributeAccessIssue=false, reportOptionalOperand=false

from __future__ import annotations

import triton
import triton.language as tl

from ..device.dependent import await_previous, release_next
from ..device.rounding import codes_of, narrow, scale_of


@triton.jit
def _normed(x, factor, q_norm_ptr, k_norm_ptr, columns, inside, is_q, is_k, DTYPE: tl.constexpr):
    """``x * factor * weight`` with the weight of each head's kind, 1 for v: [HEADS, N]."""
    q = narrow(tl.load(q_norm_ptr + columns, mask=inside, other=0.0).to(tl.float32), DTYPE).to(
        tl.float32
    )
    k = narrow(tl.load(k_norm_ptr + columns, mask=inside, other=0.0).to(tl.float32), DTYPE).to(
        tl.float32
    )
    weight = tl.where(is_q[:, None], q[None, :], tl.where(is_k[:, None], k[None, :], 1.0))
    return narrow(x * factor, DTYPE).to(tl.float32) * weight


@triton.jit
def _store(q, kv, columns, y, scale, q_mask, kv_mask, DTYPE: tl.constexpr, QUANT: tl.constexpr):
    """Some columns of every head, to q's output or into the cache."""
    tl.store(q + columns[None, :], narrow(y, DTYPE), mask=q_mask)
    if QUANT:
        KIND: tl.constexpr = kv.dtype.element_ty
        codes = codes_of(narrow(y, DTYPE).to(tl.float32), scale, 0.0, -128.0, KIND)
        tl.store(kv + columns[None, :], codes, mask=kv_mask)
    else:
        tl.store(kv + columns[None, :], narrow(y, DTYPE), mask=kv_mask)


@triton.jit(do_not_specialize=["q_stride", "block_stride", "scale_stride"])
def rope_kernel(
    qkv_ptr,
    rope_ptr,
    slots_ptr,
    q_norm_ptr,
    k_norm_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    q_stride,
    block_stride,
    scale_stride,
    eps,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    PAGE: tl.constexpr,
    HEADS: tl.constexpr,
    HALF_TILE: tl.constexpr,
    REST_TILE: tl.constexpr,
    NORM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    QUANT: tl.constexpr,
    EARLY: tl.constexpr,
):
    """HEADS heads of one token; see the module."""
    release_next(EARLY)
    await_previous(EARLY)
    DTYPE: tl.constexpr = qkv_ptr.dtype.element_ty
    ALL: tl.constexpr = Q_HEADS + 2 * KV_HEADS
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    is_q = head < Q_HEADS
    is_k = (head >= Q_HEADS) & (head < Q_HEADS + KV_HEADS)
    is_v = (head >= Q_HEADS + KV_HEADS) & (head < ALL)
    pair = tl.arange(0, HALF_TILE)
    paired = pair < HALF
    first = pair * 2 if INTERLEAVED else pair
    second = first + 1 if INTERLEAVED else pair + HALF
    both = (head[:, None] < ALL) & paired[None, :]
    source = qkv_ptr + token * (ALL * DIM) + head[:, None] * DIM
    a = tl.load(source + first[None, :], mask=both, other=0.0).to(tl.float32)
    b = tl.load(source + second[None, :], mask=both, other=0.0).to(tl.float32)
    cos = tl.load(rope_ptr + token * (2 * HALF) + pair, mask=paired, other=1.0)
    sin = tl.load(rope_ptr + token * (2 * HALF) + HALF + pair, mask=paired, other=0.0)
    if REST_TILE > 0:
        tail = 2 * HALF + tl.arange(0, REST_TILE)
        trailing = tail < DIM
        rest_mask = (head[:, None] < ALL) & trailing[None, :]
        rest = tl.load(source + tail[None, :], mask=rest_mask, other=0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(a * a, 1) + tl.sum(b * b, 1)
        if REST_TILE > 0:
            squares += tl.sum(rest * rest, 1)
        factor = tl.div_rn(
            tl.full((HEADS,), 1.0, tl.float32),
            tl.sqrt_rn((squares * (1.0 / DIM) + eps).to(tl.float32)),
        )
        factor = tl.where(is_v, 1.0, factor)[:, None]
        a = _normed(a, factor, q_norm_ptr, k_norm_ptr, first, paired, is_q, is_k, DTYPE)
        b = _normed(b, factor, q_norm_ptr, k_norm_ptr, second, paired, is_q, is_k, DTYPE)
        if REST_TILE > 0:
            rest = _normed(rest, factor, q_norm_ptr, k_norm_ptr, tail, trailing, is_q, is_k, DTYPE)
    cos = tl.where(is_v[:, None], 1.0, cos[None, :])
    sin = tl.where(is_v[:, None], 0.0, sin[None, :])
    turned_a = a * cos - b * sin
    turned_b = b * cos + a * sin

    slot = tl.load(slots_ptr + token)
    block = (slot // PAGE).to(tl.int64)
    offset = (slot % PAGE).to(tl.int64)
    is_kv = (head >= Q_HEADS) & (head < tl.where(slot >= 0, ALL, 0))
    kv_head = tl.where(is_k, head - Q_HEADS, head - Q_HEADS - KV_HEADS)
    cell = kv_head * PAGE + offset
    # k and v lie in two tensors of one shape; a head's kind chooses the base.
    k_base = k_ptr + block * block_stride + cell * DIM
    v_base = v_ptr + block * block_stride + cell * DIM
    kv = tl.where(is_k, k_base, v_base)[:, None]
    q = q_ptr + token * q_stride + head[:, None] * DIM
    scale = tl.full((HEADS, 1), 1.0, tl.float32)
    if QUANT:
        size_a = tl.max(tl.abs(narrow(turned_a, DTYPE).to(tl.float32)), 1)
        size_b = tl.max(tl.abs(narrow(turned_b, DTYPE).to(tl.float32)), 1)
        largest = tl.maximum(size_a, size_b)
        if REST_TILE > 0:
            largest = tl.maximum(largest, tl.max(tl.abs(narrow(rest, DTYPE).to(tl.float32)), 1))
        FLOAT8: tl.constexpr = k_ptr.dtype.element_ty == tl.float8e4nv
        scale_H = scale_of(largest, 448.0 if FLOAT8 else 127.0)
        scale = scale_H[:, None]
        scale_at = block * scale_stride + cell
        scale_ptrs = tl.where(is_k, k_scale_ptr + scale_at, v_scale_ptr + scale_at)
        tl.store(scale_ptrs, scale_H, mask=is_kv)
    q_here, kv_here = is_q[:, None] & both, is_kv[:, None] & both
    _store(q, kv, first, turned_a, scale, q_here, kv_here, DTYPE, QUANT)
    _store(q, kv, second, turned_b, scale, q_here, kv_here, DTYPE, QUANT)
    if REST_TILE > 0:
        q_rest, kv_rest = is_q[:, None] & rest_mask, is_kv[:, None] & rest_mask
        _store(q, kv, tail, rest, scale, q_rest, kv_rest, DTYPE, QUANT)
