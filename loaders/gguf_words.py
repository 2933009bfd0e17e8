"""Tools for converting GGUF blocks: eight byte-wide codes at a time, in 64-bit words.

Hosts are little-endian, so byte j of a word is the j-th of its eight codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Byte lanes of a 64-bit word. All stay positive, so torch's signed shifts act as logical ones.
LOW_NIBBLES = 0x0F0F0F0F0F0F0F0F
LOW_PAIRS = 0x0303030303030303
LOW_BITS = 0x0101010101010101


@dataclass(frozen=True, slots=True)
class Parts:
    """Where one chunk of n rows of B blocks is written: views of the output tensors.

    Attributes:
        codes: uint8 [n, B, bytes of codes per block].
        scales: float16 or float32 [n, B, groups per block].
        zeros: offsets of the same shape and dtype as ``scales``, or None.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None


def words_of(part: Tensor) -> Tensor:
    """uint8 [..., 8 m] to int64 [..., m]; always a copy, since a view may be unaligned."""
    return part.clone(memory_format=torch.contiguous_format).view(torch.int64)


def half(part: Tensor) -> Tensor:
    """uint8 [..., 2] to float16 [..., 1]."""
    return part.clone(memory_format=torch.contiguous_format).view(torch.float16)


def put(codes: Tensor, words: Tensor) -> None:
    """Write words [..., m] of byte-wide codes to uint8 [..., m, bits] as a bit stream."""
    bits = codes.shape[-1]
    codes.copy_(_squeeze(words, bits)[..., :bits])


def nibbles(words: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high nibble of every byte of words [..., m], as words [..., m] of codes."""
    return words & LOW_NIBBLES, (words >> 4) & LOW_NIBBLES


def put_nibbles(codes: Tensor, qs: Tensor) -> None:
    """Split-half nibbles qs uint8 [..., C] to the 4-bit stream codes uint8 [..., C].

    The low nibbles are the first C codes, the high ones the second.
    """
    low, high = nibbles(words_of(qs))
    first, second = codes.unflatten(-1, (2, -1, 4)).unbind(-3)
    put(first, low)
    put(second, high)


def _squeeze(words: Tensor, bits: int) -> Tensor:
    """Close the gaps between eight ``bits``-bit codes in the bytes of each int64 word.

    Returns uint8 [..., m, 8] of which the first ``bits`` bytes hold the codes as a bit stream.
    Each of three steps joins neighbouring fields: 8 -> 16 -> 32 -> 64 bits.
    """
    gap = 8 - bits
    width = bits
    for lane in (16, 32, 64):
        low = sum(((1 << width) - 1) << at for at in range(0, 64, lane))
        upper = words >> gap
        upper &= low << width
        words = words & low
        words |= upper
        width, gap = 2 * width, 2 * gap
    return words.view(torch.uint8).view(*words.shape, 8)
