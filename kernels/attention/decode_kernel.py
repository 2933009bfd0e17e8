"""Split-KV decode: one query token per program and KV head, over a run of pages.

``out[t, h] = softmax(q[t, h] K^T scale) V`` over the positions 0..positions[t] of the token's
row (or the last ``window`` of them).

* Grid (T * J, splits). The H / J query heads of a KV head are the rows of one tile of at least
  16, so a page is read once for all of them.
* q [T, H, E] fp16, bf16 or fp32; caches [B, J, PAGE, E] of the same type, or int8 with float32
  scales [B, J, PAGE]; tables int32 [R, width]; positions int32 [T], negative for no token.
  The strides of q's tokens and of blocks are given in units of 16 elements.
* With LISTED the programs are those of the tokens in a list int32 [S], negative for nothing; the
  others keep what out held.
* Ragged: lengths, and E up to the tile's power of two. A page is one tile, and masked.
* Each split writes its unnormalised sum and (max, sum) in float32; ``reduce_kernel`` joins them in
  the order of positions. Empty splits write nothing and are never read.
* Deterministic: no atomics. With CHUNK > 0 a split covers CHUNK pages whatever the batch is, so a
  token's bits depend on its own row alone; with CHUNK = 0 the row's pages are dealt evenly.
"""

# Device code: triton's stubs do not know that constants become constexprs and kernels tensors.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportAttributeAccessIssue=false, reportOptionalOperand=false

from __future__ import annotations

import triton
import triton.language as tl

from ..device.dependent import await_previous, release_next
from ..device.rounding import narrow
from .tile import LOWEST, attend_page, normalized


@triton.jit
def page_range(
    position,
    splits,
    window,
    PAGE: tl.constexpr,
    CHUNK: tl.constexpr,
    LEAST: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """(first page, end page, pages of a split) of a token at ``position``."""
    first = 0
    if WINDOW:
        first = tl.maximum(position + 1 - window, 0) // PAGE
    last = (position + PAGE) // PAGE
    even = tl.maximum((last - first + splits - 1) // splits, LEAST)
    per = CHUNK if CHUNK > 0 else even
    return first, last, per


@triton.jit(
    do_not_specialize=[
        "q_stride",
        "block_stride",
        "scale_stride",
        "table_width",
        "splits",
        "window",
    ]
)
def decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    tables_ptr,
    positions_ptr,
    row_index_ptr,
    tokens_ptr,
    out_ptr,
    partial_ptr,
    stats_ptr,
    q_stride,
    block_stride,
    scale_stride,
    table_width,
    splits,
    window,
    factor,
    soft_cap,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    LEAST: tl.constexpr,
    SINGLE: tl.constexpr,
    INDEXED: tl.constexpr,
    LISTED: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    QUANT: tl.constexpr,
    EARLY: tl.constexpr,
    PTX: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """One split of one token and KV head.

    SINGLE, which no list goes with, writes the result, without a second kernel.
    """
    release_next(EARLY)
    await_previous(EARLY)
    pair = tl.program_id(0)
    split = tl.program_id(1)
    token = pair // KV_HEADS
    head = pair % KV_HEADS
    if LISTED:
        token = tl.load(tokens_ptr + token)
        if token < 0:
            return
    position = tl.load(positions_ptr + token)
    first, last, per = page_range(position, splits, window, PAGE, CHUNK, LEAST, WINDOW)
    begin = first + split * per
    end = tl.minimum(begin + per, last)
    if not SINGLE and begin >= end:
        return
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    inside = (rows[:, None] < GROUP) & (columns[None, :] < DIM)
    q = tl.load(
        q_ptr
        + token.to(tl.int64) * q_stride * 16
        + (head * GROUP + rows)[:, None] * DIM
        + columns[None, :],
        mask=inside,
        other=0.0,
    )
    line = tl.load(row_index_ptr + token) if INDEXED else token
    table = tables_ptr + line.to(tl.int64) * table_width
    k_head = k_ptr + head * (PAGE * DIM)
    v_head = v_ptr + head * (PAGE * DIM)
    k_scale_head = k_scale_ptr + head * PAGE
    v_scale_head = v_scale_ptr + head * PAGE
    top = tl.full((ROWS,), LOWEST, tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    limits = tl.full((ROWS,), 0, tl.int32) + position
    # The block number of the next page is read one page ahead, so that its latency hides behind
    # this page's work. Every page is masked, though only the last (and with a window the first)
    # has to be: a loop of its own would have to wait for that page alone.
    following = tl.load(table + begin, mask=begin < end, other=0)
    for page in range(begin, end):
        block = following
        following = tl.load(table + page + 1, mask=page + 1 < end, other=0)
        top, mass, acc = attend_page(
            q, top, mass, acc, k_head, v_head, k_scale_head, v_scale_head, block,
            block_stride, scale_stride, page, limits, factor, soft_cap, window,
            PAGE, DIM, True, WINDOW, SOFT_CAP, QUANT, PTX, INTERPRET,
        )  # fmt: skip
    if SINGLE:
        address = pair.to(tl.int64) * (GROUP * DIM) + rows[:, None] * DIM + columns[None, :]
        tl.store(
            out_ptr + address,
            narrow(normalized(acc, mass[:, None], QUANT), out_ptr.dtype.element_ty),
            mask=inside,
        )
    else:
        cell = pair.to(tl.int64) * splits + split
        tl.store(
            partial_ptr + cell * (GROUP * DIM) + rows[:, None] * DIM + columns[None, :],
            acc,
            mask=inside,
        )
        tl.store(stats_ptr + cell * (2 * GROUP) + rows, top, mask=rows < GROUP)
        tl.store(stats_ptr + cell * (2 * GROUP) + GROUP + rows, mass, mask=rows < GROUP)


@triton.jit(do_not_specialize=["splits", "window"])
def reduce_kernel(
    partial_ptr,
    stats_ptr,
    positions_ptr,
    tokens_ptr,
    out_ptr,
    splits,
    window,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    LEAST: tl.constexpr,
    TOGETHER: tl.constexpr,
    LISTED: tl.constexpr,
    WINDOW: tl.constexpr,
    QUANT: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Join the splits of one token and query head: grid (tokens * H,), out [T, H, E].

    Splits are joined TOGETHER at a time in the order of positions, and only those that hold
    pages, so the result does not depend on how many more the grid had.
    """
    release_next(EARLY)
    await_previous(EARLY)
    index = tl.program_id(0)
    pair = index // GROUP
    member = index % GROUP
    token = pair // KV_HEADS
    if LISTED:
        token = tl.load(tokens_ptr + token)
        if token < 0:
            return
    position = tl.load(positions_ptr + token)
    first, last, per = page_range(position, splits, window, PAGE, CHUNK, LEAST, WINDOW)
    live = (last - first + per - 1) // per
    columns = tl.arange(0, WIDTH)
    inside = columns < DIM
    top = tl.full((1,), LOWEST, tl.float32)
    mass = tl.zeros((1,), tl.float32)
    acc = tl.zeros((WIDTH,), tl.float32)
    base = pair.to(tl.int64) * splits
    for start in range(0, live, TOGETHER):
        split = start + tl.arange(0, TOGETHER)
        there = split < live
        cell = base + split
        tops = tl.load(stats_ptr + cell * (2 * GROUP) + member, mask=there, other=float("-inf"))
        masses = tl.load(stats_ptr + cell * (2 * GROUP) + GROUP + member, mask=there, other=0.0)
        part = tl.load(
            partial_ptr + cell[:, None] * (GROUP * DIM) + member * DIM + columns[None, :],
            mask=there[:, None] & inside[None, :],
            other=0.0,
        )
        new_top = tl.maximum(top, tl.max(tops, 0))
        weight = tl.exp2(tops - new_top)
        shrink = tl.exp2(top - new_top)
        mass = mass * shrink + tl.sum(masses * weight, 0)
        acc = acc * shrink + tl.sum(part * weight[:, None], 0)
        top = new_top
    of_head = token.to(tl.int64) * (KV_HEADS * GROUP) + index % (KV_HEADS * GROUP)
    tl.store(
        out_ptr + of_head * DIM + columns,
        narrow(normalized(acc, mass, QUANT), out_ptr.dtype.element_ty),
        mask=inside,
    )
