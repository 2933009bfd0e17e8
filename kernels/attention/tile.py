"""Device code that decode and prefill share: one page of keys and values against a tile of rows.

Maths, per page of N tokens (FlashAttention, Dao et al. 2022; online softmax, Milakov and
Gimelshein 2018): ``s = q k^T``; ``m' = max(m, max(s) c)``; ``p = exp2(s c - m')``;
``l' = l exp2(m - m') + sum(p)``; ``acc' = acc exp2(m - m') + p v``, with ``c = scale log2(e)``,
so that one FMA and one ``exp2`` remain per score. All state is float32.

int8 codes enter the products in two planes, of even and of odd columns, fp16 as B + code with
B = 1152, which takes three logic instructions for four codes. Scores begin with -B sum(q), and the
sums of a page with -B sum(p), p as it was rounded for the product. Partial sums are then up to
B sum|q| or B sum(p) large. A product over 128 columns (64 tokens) is 8 (4) steps of 16 terms: if
each of the 17 terms of a step is cut off at 2**-24 of the largest, that is at most 8 * 17 * 2**-24
* B = 0.01 of sum|q| (0.005 of sum(p)) in units of a code, of which rounding to int8 has cost up to
0.5. Each page adds its own share, so the mean over all pages is no further off.
"""

# Device code: triton's stubs do not know that constants become constexprs and kernels tensors.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportAttributeAccessIssue=false, reportOptionalOperand=false

from __future__ import annotations

import triton
import triton.language as tl

from ..device.bits import code_bias, code_planes
from ..device.rounding import narrow

# Below any score, yet finite: the first tile's rescaling factor is exp2(LOWEST - m) = 0 and a
# row that has seen nothing yet gives exp2(-inf - LOWEST) = 0, never inf - inf.
LOWEST = tl.constexpr(-1e30)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def sink_state(sinks_ptr, heads, there):
    """Maximum and mass [M] to begin with: those of a score that has no value (a sink of a head).

    sinks_ptr: float32 [H]; heads [M]: which one each row has; there: whether it counts here.
    """
    sink = tl.load(sinks_ptr + heads, mask=there, other=float("-inf")) * LOG2E
    return tl.maximum(sink, LOWEST), tl.where(sink > LOWEST, 1.0, 0.0)


@triton.jit
def dot(a, b, acc, INTERPRET: tl.constexpr):
    """``a @ b + acc`` in float32; the interpreter cannot multiply bf16, so it widens first."""
    if INTERPRET:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def query_planes(tile, QUANT: tl.constexpr):
    """A tile of queries [M, E] as :func:`attend_page` multiplies it.

    With QUANT its even and its odd columns [M, E / 2], and what the keys' bias adds to the scores
    of each row, negative [M].
    """
    if QUANT:
        M: tl.constexpr = tile.shape[0]
        even, odd = tl.split(tile.reshape(M, tile.shape[1] // 2, 2))
        total = tl.sum(even.to(tl.float32) + odd.to(tl.float32), 1)
        return even, odd, total * -code_bias(tile.dtype, QUANT)
    else:
        return (tile,)


@triton.jit
def empty_sums(M: tl.constexpr, WIDTH: tl.constexpr, QUANT: tl.constexpr):
    """Sums [M, E] to begin with: with QUANT those of even and of odd columns, apart."""
    if QUANT:
        return tl.zeros((M, WIDTH // 2), tl.float32), tl.zeros((M, WIDTH // 2), tl.float32)
    else:
        return (tl.zeros((M, WIDTH), tl.float32),)


@triton.jit
def joined_columns(acc, QUANT: tl.constexpr):
    """The sums [M, E] with their columns in order."""
    if QUANT:
        return tl.interleave(acc[0], acc[1])
    else:
        return acc[0]


@triton.jit
def value_bias(
    p,
    DTYPE: tl.constexpr,
    QUANT: tl.constexpr,
    INTERPRET: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """What the values' bias adds to the sums [M, WIDTH] of probabilities [M, N], as rounded.

    A product with ones leaves it where the sums are; in the order of lanes nothing moves.
    """
    M: tl.constexpr = p.shape[0]
    ones = tl.full((p.shape[1], 16), 1.0, tl.float32).to(DTYPE)
    total = dot(p, ones, tl.zeros((M, 16), tl.float32), INTERPRET) * code_bias(DTYPE, QUANT)
    return tl.broadcast_to(total[:, None, :], (M, WIDTH // 16, 16)).reshape(M, WIDTH)


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

    q: see :func:`query_planes`; top (m above) and mass (l above) float32 [M]; acc: see
    :func:`empty_sums`; k_ptr, v_ptr and the scale pointers: the KV head's tile in block 0; block:
    number of the block that holds page number ``page`` of the text; limits int32 [M]: last
    position that each row sees. With MASKED, tokens beyond a row's limit or window are hidden, and
    values past every limit are not read (a page's unwritten tail may hold anything, NaN included).
    QUANT: the largest code of the caches, of int8 or float8 (``FLOAT8_TOP``), or 0 where they are
    floats. With codes they are int16, two codes of neighbouring columns in each, which pass through
    shared memory as 16-bit floats do; WIDTH and DIM count them. APART: see ``AttentionTile``.
    """
    M: tl.constexpr = q[0].shape[0]
    WIDTH: tl.constexpr = q[0].shape[1]
    DTYPE: tl.constexpr = q[0].dtype
    offsets = tl.arange(0, PAGE)
    columns = tl.arange(0, WIDTH)
    tokens = page * PAGE + offsets
    dims = columns[None, :] < DIM
    # A block's offset may pass 2**31 elements; it is one scalar, so 64 bits cost nothing. The
    # stride comes in units of 16 values: only so is it known that loads may be 16 bytes wide.
    base = block.to(tl.int64) * block_stride * (8 if QUANT else 16)
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
    s = tl.zeros((M, PAGE), tl.float32)
    if QUANT:
        k_even, k_odd = code_planes(k, DTYPE, QUANT, PTX)
        scale_base = block.to(tl.int64) * scale_stride
        s = dot(q[0], tl.trans(k_even), s + q[2][:, None], INTERPRET)
        s = dot(q[1], tl.trans(k_odd), s, INTERPRET)
        s = s * tl.load(k_scale_ptr + scale_base + offsets)[None, :]
    else:
        s = dot(q[0], tl.trans(k), s, INTERPRET)
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
    if QUANT:
        # Largest magnitudes, not steps, weigh the probabilities: they have the size of values,
        # so that fp16 does not lose them below its smallest normal number.
        if MASKED:
            largest = tl.load(v_scale_ptr + scale_base + offsets, mask=written, other=0.0)
        else:
            largest = tl.load(v_scale_ptr + scale_base + offsets)
        p = narrow(p * (largest * QUANT)[None, :], DTYPE)
        even, odd = acc[0] * shrink[:, None], acc[1] * shrink[:, None]
        if code_bias(DTYPE, QUANT) > 0:
            bias = value_bias(p, DTYPE, QUANT, INTERPRET, WIDTH)
            even -= bias
            odd -= bias
        v_even, v_odd = code_planes(v, DTYPE, QUANT, PTX)
        acc = dot(p, v_even, even, INTERPRET), dot(p, v_odd, odd, INTERPRET)
    elif APART:
        part = dot(narrow(p, DTYPE), v, tl.zeros_like(acc[0]), INTERPRET)
        acc = (tl.fma(acc[0], tl.zeros_like(part) + shrink[:, None], part),)
    else:
        acc = (dot(narrow(p, DTYPE), v, acc[0] * shrink[:, None], INTERPRET),)
    return new_top, mass, acc


@triton.jit
def normalized(acc, mass, QUANT: tl.constexpr):
    """``acc / mass``; zeros where nothing was seen. Codes still lack their 1 / QUANT."""
    share = 1.0 / tl.where(mass > 0.0, mass, 1.0)
    if QUANT:
        share = share * (1.0 / QUANT)
    return acc * share
