"""Tools for converting GGUF blocks: eight byte-wide codes at a time, in 64-bit words.

Hosts are little-endian, so byte j of a word is the j-th of its eight codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Byte lanes of a 64-bit word. All stay positive, so torch's signed shifts act as logical ones.
LOW_NIBBLES = 0x0F0F0F0F0F0F0F0F
LOW_PAIRS = 0x0303030303030303
LOW_BITS = 0x0101010101010101
LOW_HALF = 0xFFFFFFFF
SIGN_BITS = ~0x7F7F7F7F7F7F7F7F


# Torch spreads operations of more elements over threads, and on a busy machine waiting for them
# at every step costs ten times the work. ``load`` may be called from several threads instead.
SERIAL = (1 << 15) - 1


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


def put(codes: Tensor, words: Tensor) -> None:
    """Write byte-wide codes as a bit stream.

    Args:
        codes: uint8 [..., bytes], contiguous; takes ``bits`` bytes for each word.
        words: int64 [..., m] of eight codes each, no code wider than ``bits`` bits.
    """
    bits = codes.shape[-1] // words.shape[-1]
    words = _squeeze(words, bits)
    whole = 8 // math.gcd(8, bits)  # so many words fill 64-bit words of the stream
    if words.shape[-1] % whole:
        octets = words.view(torch.uint8).unflatten(-1, (-1, 8))
        codes.unflatten(-1, (-1, bits)).copy_(octets[..., :bits])
        return
    width = 8 * bits
    parts = words.unflatten(-1, (-1, whole)).unbind(-1)
    stream = codes.view(torch.int64).unflatten(-1, (-1, whole * bits // 8)).unbind(-1)
    for index, out in enumerate(stream):
        start = 64 * index
        first, last = start // width, (start + 63) // width
        out.copy_(parts[first] >> (start - first * width))
        for j in range(first + 1, last + 1):
            out |= parts[j] << (j * width - start)


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


def _squeeze(words: Tensor, bits: int) -> Tensor:
    """Close the gaps between eight ``bits``-bit codes in the bytes of each word.

    Returns int64 [..., m] whose lowest ``8 bits`` bits hold the codes as a bit stream.
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
    return words
