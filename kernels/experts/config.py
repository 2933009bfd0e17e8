"""Sizes of the kernels around a mixture's products: pure functions of shapes."""

from __future__ import annotations

MOST_EXPERTS = 1024
"""Most experts of a layer; a program holds a few rows of as many numbers in registers."""

_CELLS = 4096
"""Numbers of a table by experts that four warps hold: 32 a lane."""


def padded_experts(count: int) -> int:
    """Experts padded to a power of two, at least 16."""
    return max(16, 1 << (count - 1).bit_length())


def chunk_tokens(count: int) -> int:
    """Tokens that one program routes."""
    return min(64, _CELLS // padded_experts(count))


def pair_block(count: int) -> int:
    """Pairs of token and expert that are placed at once."""
    return min(64, _CELLS // padded_experts(count))


def row_block(width: int) -> int:
    """Columns of a row that one program copies or adds."""
    return min(1024, max(128, 1 << (width - 1).bit_length()))


def tile_count(pairs: int, count: int, rows: int) -> int:
    """Tiles of ``rows`` that are enough for so many pairs, however they fall on the experts."""
    return pairs // rows + min(count, pairs)
