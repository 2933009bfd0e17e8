"""Tile choices of the row-wise ops: pure functions of shapes."""

from __future__ import annotations

MAX_ROW = 32768
"""Longest row that one program holds in registers (16 warps, 64 values a lane)."""


def next_power_of_2(n: int) -> int:
    """Smallest power of two >= ``n``; 1 for 0."""
    return 1 << max(0, n - 1).bit_length()


def row_tile(width: int, group: int = 0) -> tuple[int, int]:
    """(padded row, warps): 8 to 16 values a lane while 16 warps allow it."""
    block = max(next_power_of_2(width), group, 128)
    return block, max(1, min(16, block // 512))


def gated_tile(width: int, group: int = 0) -> tuple[int, int]:
    """(columns of a program, warps) of the activation kernel."""
    block = max(min(1024, next_power_of_2(width)), group)
    return block, max(1, min(8, block // 256))


def head_tile(heads: int, half: int) -> tuple[int, int]:
    """(heads of a program, warps) of the RoPE kernel: about 16 values a lane."""
    count = max(1, min(next_power_of_2(heads), 1024 // max(1, half)))
    return count, max(1, min(4, count * half // 256))
