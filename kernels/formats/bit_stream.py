"""The canonical bit stream of codes: element k of a row occupies bits [k bits, (k + 1) bits).

The work is done on little-endian 64-bit words of eight byte-wide codes, whose gaps are closed or
opened in three steps, in chunks that fit the caches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Torch spreads operations of more elements over threads, and on a busy machine waiting for them
# at every step costs ten times the work. ``load`` may be called from several threads instead.
SERIAL = (1 << 15) - 1


def pack_codes(q_NK: Tensor, bits: int) -> Tensor:
    """Codes uint8 [N, K] to the canonical bit stream uint8 [N, ceil(K * bits / 8)].

    Bits of the last byte that no code reaches are 0. Inverse of :func:`unpack_codes`.
    """
    if bits == 8:
        return q_NK.contiguous()
    n, k = q_NK.shape
    nbytes, octets = -(-k * bits // 8), -(-k // 8)
    stream = q_NK.new_empty(n, octets * bits)
    for start, stop in _chunks(n, octets):
        # A copy where rows do not lie as whole words of memory.
        q = q_NK[start:stop]
        if k % 8:
            q = torch.nn.functional.pad(q, (0, -k % 8))
        elif not q.is_contiguous() or q.storage_offset() % 8:
            q = q.clone(memory_format=torch.contiguous_format)
        put(stream[start:stop], q.view(torch.int64))
    return stream if stream.shape[1] == nbytes else stream[:, :nbytes].contiguous()


def unpack_codes(codes: Tensor, bits: int, k: int) -> Tensor:
    """Canonical bit stream uint8 [N, ceil(K * bits / 8)] to codes uint8 [N, K]."""
    if bits == 8:
        return codes
    n, octets = codes.shape[0], -(-k // 8)
    if bits == 4:  # two to a byte need no words
        return torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)[:, :k]
    out = codes.new_empty(n, octets * 8)
    for start, stop in _chunks(n, octets):
        words = codes.new_zeros(stop - start, octets, 8)
        stream = codes[start:stop]
        if stream.shape[1] < octets * bits:
            stream = torch.nn.functional.pad(stream, (0, octets * bits - stream.shape[1]))
        words[..., :bits] = stream[:, : octets * bits].unflatten(-1, (octets, bits))
        out[start:stop].view(torch.int64).copy_(_spread(words.view(torch.int64)[..., 0], bits))
    return out if octets * 8 == k else out[:, :k]


def _chunks(rows: int, octets: int) -> list[tuple[int, int]]:
    """Ranges of rows with at most ``SERIAL`` words, at least one row each."""
    step = max(1, SERIAL // max(1, octets))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


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


def _spread(words: Tensor, bits: int) -> Tensor:
    """Inverse of :func:`_squeeze`, for int64 [..., m]; higher bits of the words are dropped."""
    for lane in (64, 32, 16):
        width = bits * lane // 16
        low = sum(((1 << width) - 1) << at for at in range(0, 64, lane))
        half = lane // 2
        upper = words << (half - width)
        upper &= low << half
        words = words & low
        words |= upper
    return words
