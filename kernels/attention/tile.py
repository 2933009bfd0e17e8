"""Device code that decode and prefill share: one page of keys and values against a tile of rows.

Maths, per page of N tokens (FlashAttention, Dao et al. 2022; online softmax, Milakov and
Gimelshein 2018): ``s = q k^T``; ``m' = max(m, max(s) c)``; ``p = exp2(s c - m')``;
``l' = l exp2(m - m') + sum(p)``; ``acc' = acc exp2(m - m') + p v``, with ``c = scale log2(e)``,
so that one FMA and one ``exp2`` remain per score. All state is float32.
"""

# Device code: triton's stubs do not know that constants become constexprs and kernels tensors.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportAttributeAccessIssue=false, reportOptionalOperand=false

from __future__ import annotations

import triton
import triton.language as tl

from ..device.bits import int8_to_half
from ..device.rounding import narrow

# Below any score, yet finite: the first tile's rescaling factor is exp2(LOWEST - m) = 0 and a
# row that has seen nothing yet gives exp2(-inf - LOWEST) = 0, never inf - inf.
LOWEST = tl.constexpr(-1e30)


@triton.jit
def codes_to(x, DTYPE: tl.constexpr, PTX: tl.constexpr):
    """int8 codes as exact fp16, bf16 or fp32 values."""
    if PTX:
        return int8_to_half(x, DTYPE, True)
    # By way of fp32: the interpreter has no conversion from integers to bf16.
    return x.to(tl.float32).to(DTYPE)


@triton.jit
def dot(a, b, acc, INTERPRET: tl.constexpr):
    """``a @ b + acc`` in float32; the interpreter cannot multiply bf16, so it widens first."""
    if INTERPRET:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def attend_page(
    q,
    top,
    mass,
    acc,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    block,
    block_stride,
    scale_stride,
    page,
    limits,
    factor,
    soft_cap,
    window,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    QUANT: tl.constexpr,
    PTX: tl.constexpr,
    INTERPRET: tl.constexpr,
    APART: tl.constexpr = False,
):
    """Fold one page into the running softmax of a tile of rows -> (top, mass, acc).

    q [M, EP]; top (m above) and mass (l above) float32 [M]; acc float32 [M, EP]; k_ptr, v_ptr and
    the scale pointers: the KV head's tile in block 0; block: number of the block that holds page
    number ``page`` of the text; limits int32 [M]: last position that each row sees. With MASKED,
    tokens beyond a row's limit or window are hidden, and values past every limit are not read (a
    page's unwritten tail may hold anything, NaN included). APART: see ``AttentionTile``.
    """
    WIDTH: tl.constexpr = q.shape[1]
    offsets = tl.arange(0, PAGE)
    columns = tl.arange(0, WIDTH)
    tokens = page * PAGE + offsets
    dims = columns[None, :] < DIM
    # A block's offset may pass 2**31 elements; it is one scalar, so 64 bits cost nothing. The
    # stride comes in units of 16 elements: only so is it known that loads may be 16 bytes wide.
    base = block.to(tl.int64) * block_stride * 16
    tile = offsets[:, None] * DIM + columns[None, :]
    written = tokens <= tl.max(limits, 0)
    if WIDTH == DIM:
        k = tl.load(k_ptr + base + tile)
    else:
        k = tl.load(k_ptr + base + tile, mask=dims, other=0)
    if MASKED:
        v = tl.load(v_ptr + base + tile, mask=written[:, None] & dims, other=0)
    elif WIDTH == DIM:
        v = tl.load(v_ptr + base + tile)
    else:
        v = tl.load(v_ptr + base + tile, mask=dims, other=0)
    if QUANT:
        k = codes_to(k, q.dtype, PTX)
        v = codes_to(v, q.dtype, PTX)
        scale_base = block.to(tl.int64) * scale_stride
    s = dot(q, tl.trans(k), tl.zeros((q.shape[0], PAGE), tl.float32), INTERPRET)
    if QUANT:
        s = s * tl.load(k_scale_ptr + scale_base + offsets)[None, :]
    if SOFT_CAP:
        # tanh(x) = 1 - 2 / (exp(2 x) + 1), which saturates without overflow trouble. ``factor``
        # is 2 log2(e) scale / cap here and ``soft_cap`` is cap log2(e).
        s = soft_cap * (1.0 - 2.0 / (tl.exp2(s * factor) + 1.0))
    if MASKED:
        seen = tokens[None, :] <= limits[:, None]
        if WINDOW:
            seen = seen & (limits[:, None] - tokens[None, :] < window)
        s = tl.where(seen, s, float("-inf"))
    if SOFT_CAP:
        new_top = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new_top[:, None])
    else:
        new_top = tl.maximum(top, tl.max(s, 1) * factor)
        p = tl.exp2(tl.fma(s, tl.zeros_like(s) + factor, tl.zeros_like(s) - new_top[:, None]))
    shrink = tl.exp2(top - new_top)
    mass = tl.fma(mass, shrink, tl.sum(p, 1))
    if not APART:
        acc = acc * shrink[:, None]
    if QUANT:
        # Largest magnitudes, not steps, weigh the probabilities: they have the size of values,
        # so that fp16 does not lose them below its smallest normal number.
        if MASKED:
            largest = tl.load(v_scale_ptr + scale_base + offsets, mask=written, other=0.0)
        else:
            largest = tl.load(v_scale_ptr + scale_base + offsets)
        p = p * (largest * 127.0)[None, :]
    if APART:
        part = dot(narrow(p, v.dtype), v, tl.zeros_like(acc), INTERPRET)
        acc = tl.fma(acc, tl.zeros_like(acc) + shrink[:, None], part)
    else:
        acc = dot(narrow(p, v.dtype), v, acc, INTERPRET)
    return new_top, mass, acc


@triton.jit
def normalized(acc, mass, QUANT: tl.constexpr):
    """``acc / mass``; zeros where nothing was seen. int8 values still lack their 1 / 127."""
    share = 1.0 / tl.where(mass > 0.0, mass, 1.0)
    if QUANT:
        share = share * (1.0 / 127.0)
    return acc * share
