"""GGUF blocks whose numbers are points of a grid: IQ1, IQ2 and IQ3.

A block has indices into a table of points, 4 or 8 magnitudes each, and signs. The tables cannot be
derived; they come from the ``gguf`` package. Here a magnitude becomes its place among the few that
a type has, the sign is bit 3 of the code, and the format's table (:mod:`.types`) has the values.
IQ1 has no signs but a shift of all eight numbers up or down, which takes that bit.

Points are looked up as words: eight codes of a byte each, or four in half a word. The other terms
are those of :mod:`.block_layouts`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.formats.bit_stream import put
from .block_layouts import BlockViews, half, spread_bits

_SIGN = 3  # the bit of a code that negates, or shifts down


@functools.cache
def grid_words(name: str) -> Tensor:
    """The points of a type as int64 words of codes: [points]; four codes each for IQ3."""
    from gguf import quants  # with what it imports, for those who have such files

    owner = getattr(quants, {"IQ1_M": "IQ1_S"}.get(name, name))
    owner.init_grid()
    points = torch.from_numpy(owner.grid).squeeze()
    magnitudes = torch.tensor(owner.grid_map, dtype=points.dtype)
    codes = (points.unsqueeze(-1) == magnitudes).to(torch.uint8).argmax(-1)
    shifts = 8 * torch.arange(codes.shape[-1])
    return (codes << shifts).sum(-1)


@functools.cache
def _sign_words() -> Tensor:
    """int64 [128]: seven signs, and an eighth that makes the number of negative ones even."""
    seven = torch.arange(128)
    parity = sum((seven >> bit) & 1 for bit in range(7)) & 1
    return spread_bits((seven | (parity << 7)).to(torch.uint8)) << _SIGN


def _iq2_xxs(raw: Tensor, out: BlockViews) -> None:
    """Eight groups of 32: four indices, four times seven signs, 4 bits of scale; [n, B, 66]."""
    parts = raw[..., 2:].unflatten(-1, (8, 8)).long()
    signs, scale = _packed_signs(parts[..., 4:])
    put(out.codes, (grid_words("IQ2_XXS")[parts[..., :4]] | signs).flatten(-2))
    _scale_quarter(raw[..., :2], scale, out)


def _iq2_xs(raw: Tensor, out: BlockViews) -> None:
    """32 times an index of 9 bits and seven signs, 16 scales of 4 bits: [n, B, 74]."""
    pairs = _u16(raw[..., 2:66])
    put(out.codes, grid_words("IQ2_XS")[pairs & 511] | _sign_words()[pairs >> 9])
    _scale_quarter(raw[..., :2], _nibble_pairs(raw[..., 66:]), out)


def _iq2_s(raw: Tensor, out: BlockViews) -> None:
    """32 indices of 10 bits, 32 times eight signs, 16 scales of 4 bits: [n, B, 82]."""
    high = _fields(raw[..., 66:74].long(), (0, 2, 4, 6), 3)
    index = raw[..., 2:34].long() | (high << 8)
    put(out.codes, grid_words("IQ2_S")[index] | (spread_bits(raw[..., 34:66]) << _SIGN))
    _scale_quarter(raw[..., :2], _nibble_pairs(raw[..., 74:]), out)


def _iq3_xxs(raw: Tensor, out: BlockViews) -> None:
    """64 indices, eight times four times seven signs and 4 bits of scale: [n, B, 98]."""
    signs, scale = _packed_signs(raw[..., 66:].unflatten(-1, (8, 4)).long())
    words = _joined(grid_words("IQ3_XXS")[raw[..., 2:66].long()])
    put(out.codes, words | signs.flatten(-2))
    out.scales.copy_(half(raw[..., :2]).float() * (scale.float() + 0.5) * 0.5)


def _iq3_s(raw: Tensor, out: BlockViews) -> None:
    """64 indices of 9 bits, 32 times eight signs, eight scales of 4 bits: [n, B, 110]."""
    index = raw[..., 2:66].long() | (_fields(raw[..., 66:74].long(), range(8), 1) << 8)
    signs = spread_bits(raw[..., 74:106]) << _SIGN
    put(out.codes, _joined(grid_words("IQ3_S")[index]) | signs)
    scale = 1 + 2 * _nibble_pairs(raw[..., 106:])
    torch.mul(half(raw[..., :2]).float(), scale.float(), out=out.scales)


def _iq1_s(raw: Tensor, out: BlockViews) -> None:
    """32 indices of 11 bits, eight scales of 3 bits and shifts of an eighth: [n, B, 50]."""
    heads = _u16(raw[..., 34:])
    index = raw[..., 2:34].long() | (_fields(heads, (0, 3, 6, 9), 7) << 8)
    down = (heads >> 15).repeat_interleave(4, -1)
    _put_shifted(out, "IQ1_S", index, down)
    _scale_eighth(half(raw[..., :2]), (heads >> 12) & 7, out)


def _iq1_m(raw: Tensor, out: BlockViews) -> None:
    """32 indices of 11 bits with a shift each, 16 scales of 3 bits; the float16 that multiplies
    them is in the highest nibbles of their words: [n, B, 56].
    """
    heads = _fields(raw[..., 32:48].long(), (0, 4), 15)
    _put_shifted(out, "IQ1_M", raw[..., :32].long() | ((heads & 7) << 8), heads >> 3)
    words = _u16(raw[..., 48:])
    nibbles = (words >> 12) << torch.tensor([0, 4, 8, 12])
    d = nibbles.sum(-1, keepdim=True).to(torch.uint16).view(torch.float16)
    _scale_eighth(d, _fields(words, (0, 3, 6, 9), 7), out)


def _put_shifted(out: BlockViews, name: str, index: Tensor, down: Tensor) -> None:
    """Codes of points [..., 32], in the second half of the table where ``down`` [..., 32] is 1."""
    put(out.codes, grid_words(name)[index] | (down * (0x0101010101010101 << _SIGN)))


def _scale_quarter(d: Tensor, scale: Tensor, out: BlockViews) -> None:
    """``d (1/2 + scale) / 4``, rounded in this order."""
    out.scales.copy_(half(d).float() * (scale.float() + 0.5) * 0.25)


def _scale_eighth(d: Tensor, scale: Tensor, out: BlockViews) -> None:
    """``d (2 scale + 1)``; an eighth, because the table counts in eighths."""
    out.scales.copy_(d.float() * (2 * scale + 1).float() * 0.125)


def _packed_signs(octets: Tensor) -> tuple[Tensor, Tensor]:
    """int64 [..., 8, 4], bytes of a number of 32 bits -> words of signs [..., 8, 4] from four times
    seven bits, and its four highest bits [..., 8].
    """
    number = (octets << torch.tensor([0, 8, 16, 24])).sum(-1)
    sevens = (number.unsqueeze(-1) >> torch.tensor([0, 7, 14, 21])) & 127
    return _sign_words()[sevens], number >> 28


def _fields(numbers: Tensor, shifts: tuple[int, ...] | range, mask: int) -> Tensor:
    """int64 [..., m] to [..., m * shifts]: what is at each shift of each number, in this order."""
    return ((numbers.unsqueeze(-1) >> torch.tensor([*shifts])) & mask).flatten(-2)


def _nibble_pairs(octets: Tensor) -> Tensor:
    """uint8 [..., m] to int64 [..., 2 m], the low nibble of each byte first."""
    return _fields(octets.long(), (0, 4), 15)


def _u16(octets: Tensor) -> Tensor:
    """uint8 [..., 2 m] to int64 [..., m]."""
    pairs = octets.unflatten(-1, (-1, 2)).long()
    return pairs[..., 0] | (pairs[..., 1] << 8)


def _joined(words: Tensor) -> Tensor:
    """Words of four codes [..., 2 m] to words of eight [..., m]."""
    return words[..., 0::2] | (words[..., 1::2] << 32)


GRID_LAYOUTS: dict[str, Callable[[Tensor, BlockViews], None]] = {
    layout.__name__.lstrip("_"): layout
    for layout in (_iq1_s, _iq1_m, _iq2_xxs, _iq2_xs, _iq2_s, _iq3_xxs, _iq3_s)
}
"""Layouts of indices of points."""
