"""Tools for converting GGUF blocks: eight byte-wide codes at a time, in 64-bit words.

Hosts are little-endian, so byte j of a word is the j-th of its eight codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.formats.bit_stream import SERIAL
from ...kernels.formats.bit_stream import put as put

# Byte lanes of a 64-bit word. All stay positive, so torch's signed shifts act as logical ones.
LOW_NIBBLES = 0x0F0F0F0F0F0F0F0F
LOW_PAIRS = 0x0303030303030303
LOW_BITS = 0x0101010101010101
LOW_HALF = 0xFFFFFFFF
SIGN_BITS = ~0x7F7F7F7F7F7F7F7F


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
    """uint8 [n, ..., 8 m] to int64 [n, ..., m]; always a copy, since a view may be unaligned.

    Blocks and their fields start at even bytes, so 16-bit moves are safe and twice as fast.
    """
    words = part.new_empty(part.shape)
    rows = max(1, SERIAL * part.shape[0] // max(1, part.numel() // 2))
    pairs = words.view(torch.int16).split(rows), part.view(torch.int16).split(rows)
    for target, source in zip(*pairs, strict=True):
        target.copy_(source)
    return words.view(torch.int64)


def half(part: Tensor) -> Tensor:
    """uint8 [..., 2] to float16 [..., 1]."""
    return part.clone(memory_format=torch.contiguous_format).view(torch.float16)


def nibbles(words: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high nibble of every byte of words [..., m], as words [..., m] of codes."""
    return words & LOW_NIBBLES, (words >> 4) & LOW_NIBBLES


def put_nibbles(codes: Tensor, qs: Tensor) -> None:
    """Split-half nibbles qs uint8 [..., C] to the 4-bit stream codes uint8 [..., C].

    The low nibbles are the first C codes, the high ones the second; C is a multiple of 16.
    """
    words = words_of(qs)
    # Nibbles l0 h0 l1 h1 ... of a word become l0 l1 ... h0 h1 ...: a perfect unshuffle.
    for shift, mask in ((4, 0x00F000F000F000F0), (8, 0x0000FF000000FF00), (16, 0xFFFF0000)):
        swapped = words >> shift
        swapped ^= words
        swapped &= mask
        words ^= swapped
        swapped <<= shift
        words ^= swapped
    # Now the low half of each word holds first codes and the high half second ones.
    even, odd = words[..., 0::2], words[..., 1::2]
    first, second = codes.view(torch.int64).unflatten(-1, (2, -1)).unbind(-2)
    torch.bitwise_or(even & LOW_HALF, odd << 32, out=first)
    torch.bitwise_or((even >> 32) & LOW_HALF, odd & ~LOW_HALF, out=second)
