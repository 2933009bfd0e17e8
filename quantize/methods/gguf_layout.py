"""Codes and scales to the bytes of GGUF blocks: what ``loaders/gguf/blocks.py`` reads, written.

Shape letters: N rows, K columns, B blocks of a row, E elements of a block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...loaders.gguf.types import TensorType
from .gguf_fit import BlockScales

_Put = Callable[[Tensor, Tensor, BlockScales], None]


def write_blocks(kind: TensorType, codes_NK: Tensor, scales: BlockScales) -> Tensor:
    """Raw blocks, uint8 [N, bytes of a row].

    Args:
        kind: block type, one of ``RULES``.
        codes_NK: uint8, the type's own codes: without sign, from 0 up.
        scales: of the blocks.
    """
    n, k = codes_NK.shape
    raw = torch.empty(n, k // kind.elements, kind.nbytes, dtype=torch.uint8)
    _LAYOUTS[kind.name](raw, codes_NK.view(n, -1, kind.elements), scales)
    return raw.view(n, -1)


def _bytes(numbers_NB: Tensor) -> Tensor:
    """float16 [N, B] as uint8 [N, B, 2]."""
    return numbers_NB.contiguous().unsqueeze(-1).view(torch.uint8)


def _nibbles(codes: Tensor, half: int) -> Tensor:
    """Runs of ``half`` low and ``half`` high nibbles: uint8 [N, B, E] to [N, B, E / 2]."""
    runs = codes.unflatten(-1, (-1, 2, half))
    return ((runs[..., 0, :] & 15) | (runs[..., 1, :] << 4)).flatten(-2)


def _bit(codes: Tensor, bit: int) -> Tensor:
    """A bit of codes [N, B, 256] as 32 bytes: bit r of byte e is that of element 32 r + e."""
    runs = ((codes >> bit) & 1).unflatten(-1, (8, 32))
    out = runs[..., 0, :].clone()
    for r in range(1, 8):
        out |= runs[..., r, :] << r
    return out


def _pairs(codes: Tensor) -> Tensor:
    """The low two bits of codes [N, B, 256] as 64 bytes, see ``_q2_k`` of the reader."""
    runs = (codes & 3).unflatten(-1, (2, 4, 32))
    out = runs[..., 0, :].clone()
    for r in range(1, 4):
        out |= runs[..., r, :] << (2 * r)
    return out.flatten(-2)


def _one_scale(raw: Tensor, codes: Tensor, scales: BlockScales) -> None:
    """Q4_0, Q4_1 and IQ4_NL: numbers, then nibbles."""
    _put_numbers(raw, scales)
    raw[..., -16:] = _nibbles(codes, 16)


def _five_bits(raw: Tensor, codes: Tensor, scales: BlockScales) -> None:
    _put_numbers(raw, scales)
    fifth = (codes >> 4).unflatten(-1, (4, 8))
    high = fifth[..., 0].clone()
    for j in range(1, 8):
        high |= fifth[..., j] << j
    raw[..., -20:-16] = high
    raw[..., -16:] = _nibbles(codes, 16)


def _put_numbers(raw: Tensor, scales: BlockScales) -> None:
    raw[..., :2] = _bytes(scales.scale)
    if scales.offset is not None:
        raw[..., 2:4] = _bytes(scales.offset)


def _q8_0(raw: Tensor, codes: Tensor, scales: BlockScales) -> None:
    raw[..., :2] = _bytes(scales.scale)
    torch.bitwise_xor(codes, 128, out=raw[..., 2:])


def _integers(scales: BlockScales) -> Tensor:
    assert scales.scales is not None
    return scales.scales


def _q2_k(raw: Tensor, codes: Tensor, scales: BlockScales) -> None:
    assert scales.offset is not None and scales.offsets is not None
    raw[..., :16] = (_integers(scales) | (scales.offsets << 4)).to(torch.uint8)
    raw[..., 16:80] = _pairs(codes)
    raw[..., 80:82], raw[..., 82:84] = _bytes(scales.scale), _bytes(scales.offset)


def _q3_k(raw: Tensor, codes: Tensor, scales: BlockScales) -> None:
    raw[..., :32] = _bit(codes, 2)
    raw[..., 32:96] = _pairs(codes)
    s = (_integers(scales) + 32).to(torch.uint8)
    raw[..., 96:104] = (s[..., :8] & 15) | ((s[..., 8:] & 15) << 4)
    high = (s >> 4).unflatten(-1, (4, 4))
    raw[..., 104:108] = (
        high[..., 0, :] | (high[..., 1, :] << 2) | (high[..., 2, :] << 4) | (high[..., 3, :] << 6)
    )
    raw[..., 108:] = _bytes(scales.scale)


def _put_six_bits(raw: Tensor, scales: BlockScales) -> None:
    """Numbers, scales and offsets of Q4_K and Q5_K: 16 bytes."""
    assert scales.offset is not None and scales.offsets is not None
    s, m = _integers(scales).to(torch.uint8), scales.offsets.to(torch.uint8)
    raw[..., :2], raw[..., 2:4] = _bytes(scales.scale), _bytes(scales.offset)
    raw[..., 4:8] = s[..., :4] | ((s[..., 4:] >> 4) << 6)
    raw[..., 8:12] = m[..., :4] | ((m[..., 4:] >> 4) << 6)
    raw[..., 12:16] = (s[..., 4:] & 15) | ((m[..., 4:] & 15) << 4)


def _q4_k(raw: Tensor, codes: Tensor, scales: BlockScales) -> None:
    _put_six_bits(raw, scales)
    raw[..., 16:] = _nibbles(codes, 32)


def _q5_k(raw: Tensor, codes: Tensor, scales: BlockScales) -> None:
    _put_six_bits(raw, scales)
    raw[..., 16:48] = _bit(codes, 4)
    raw[..., 48:] = _nibbles(codes, 32)


def _q6_k(raw: Tensor, codes: Tensor, scales: BlockScales) -> None:
    raw[..., :128] = _nibbles(codes, 64)
    high = (codes >> 4).unflatten(-1, (2, 4, 32))
    out = high[..., 0, :].clone()
    for r in range(1, 4):
        out |= high[..., r, :] << (2 * r)
    raw[..., 128:192] = out.flatten(-2)
    raw[..., 192:208] = _integers(scales).to(torch.int8).view(torch.uint8)
    raw[..., 208:] = _bytes(scales.scale)


def _iq4_xs(raw: Tensor, codes: Tensor, scales: BlockScales) -> None:
    s = (_integers(scales) + 32).to(torch.uint8)
    raw[..., :2] = _bytes(scales.scale)
    high, low = (s >> 4).unflatten(-1, (2, 4)), (s & 15).unflatten(-1, (4, 2))
    raw[..., 2:4] = high[..., 0] | (high[..., 1] << 2) | (high[..., 2] << 4) | (high[..., 3] << 6)
    raw[..., 4:8] = low[..., 0] | (low[..., 1] << 4)
    raw[..., 8:] = _nibbles(codes, 16)


_LAYOUTS: dict[str, _Put] = {
    **dict.fromkeys(("Q4_0", "Q4_1", "IQ4_NL"), _one_scale),
    **dict.fromkeys(("Q5_0", "Q5_1"), _five_bits),
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_XS": _iq4_xs,
}
