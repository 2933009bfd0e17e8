"""What the choosers of several kinds of kernel have in common; pure functions."""

from __future__ import annotations

FLOAT8_ARCH = 89
"""The first compute capability with instructions for float8."""


def tensor_memory(arch: int) -> bool:
    """Whether products of 4 and more warps take their operands from tensor memory (sm_100).

    Weights made in registers would have to be moved there, at 12 to 25 instructions per weight;
    two warps use the older instruction, which reads registers, so tiles stay at two.
    """
    return 100 <= arch < 120


def crossover(arch: int) -> int:
    """Rows above which a dequantized dense product is faster than any fused kernel."""
    if tensor_memory(arch):
        return 64
    return 512 if arch == 90 else 256


def split_count(tiles: int, slices: int, programs: int, cap: int) -> int:
    """Splits of K so that about ``programs`` run, each with at least 4 slices, at most ``cap``."""
    wanted = min(-(-programs // tiles), slices // 4, cap)
    if wanted <= 1:
        return 1
    per_split = -(-slices // wanted)
    return -(-slices // per_split)


def turn_splits(tiles: int, slices: int, programs: int, cap: int) -> int:
    """Splits of K, at most ``cap``, with which the last of all programs ends soonest.

    As many as ``programs`` run at once, in turns of as many slices as a split has and about 4 more
    for its beginning and end.
    """
    best, least = 1, 0
    for wanted in range(1, max(1, min(slices // 4, cap)) + 1):
        each = -(-slices // wanted)
        splits = -(-slices // each)
        spent = -(-tiles * splits // programs) * (each + 4)
        if wanted == 1 or spent < least:
            best, least = splits, spent
    return best
