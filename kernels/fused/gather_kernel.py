"""Inputs of a step, gathered on the device from the rows that hold requests.

For token t of row r = rows[t] at position p = positions[t]: ``ids[t] = tokens[r, p]``,
``slots[t] = tables[r, p // S] * S + p % S``, ``rope[t] = rope_table[p + rope_shift[t]]``. A
negative row or position is padding: id 0, slot -1, angle 0.

Grid (T,). tokens int64 [R, context]; tables int32 [R, W]; rope_table float32 [P, 2 F].
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["tokens_stride", "tables_stride"])
def gather_kernel(
    rows_ptr,
    positions_ptr,
    tokens_ptr,
    tables_ptr,
    rope_table_ptr,
    rope_shift_ptr,
    ids_ptr,
    slots_ptr,
    rope_ptr,
    tokens_stride,
    tables_stride,
    PAGE: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """One token."""
    t = tl.program_id(0)
    row = tl.load(rows_ptr + t).to(tl.int64)
    position = tl.load(positions_ptr + t).to(tl.int64)
    real = (row >= 0) & (position >= 0)
    token = tl.load(tokens_ptr + row * tokens_stride + position, mask=real, other=0)
    block = tl.load(tables_ptr + row * tables_stride + position // PAGE, mask=real, other=0)
    slot = tl.where(real, block.to(tl.int64) * PAGE + position % PAGE, -1)
    tl.store(ids_ptr + t, token)
    tl.store(slots_ptr + t, slot)
    columns = tl.arange(0, TILE)
    inside = columns < COLUMNS
    line = position
    if SHIFT:
        line += tl.load(rope_shift_ptr + t)
    still = tl.where(columns < COLUMNS // 2, 1.0, 0.0)
    angles = tl.load(
        rope_table_ptr + line * COLUMNS + columns,
        mask=columns < tl.where(real, COLUMNS, 0),
        other=0.0,
    )
    tl.store(
        rope_ptr + t.to(tl.int64) * COLUMNS + columns, tl.where(real, angles, still), mask=inside
    )
