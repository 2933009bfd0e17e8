"""Prefill and chunked prefill: a block of one row's new tokens over all of its cached keys.

``out[t, h] = softmax(q[t, h] K^T scale) V`` over the positions 0..position of the token (or the
last ``window`` of them). The chunk's own keys are in the cache already, so the cached prefix and
the chunk are read in the same way, through the block table.

* Grid (P, J): a line of the host-built table for each block of at most BLOCK_Q tokens of a row,
  by KV head. The GROUP = H / J query heads of BLOCK_Q tokens are the rows of one tile, token by
  token, so keys are read once for all of them.
* table int32 [P, 4]: first token of the block in the step, number of tokens (0: padding, does
  nothing), position of the first token, line of the block table.
* q [T, H, E] fp16, bf16 or fp32; caches [B, J, PAGE, E] of the same type, or int8 with float32
  scales [B, J, PAGE]. The strides of q's tokens and of blocks are given in units of 16 elements.
* With SINKS each head has one more score, float32 [H], without a value.
* Pages that every row of the block sees whole run without masks; pages outside of the causal
  range or the window are never visited.
* Deterministic: no atomics, one program per output tile.
"""

# Device code: triton's stubs do not know that constants become constexprs and kernels tensors.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportAttributeAccessIssue=false, reportOptionalOperand=false

from __future__ import annotations

import triton
import triton.language as tl

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


@triton.jit(do_not_specialize=["q_stride", "block_stride", "scale_stride", "table_width", "window"])
def prefill_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    sinks_ptr,
    tables_ptr,
    work_ptr,
    out_ptr,
    q_stride,
    block_stride,
    scale_stride,
    table_width,
    window,
    factor,
    soft_cap,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    SINKS: tl.constexpr,
    QUANT: tl.constexpr,
    PTX: tl.constexpr,
    INTERPRET: tl.constexpr,
    APART: tl.constexpr,
):
    """One block of tokens for one KV head."""
    entry = work_ptr + tl.program_id(0) * 4
    head = tl.program_id(1)
    first_token = tl.load(entry)
    count = tl.load(entry + 1)
    position = tl.load(entry + 2)
    line = tl.load(entry + 3)
    if count == 0:
        return
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    member = rows % GROUP
    ahead_of_first = rows // GROUP
    inside = (ahead_of_first[:, None] < count) & (columns[None, :] < DIM)
    tile = tl.load(
        q_ptr
        + (first_token + ahead_of_first).to(tl.int64)[:, None] * q_stride * 16
        + (head * GROUP + member)[:, None] * DIM
        + columns[None, :],
        mask=inside,
        other=0.0,
    )
    q = query_planes(tile, QUANT)
    STORED: tl.constexpr = DIM // 2 if QUANT else DIM
    final = position + count - 1
    # Rows past the block's tokens see what its last token sees; nothing of them is stored.
    limits = tl.minimum(position + ahead_of_first, final)
    table = tables_ptr + line.to(tl.int64) * table_width
    k_head = k_ptr + head * (PAGE * STORED)
    v_head = v_ptr + head * (PAGE * STORED)
    k_scale_head = k_scale_ptr + head * PAGE
    v_scale_head = v_scale_ptr + head * PAGE
    top = tl.full((ROWS,), LOWEST, tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    if SINKS:
        top, mass = sink_state(sinks_ptr, head * GROUP + member, member < GROUP)
    acc = empty_sums(ROWS, WIDTH, QUANT)
    begin = 0
    full_begin = 0
    end = (final + PAGE) // PAGE
    if WINDOW:
        begin = tl.maximum(position + 1 - window, 0) // PAGE
        full_begin = (tl.maximum(final + 1 - window, 0) + PAGE - 1) // PAGE
    full_end = tl.maximum((position + 1) // PAGE, full_begin)
    full_end = tl.minimum(full_end, end)
    if WINDOW:
        full_begin = tl.minimum(full_begin, full_end)
        for page in range(begin, full_begin):
            block = tl.load(table + page)
            top, mass, acc = attend_page(
                q, top, mass, acc, k_head, v_head, k_scale_head, v_scale_head, block, block_stride,
            scale_stride, page, limits, factor, soft_cap, window,
                PAGE, STORED, True, True, SOFT_CAP, QUANT, PTX, INTERPRET, APART,
            )  # fmt: skip
    following = tl.load(table + full_begin, mask=full_begin < full_end, other=0)
    for page in range(full_begin, full_end):
        block = following
        following = tl.load(table + page + 1, mask=page + 1 < full_end, other=0)
        top, mass, acc = attend_page(
            q, top, mass, acc, k_head, v_head, k_scale_head, v_scale_head, block,
            block_stride, scale_stride, page, limits, factor, soft_cap, window,
            PAGE, STORED, False, WINDOW, SOFT_CAP, QUANT, PTX, INTERPRET, APART,
        )  # fmt: skip
    for page in range(full_end, end):
        block = tl.load(table + page)
        top, mass, acc = attend_page(
            q, top, mass, acc, k_head, v_head, k_scale_head, v_scale_head, block,
            block_stride, scale_stride, page, limits, factor, soft_cap, window,
            PAGE, STORED, True, WINDOW, SOFT_CAP, QUANT, PTX, INTERPRET, APART,
        )  # fmt: skip
    # The line is read again (``shift`` is 0, which the compiler cannot know): addresses derived
    # from the first reading would be kept in registers, and spilled, all through the loops.
    shift = tl.load(entry + 1, volatile=True) - count
    rows = rows + shift
    ahead_of_first = rows // GROUP
    address = (
        (first_token + shift + ahead_of_first).to(tl.int64)[:, None] * (KV_HEADS * GROUP * DIM)
        + (head * GROUP + rows % GROUP)[:, None] * DIM
        + columns[None, :]
    )
    inside = (ahead_of_first[:, None] < count + shift) & (columns[None, :] < DIM)
    acc = joined_columns(acc, QUANT)
    out = narrow(normalized(acc, mass[:, None], QUANT), out_ptr.dtype.element_ty)
    tl.store(out_ptr + address, out, mask=inside)
