"""The order in which W4A8 wants the columns of rounded inputs, slice of 128 by slice.

That is how 4-bit codes come out of their words (w4a8/codes.py). ``PLAIN`` changes nothing.
"""

# Device code is not Python to a type checker.
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

from typing import Literal

import triton
import triton.language as tl

SLICE = 128
"""Columns of a slice."""
ColumnOrder = Literal["plain", "together", "apart"]
TOGETHER: ColumnOrder = "together"
"""Blocks of 64 with k of 0 to 31 and 64 to 95, then with the others."""
APART: ColumnOrder = "apart"
"""Blocks of 32 consecutive k."""


@triton.jit
def column_at(place, ORDER: tl.constexpr):
    """The column that lies at a place; int32 of any shape."""
    at = place
    if ORDER == "together":
        # Of 64: register 16, lane 4, element 2, half of the slice 1.
        c = place % 64
        k = c // 16 * 8 + c // 4 % 4 * 2 + c // 2 % 2 + c % 2 * 64
        at = place // 128 * 128 + place // 64 % 2 * 32 + k
    elif ORDER == "apart":
        # Of 32: pair of registers 16, lane 4, register of the pair 2, element 1.
        c = place % 32
        at = place // 32 * 32 + c // 16 * 16 + c // 4 % 4 * 2 + c // 2 % 2 * 8 + c % 2
    return at


def column_order(order: ColumnOrder) -> list[int]:
    """Which of 128 columns lies at each place of a slice."""
    if order == "plain":
        return list(range(SLICE))
    if order == "apart":
        return [
            16 * pair + 8 * register + 2 * lane + element
            for pair in range(8)
            for lane in range(4)
            for register in range(2)
            for element in range(2)
        ]
    return [
        32 * block + 64 * upper + 8 * register + 2 * lane + element
        for block in range(2)
        for register in range(4)
        for lane in range(4)
        for element in range(2)
        for upper in range(2)
    ]
