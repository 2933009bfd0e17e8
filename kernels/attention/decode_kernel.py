"""Split-KV decode: one query token per program and KV head, over a run of pages.

``out[t, h] = softmax(q[t, h] K^T scale) V`` over the positions 0..positions[t] of the token's
row (or the last ``window`` of them).

* Grid (T * J, splits). The H / J query heads of a KV head are the rows of one tile of at least
  16, so a page is read once for all of them.
* q [T, H, E] fp16, bf16 or fp32; caches [B, J, PAGE, E] of the same type, or int8, read as int16
  [B, J, PAGE, E / 2], with float32 scales [B, J, PAGE]; tables int32 [R, width]; positions int32
  [T], negative for no token. The strides of q's tokens and of blocks are given in units of 16
  values.
* With SINKS each head has one more score, float32 [H], without a value: the first split counts it.
* With LISTED the programs are those of the tokens in a list int32 [S], negative for nothing; the
  others keep what out held.
* Ragged: lengths, and E up to the tile's power of two. A page is one tile, and masked.
* Each split writes its unnormalised sum and (max, sum) in float32, and arrives at the counter of
  its token and KV head; whoever is the last joins them all in the order of positions. Splits
  without pages write nothing and do not arrive; for no token the first one writes zeros.
* Deterministic: what is joined does not depend on who was last. With CHUNK > 0 a split covers CHUNK
  pages whatever the batch is, so a token's bits depend on its own row alone; with CHUNK = 0 the
  row's pages are dealt evenly.
"""

# Device code: triton's stubs do not know that constants become constexprs and kernels tensors.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportAttributeAccessIssue=false, reportOptionalOperand=false

from __future__ import annotations

import triton
import triton.language as tl

from ..device.dependent import await_previous, release_next
from ..device.parts import arrives_last
from ..device.rounding import narrow
from .tile import (
    LOWEST,
    attend_page,
    empty_sums,
    joined_columns,
    normalized,
    query_planes,
    sink_state,
)


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


@triton.constexpr_function
def joined_heads(group: int, width: int) -> int:
    """Query heads of a KV head that are joined at once: as many as registers hold."""
    return min(1 << (group - 1).bit_length(), max(1, 512 // width))


@triton.jit
def _join(
    partial_ptr,
    stats_ptr,
    out_ptr,
    live,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    QUANT: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Join the splits of a token's query heads [GROUP, DIM] and store them.

    Splits are loaded TOGETHER at a time, because each time it waits for the second cache, and
    added in the order of positions; only those that hold pages, so that the result does not depend
    on how many more the grid had.
    """
    HEADS: tl.constexpr = joined_heads(GROUP, WIDTH)
    columns = tl.arange(0, WIDTH)[None, :]
    first = tl.full((1, 1), 0, tl.int32)
    for begin in range(0, GROUP, HEADS):
        heads = begin + tl.arange(0, HEADS)[:, None]
        inside = (heads < GROUP) & (columns < DIM)
        top = tl.full((HEADS, 1), LOWEST, tl.float32)
        mass = tl.zeros((HEADS, 1), tl.float32)
        acc = tl.zeros((HEADS, WIDTH), tl.float32)
        for start in range(0, live, TOGETHER):
            stats = stats_ptr + start * (2 * GROUP) + heads
            sums = partial_ptr + start * (GROUP * DIM) + heads * DIM + columns
            tops, masses, parts = (), (), ()
            highest = top
            for j in tl.static_range(TOGETHER):
                there = (heads < GROUP) & (first + (start + j) < live)
                tops = tops + (  # noqa: RUF005
                    tl.load(stats + 2 * j * GROUP, there, other=LOWEST, cache_modifier=".cg"),
                )
                masses = masses + (  # noqa: RUF005
                    tl.load(stats + (2 * j + 1) * GROUP, there, other=0.0, cache_modifier=".cg"),
                )
                parts = parts + (  # noqa: RUF005
                    tl.load(sums + j * GROUP * DIM, inside & there, 0.0, cache_modifier=".cg"),
                )
                highest = tl.maximum(highest, tops[j])
            shrink = tl.exp2(top - highest)
            mass = mass * shrink
            acc = acc * shrink
            for j in tl.static_range(TOGETHER):
                weight = tl.exp2(tops[j] - highest)
                mass += masses[j] * weight
                acc += parts[j] * weight
            top = highest
        tl.store(
            out_ptr + heads * DIM + columns,
            narrow(normalized(acc, mass, QUANT), out_ptr.dtype.element_ty),
            mask=inside,
        )


@triton.jit(
    do_not_specialize=[
        "first_token",
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
    sinks_ptr,
    tables_ptr,
    positions_ptr,
    row_index_ptr,
    tokens_ptr,
    out_ptr,
    partial_ptr,
    stats_ptr,
    count_ptr,
    first_token,
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
    SINKS: tl.constexpr,
    QUANT: tl.constexpr,
    TOGETHER: tl.constexpr,
    EARLY: tl.constexpr,
    PTX: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """One split of one token and KV head, the first of them in place ``first_token``.

    SINGLE, which no list goes with, writes the result straight away.
    """
    release_next(EARLY)
    await_previous(EARLY)
    pair = tl.program_id(0)
    split = tl.program_id(1)
    token = first_token + pair // KV_HEADS
    head = pair % KV_HEADS
    if LISTED:
        token = tl.load(tokens_ptr + token)
        if token < 0:
            return
    position = tl.load(positions_ptr + token)
    first, last, per = page_range(position, splits, window, PAGE, CHUNK, LEAST, WINDOW)
    begin = first + split * per
    end = tl.minimum(begin + per, last)
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    inside = (rows[:, None] < GROUP) & (columns[None, :] < DIM)
    address = rows[:, None] * DIM + columns[None, :]
    out_ptr += (token.to(tl.int64) * KV_HEADS + head) * (GROUP * DIM)
    if not SINGLE and begin >= end:
        if split == 0:
            tl.store(out_ptr + address, tl.zeros((ROWS, WIDTH), out_ptr.dtype.element_ty), inside)
        return
    tile = tl.load(
        q_ptr
        + token.to(tl.int64) * q_stride * 16
        + (head * GROUP + rows)[:, None] * DIM
        + columns[None, :],
        mask=inside,
        other=0.0,
    )
    q = query_planes(tile, QUANT)
    STORED: tl.constexpr = DIM // 2 if QUANT else DIM
    line = tl.load(row_index_ptr + token) if INDEXED else token
    table = tables_ptr + line.to(tl.int64) * table_width
    k_head = k_ptr + head * (PAGE * STORED)
    v_head = v_ptr + head * (PAGE * STORED)
    k_scale_head = k_scale_ptr + head * PAGE
    v_scale_head = v_scale_ptr + head * PAGE
    top = tl.full((ROWS,), LOWEST, tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    if SINKS:
        top, mass = sink_state(
            sinks_ptr, head * GROUP + rows, rows < tl.where(split == 0, GROUP, 0)
        )
    sums = empty_sums(ROWS, WIDTH, QUANT)
    limits = tl.full((ROWS,), 0, tl.int32) + position
    # The block number of the next page is read one page ahead, so that its latency hides behind
    # this page's work. Every page is masked, though only the last (and with a window the first)
    # has to be: a loop of its own would have to wait for that page alone.
    following = tl.load(table + begin, mask=begin < end, other=0)
    for page in range(begin, end):
        block = following
        following = tl.load(table + page + 1, mask=page + 1 < end, other=0)
        top, mass, sums = attend_page(
            q, top, mass, sums, k_head, v_head, k_scale_head, v_scale_head, block,
            block_stride, scale_stride, page, limits, factor, soft_cap, window,
            PAGE, STORED, True, WINDOW, SOFT_CAP, QUANT, PTX, INTERPRET,
        )  # fmt: skip
    acc = joined_columns(sums, QUANT)
    if SINGLE:
        tl.store(
            out_ptr + address,
            narrow(normalized(acc, mass[:, None], QUANT), out_ptr.dtype.element_ty),
            mask=inside,
        )
    else:
        partial_ptr += pair.to(tl.int64) * splits * (GROUP * DIM)
        stats_ptr += pair.to(tl.int64) * splits * (2 * GROUP)
        own = partial_ptr + split * (GROUP * DIM)
        tl.store(own + address, acc, mask=inside, cache_modifier=".cg")
        own = stats_ptr + split * (2 * GROUP) + rows
        tl.store(own, top, mask=rows < GROUP, cache_modifier=".cg")
        tl.store(own + GROUP, mass, mask=rows < GROUP, cache_modifier=".cg")
        live = (last - first + per - 1) // per
        if arrives_last(count_ptr + pair, live):
            _join(partial_ptr, stats_ptr, out_ptr, live, GROUP, DIM, WIDTH, QUANT, TOGETHER)
            tl.store(count_ptr + pair, 0)
