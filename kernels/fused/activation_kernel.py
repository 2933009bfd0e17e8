"""``act(gate) * up`` with optional group sums and 8-bit codes.

``silu(x) = x / (1 + exp(-x))``; ``gelu_tanh(x) = x / (1 + exp(-2 c (x + 0.044715 x**3)))`` with
``c = sqrt(2 / pi)``, the same as ``0.5 x (1 + tanh(..))``. float32, rounded once.

CLIPPED, whatever GELU is: ``g / (1 + exp(-1.702 g)) * (u + 1)`` with g the gate up to 7 and u up
within -7 to 7 (gpt-oss).

``gated_kernel``: grid (T, I / BLOCK). ``gated_quant_kernel``: grid (T,), two passes over the row,
the second of which finds it in the cache, so that rows may have any length. gate_up [T, 2 I] fp16,
bf16 or fp32. Ragged I. Deterministic.
"""

# Device code: triton's stubs do not know that constants become constexprs and kernels tensors.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportAttributeAccessIssue=false, reportOptionalOperand=false

from __future__ import annotations

import triton
import triton.language as tl

from ..device.rounding import codes_of, narrow, row_scale
from .row import store_sums


@triton.jit
def gate(row_ptr, columns, WIDTH, GELU: tl.constexpr, CLIPPED: tl.constexpr, DTYPE: tl.constexpr):
    """The op on some columns of one row, rounded to ``DTYPE``, as float32; zeros past WIDTH."""
    inside = columns < WIDTH
    x = tl.load(row_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(row_ptr + WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    if CLIPPED:
        # ``where``, unlike a minimum, keeps what is no number. Products and sums are compared,
        # which rounding leaves in order: numbers as loaded would be compared in 16 bits.
        inner = 1.702 * x
        x = tl.where(inner > 11.914, 7.0, x)
        inner = tl.where(inner > 11.914, 11.914, inner)
        up = up + 1.0
        up = tl.where(up > 8.0, 8.0, tl.where(up < -6.0, -6.0, up))
    elif GELU:
        inner = 1.5957691216057308 * x * tl.fma(0.044715 * x, x, tl.full(x.shape, 1.0, tl.float32))
    else:
        inner = x
    # exp overflows to inf for a large negative argument, and x / inf is the right limit, 0.
    y = x / (1.0 + tl.exp(-inner)) * up
    return narrow(y, DTYPE).to(tl.float32)


@triton.jit
def gated_kernel(
    x_ptr,
    out_ptr,
    sums_ptr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    GELU: tl.constexpr,
    CLIPPED: tl.constexpr,
    SUMS: tl.constexpr,
):
    """BLOCK columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * BLOCK
    columns = begin + tl.arange(0, BLOCK)
    y = gate(x_ptr + row * (2 * WIDTH), columns, WIDTH, GELU, CLIPPED, out_ptr.dtype.element_ty)
    tl.store(
        out_ptr + row * WIDTH + columns, narrow(y, out_ptr.dtype.element_ty), mask=columns < WIDTH
    )
    if SUMS:
        groups: tl.constexpr = (WIDTH + GROUP - 1) // GROUP
        start = begin // GROUP
        store_sums(sums_ptr + row * groups + start, y, groups - start, GROUP)


@triton.jit
def gated_quant_kernel(
    x_ptr,
    out_ptr,
    sums_ptr,
    codes_ptr,
    scales_ptr,
    zeros_ptr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    GELU: tl.constexpr,
    CLIPPED: tl.constexpr,
    STORE: tl.constexpr,
    SUMS: tl.constexpr,
    STATIC: tl.constexpr,
    HAS_Z: tl.constexpr,
    TOP: tl.constexpr,
):
    """One row: its reach, then its codes as ``device.rounding`` makes them, padded to 16."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    PADDED: tl.constexpr = (WIDTH + 15) // 16 * 16
    row = tl.program_id(0).to(tl.int64)
    x_row = x_ptr + row * (2 * WIDTH)
    groups: tl.constexpr = (WIDTH + GROUP - 1) // GROUP
    high = tl.zeros((BLOCK,), tl.float32)
    low = tl.zeros((BLOCK,), tl.float32)
    poison = tl.zeros((BLOCK,), tl.float32)
    if STORE or SUMS or not STATIC:
        for begin in range(0, WIDTH, BLOCK):
            columns = begin + tl.arange(0, BLOCK)
            y = gate(x_row, columns, WIDTH, GELU, CLIPPED, DTYPE)
            high = tl.maximum(high, y if HAS_Z else tl.abs(y))
            low = tl.minimum(low, y)
            poison += y * 0.0
            if STORE:
                tl.store(out_ptr + row * WIDTH + columns, narrow(y, DTYPE), mask=columns < WIDTH)
            if SUMS:
                start = begin // GROUP
                store_sums(sums_ptr + row * groups + start, y, groups - start, GROUP)
    scale, zero = row_scale(
        tl.max(high, 0), tl.min(low, 0), tl.sum(poison, 0),
        scales_ptr, zeros_ptr, row, STATIC, HAS_Z, TOP,
    )  # fmt: skip
    for begin in range(0, PADDED, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        y = gate(x_row, columns, WIDTH, GELU, CLIPPED, DTYPE)
        codes = codes_of(y, scale, zero, -128.0, codes_ptr.dtype.element_ty)
        tl.store(codes_ptr + row * PADDED + columns, codes, mask=columns < PADDED)
