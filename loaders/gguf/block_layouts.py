"""GGUF blocks into packed codes and scales, a function for each layout of a block.

The work is done on little-endian 64-bit words, eight codes at a time, in chunks of rows that
fit the first-level caches; no array with one code per byte is ever built for the 4-bit types.
Hosts are little-endian, so byte j of a word is the j-th of its eight codes.

A layout takes raw uint8 [n, B, block bytes] and fills the :class:`BlockViews` of those rows. Scales
of blocks of 32 elements stay the float16 of the file. Those of super-blocks are the products that
the format defines, in float32 and in its order, so that dequantizing gives the format's own numbers
to the last bit.

Shape letters: N rows, K elements of a row, B blocks of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.formats.bit_stream import SERIAL, put

# Byte lanes of a 64-bit word. All stay positive, so torch's signed shifts act as logical ones.
_LOW_NIBBLES = 0x0F0F0F0F0F0F0F0F
_LOW_PAIRS = 0x0303030303030303
_LOW_BITS = 0x0101010101010101
_LOW_HALF = 0xFFFFFFFF
_SIGN_BITS = ~0x7F7F7F7F7F7F7F7F


@dataclass(frozen=True, slots=True)
class BlockViews:
    """Where one chunk of n rows of B blocks is written: views of the output tensors.

    Attributes:
        codes: uint8 [n, B, bytes of codes per block].
        scales: float16 or float32 [n, B, groups per block]; uint8 where the file has a byte each.
        zeros: offsets of the same shape and dtype as ``scales``, or None.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None


def _q4_0(raw: Tensor, out: BlockViews) -> None:
    out.scales.copy_(half(raw[..., :2]))
    _put_nibbles(out.codes, raw[..., 2:])


def _q4_1(raw: Tensor, out: BlockViews) -> None:
    assert out.zeros is not None
    out.scales.copy_(half(raw[..., :2]))
    out.zeros.copy_(half(raw[..., 2:4]))
    _put_nibbles(out.codes, raw[..., 4:])


def _fifth_bits(qh: Tensor) -> Tensor:
    """Bit j of uint8 [..., 4] read as one u32 -> bit 4 of code j: int64 words [..., 4]."""
    return spread_bits(qh) << 4


def _put_five(codes: Tensor, qh: Tensor, qs: Tensor) -> None:
    low, high = _nibbles(words_of(qs))
    words = torch.cat((low, high), dim=-1) | _fifth_bits(qh)
    put(codes.flatten(-2), words.flatten(-2))


def _q5_0(raw: Tensor, out: BlockViews) -> None:
    out.scales.copy_(half(raw[..., :2]))
    _put_five(out.codes, raw[..., 2:6], raw[..., 6:])


def _q5_1(raw: Tensor, out: BlockViews) -> None:
    assert out.zeros is not None
    out.scales.copy_(half(raw[..., :2]))
    out.zeros.copy_(half(raw[..., 2:4]))
    _put_five(out.codes, raw[..., 4:8], raw[..., 8:])


def _q8_0(raw: Tensor, out: BlockViews) -> None:
    out.scales.copy_(half(raw[..., :2]))
    # Two's complement to offset 128: flip the sign bit.
    words = words_of(raw[..., 2:])
    torch.bitwise_xor(words, _SIGN_BITS, out=out.codes.view(torch.int64))


def _q2_k(raw: Tensor, out: BlockViews) -> None:
    """Groups of 16 with a 4-bit scale and a 4-bit minimum: raw uint8 [n, B, 84].

    Two chunks of 128 elements; byte e of a chunk's 32 holds elements e, e + 32, e + 64, e + 96.
    """
    assert out.zeros is not None
    d, dmin = half(raw[..., 80:82]).float(), half(raw[..., 82:84]).float()
    scales = raw[..., :16]
    torch.mul(d, (scales & 15).float(), out=out.scales)
    torch.mul(dmin, (scales >> 4).float(), out=out.zeros)
    out.zeros.neg_()
    put(out.codes, _pairs(raw[..., 16:80]).flatten(-3))


def _q3_k(raw: Tensor, out: BlockViews) -> None:
    """Groups of 16 with a 6-bit scale of offset 32: raw uint8 [n, B, 110].

    The low two bits lie as in Q2_K; bit r of byte e of the mask is bit 2 of element 32 r + e.
    The format subtracts 4 where that bit is clear, so the code with it has offset 4.
    """
    mask = words_of(raw[..., :32]).unsqueeze(-2)
    runs = _pairs(raw[..., 32:96]).flatten(-3, -2)
    for run in range(8):
        runs[..., run, :] |= ((mask[..., 0, :] >> run) & _LOW_BITS) << 2
    put(out.codes, runs.flatten(-2))
    low, high = raw[..., 96:104], raw[..., 104:108]
    low = torch.cat((low & 15, low >> 4), dim=-1)
    high = torch.cat([(high >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-1)
    scale = (low | (high << 4)).float() - 32
    torch.mul(half(raw[..., 108:]).float(), scale, out=out.scales)


def _q4_k(raw: Tensor, out: BlockViews) -> None:
    """Groups of 32 with a 6-bit scale and a 6-bit minimum: raw uint8 [n, B, 144].

    Four chunks of 64 elements: 32 low nibbles, then 32 high ones.
    """
    _six_bit_scales(raw[..., :16], out)
    _put_nibbles(out.codes.unflatten(-1, (4, 32)), raw[..., 16:].unflatten(-1, (4, 32)))


def _q5_k(raw: Tensor, out: BlockViews) -> None:
    """Q4_K with a fifth bit: raw uint8 [n, B, 176].

    Bit s of byte e of the 32 high bytes is bit 4 of element 32 s + e.
    """
    _six_bit_scales(raw[..., :16], out)
    high = words_of(raw[..., 16:48])
    halves = _nibbles(words_of(raw[..., 48:]).unflatten(-1, (4, 4)))
    runs = torch.stack(halves, dim=-2).flatten(-3, -2)
    for run in range(8):
        runs[..., run, :] |= ((high >> run) & _LOW_BITS) << 4
    put(out.codes, runs.flatten(-2))


def _q6_k(raw: Tensor, out: BlockViews) -> None:
    """Groups of 16 with an int8 scale: raw uint8 [n, B, 210]."""
    low, high = _nibbles(words_of(raw[..., :128]).unflatten(-1, (2, 2, 4)))
    pairs = words_of(raw[..., 128:192]).unflatten(-1, (2, 4))
    # Per chunk of 128 elements four runs of 32: low nibbles of both halves, then high ones.
    runs = torch.cat((low, high), dim=-2)
    for run in range(4):
        runs[..., run, :] |= ((pairs >> (2 * run)) & _LOW_PAIRS) << 4
    put(out.codes, runs.flatten(-3))
    scale = raw[..., 192:208].view(torch.int8).float()
    torch.mul(half(raw[..., 208:]).float(), scale, out=out.scales)


def _iq4_xs(raw: Tensor, out: BlockViews) -> None:
    """Groups of 32 with a 6-bit scale of offset 32, codes into a table: raw uint8 [n, B, 136]."""
    # The two high bits of scales 4 i to 4 i + 3 are byte i, and byte i of the low ones has 2 i
    # in its low nibble.
    high, low = raw[..., 2:4], raw[..., 4:8]
    high = torch.stack([(high >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-1).flatten(-2)
    low = torch.stack((low & 15, low >> 4), dim=-1).flatten(-2)
    scale = (low | (high << 4)).float() - 32
    torch.mul(half(raw[..., :2]).float(), scale, out=out.scales)
    _put_nibbles(out.codes.unflatten(-1, (8, 16)), raw[..., 8:].unflatten(-1, (8, 16)))


def _mxfp4(raw: Tensor, out: BlockViews) -> None:
    """Groups of 32 with an exponent: raw uint8 [n, B, 17]."""
    out.scales.copy_(raw[..., :1])
    # Codes start at odd bytes of every second block.
    _put_nibbles(out.codes, raw[..., 1:].clone(memory_format=torch.contiguous_format))


def _nvfp4(raw: Tensor, out: BlockViews) -> None:
    """Four groups of 16 with a float8 scale each: raw uint8 [n, B, 36]."""
    out.scales.copy_(raw[..., :4])
    out.codes.view(torch.int64).copy_(_unshuffled(words_of(raw[..., 4:])))


def _pairs(qs: Tensor) -> Tensor:
    """uint8 [..., 64] to words [..., 2, 4, 4] of 2-bit codes: chunk, run of 32 elements, word."""
    words = words_of(qs).unflatten(-1, (2, 4))
    return torch.stack([(words >> shift) & _LOW_PAIRS for shift in (0, 2, 4, 6)], dim=-2)


def _six_bit_scales(head: Tensor, out: BlockViews) -> None:
    """Scales and minima of Q4_K and Q5_K: head uint8 [n, B, 16] is d, dmin and eight of each."""
    assert out.zeros is not None
    d, dmin = half(head[..., 0:2]).float(), half(head[..., 2:4]).float()
    low, mid, high = head[..., 4:8], head[..., 8:12], head[..., 12:16]
    scale = torch.cat((low & 63, (high & 15) | ((low >> 2) & 48)), dim=-1)
    minimum = torch.cat((mid & 63, (high >> 4) | ((mid >> 2) & 48)), dim=-1)
    torch.mul(d, scale.float(), out=out.scales)
    torch.mul(dmin, minimum.float(), out=out.zeros)
    out.zeros.neg_()


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


def _nibbles(words: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high nibble of every byte of words [..., m], as words [..., m] of codes."""
    return words & _LOW_NIBBLES, (words >> 4) & _LOW_NIBBLES


def _put_nibbles(codes: Tensor, qs: Tensor) -> None:
    """Split-half nibbles qs uint8 [..., C] to the 4-bit stream codes uint8 [..., C].

    The low nibbles are the first C codes, the high ones the second; C is a multiple of 16.
    """
    words = _unshuffled(words_of(qs))
    # Now the low half of each word holds first codes and the high half second ones.
    even, odd = words[..., 0::2], words[..., 1::2]
    first, second = codes.view(torch.int64).unflatten(-1, (2, -1)).unbind(-2)
    torch.bitwise_or(even & _LOW_HALF, odd << 32, out=first)
    torch.bitwise_or((even >> 32) & _LOW_HALF, odd & ~_LOW_HALF, out=second)


def _unshuffled(words: Tensor) -> Tensor:
    """Nibbles l0 h0 l1 h1 ... of each word put in the order l0 l1 ... h0 h1 ..., in place."""
    for shift, mask in ((4, 0x00F000F000F000F0), (8, 0x0000FF000000FF00), (16, 0xFFFF0000)):
        swapped = words >> shift
        swapped ^= words
        swapped &= mask
        words ^= swapped
        swapped <<= shift
        words ^= swapped
    return words


def _tq1_0(raw: Tensor, out: BlockViews) -> None:
    """One scale of 256 numbers from -1 to 1, five in a byte: raw uint8 [n, B, 54].

    A byte is the fraction of 256 whose digits to base 3 are the numbers, the first one leading: a
    product with a power of 3 brings a digit behind the point. The first 32 bytes hold elements
    e, e + 32, ... e + 128, the next 16 elements 160 + e, 176 + e, ..., the last four 240 + e, ...
    """
    out.scales.copy_(half(raw[..., 52:54]))
    digits = []
    for begin, end, count in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        part = raw[..., begin:end]
        # Products wrap around, which drops the digits before.
        digits += [((part * 3**i).short() * 3 >> 8).to(torch.uint8) for i in range(count)]
    put(out.codes, torch.cat(digits, dim=-1).view(torch.int64))


def _tq2_0(raw: Tensor, out: BlockViews) -> None:
    """One scale of 256 numbers from -1 to 2 in two bits: raw uint8 [n, B, 66]."""
    out.scales.copy_(half(raw[..., 64:66]))
    put(out.codes, _pairs(raw[..., :64]).flatten(-3))


def _q1_0(raw: Tensor, out: BlockViews) -> None:
    """One scale of 128 signs, a bit each: raw uint8 [n, B, 18]. A code is twice its bit."""
    out.scales.copy_(half(raw[..., :2]))
    put(out.codes, spread_bits(raw[..., 2:]) << 1)


def spread_bits(octets: Tensor) -> Tensor:
    """Bit j of each byte as byte j of a word: uint8 [...] to int64 [...]."""
    octets = octets.long()
    # The product has bit i of seven in bit 8 i, among others that the mask drops.
    bits = (octets & 0x7F) * 0x0002040810204081
    bits &= _LOW_BITS
    bits |= (octets >> 7) << 56
    return bits


LAYOUTS: dict[str, Callable[[Tensor, BlockViews], None]] = {
    layout.__name__.lstrip("_"): layout
    for layout in (
        *(_q4_0, _q4_1, _q5_0, _q5_1, _q8_0, _q2_k, _q3_k, _q4_k, _q5_k, _q6_k),
        *(_iq4_xs, _mxfp4, _nvfp4, _tq1_0, _tq2_0, _q1_0),
    )
}
"""Layouts of numbers that stand in the blocks themselves."""
