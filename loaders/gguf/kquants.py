"""GGUF's super-blocks of 256 elements (K-quants, IQ4_XS) to canonical codes.

Each function takes raw uint8 [n, B, block bytes] and fills the :class:`Parts` of those rows. The
scales are the products that the format defines, in float32 and in its order, so that dequantizing
gives the format's own numbers to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .words import LOW_BITS, LOW_PAIRS, Parts, half, nibbles, put, put_nibbles, words_of


def q2_k(raw: Tensor, out: Parts) -> None:
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


def q3_k(raw: Tensor, out: Parts) -> None:
    """Groups of 16 with a 6-bit scale of offset 32: raw uint8 [n, B, 110].

    The low two bits lie as in Q2_K; bit r of byte e of the mask is bit 2 of element 32 r + e.
    The format subtracts 4 where that bit is clear, so the code with it has offset 4.
    """
    mask = words_of(raw[..., :32]).unsqueeze(-2)
    runs = _pairs(raw[..., 32:96]).flatten(-3, -2)
    for run in range(8):
        runs[..., run, :] |= ((mask[..., 0, :] >> run) & LOW_BITS) << 2
    put(out.codes, runs.flatten(-2))
    low, high = raw[..., 96:104], raw[..., 104:108]
    low = torch.cat((low & 15, low >> 4), dim=-1)
    high = torch.cat([(high >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-1)
    scale = (low | (high << 4)).float() - 32
    torch.mul(half(raw[..., 108:]).float(), scale, out=out.scales)


def q4_k(raw: Tensor, out: Parts) -> None:
    """Groups of 32 with a 6-bit scale and a 6-bit minimum: raw uint8 [n, B, 144].

    Four chunks of 64 elements: 32 low nibbles, then 32 high ones.
    """
    _six_bit_scales(raw[..., :16], out)
    put_nibbles(out.codes.unflatten(-1, (4, 32)), raw[..., 16:].unflatten(-1, (4, 32)))


def q5_k(raw: Tensor, out: Parts) -> None:
    """Q4_K with a fifth bit: raw uint8 [n, B, 176].

    Bit s of byte e of the 32 high bytes is bit 4 of element 32 s + e.
    """
    _six_bit_scales(raw[..., :16], out)
    high = words_of(raw[..., 16:48])
    halves = nibbles(words_of(raw[..., 48:]).unflatten(-1, (4, 4)))
    runs = torch.stack(halves, dim=-2).flatten(-3, -2)
    for run in range(8):
        runs[..., run, :] |= ((high >> run) & LOW_BITS) << 4
    put(out.codes, runs.flatten(-2))


def q6_k(raw: Tensor, out: Parts) -> None:
    """Groups of 16 with an int8 scale: raw uint8 [n, B, 210]."""
    low, high = nibbles(words_of(raw[..., :128]).unflatten(-1, (2, 2, 4)))
    pairs = words_of(raw[..., 128:192]).unflatten(-1, (2, 4))
    # Per chunk of 128 elements four runs of 32: low nibbles of both halves, then high ones.
    runs = torch.cat((low, high), dim=-2)
    for run in range(4):
        runs[..., run, :] |= ((pairs >> (2 * run)) & LOW_PAIRS) << 4
    put(out.codes, runs.flatten(-3))
    scale = raw[..., 192:208].view(torch.int8).float()
    torch.mul(half(raw[..., 208:]).float(), scale, out=out.scales)


def iq4_xs(raw: Tensor, out: Parts) -> None:
    """Groups of 32 with a 6-bit scale of offset 32, codes into a table: raw uint8 [n, B, 136]."""
    # The two high bits of scales 4 i to 4 i + 3 are byte i, and byte i of the low ones has 2 i
    # in its low nibble.
    high, low = raw[..., 2:4], raw[..., 4:8]
    high = torch.stack([(high >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-1).flatten(-2)
    low = torch.stack((low & 15, low >> 4), dim=-1).flatten(-2)
    scale = (low | (high << 4)).float() - 32
    torch.mul(half(raw[..., :2]).float(), scale, out=out.scales)
    put_nibbles(out.codes.unflatten(-1, (8, 16)), raw[..., 8:].unflatten(-1, (8, 16)))


def _pairs(qs: Tensor) -> Tensor:
    """uint8 [..., 64] to words [..., 2, 4, 4] of 2-bit codes: chunk, run of 32 elements, word."""
    words = words_of(qs).unflatten(-1, (2, 4))
    return torch.stack([(words >> shift) & LOW_PAIRS for shift in (0, 2, 4, 6)], dim=-2)


def _six_bit_scales(head: Tensor, out: Parts) -> None:
    """Scales and minima of Q4_K and Q5_K: head uint8 [n, B, 16] is d, dmin and eight of each."""
    assert out.zeros is not None
    d, dmin = half(head[..., 0:2]).float(), half(head[..., 2:4]).float()
    low, mid, high = head[..., 4:8], head[..., 8:12], head[..., 12:16]
    scale = torch.cat((low & 63, (high & 15) | ((low >> 2) & 48)), dim=-1)
    minimum = torch.cat((mid & 63, (high >> 4) | ((mid >> 2) & 48)), dim=-1)
    torch.mul(d, scale.float(), out=out.scales)
    torch.mul(dmin, minimum.float(), out=out.zeros)
    out.zeros.neg_()
