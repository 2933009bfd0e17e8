"""GGUF blocks to canonical weights, vectorised, straight into packed codes.

The work is done on little-endian 64-bit words, eight codes at a time, in chunks of rows that
fit the first-level caches; no array with one code per byte is ever built for the 4-bit types.
Hosts are little-endian, so byte j of a word is the j-th of its eight codes.

A layout takes raw uint8 [n, B, block bytes] and fills the :class:`_Blocks` of those rows. Scales of
blocks of 32 elements stay the float16 of the file. Those of super-blocks are the products that the
format defines, in float32 and in its order, so that dequantizing gives the format's own numbers to
the last bit.

Shape letters: N rows, K elements of a row, B blocks of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ...kernels.formats.bit_stream import SERIAL, put
from ...kernels.formats.canonical import QuantizedLinear, Weight
from ...kernels.formats.compact import ByteScales
from .types import DENSE_TYPES, SUPPORTED_TYPES, TensorType

# Bytes of raw blocks converted at a time: enough that starting an operation costs little beside
# doing it, and so few that no operation on 64-bit words is spread over threads (``SERIAL``).
_CHUNK_BYTES = 1 << 17

_DENSE_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Byte lanes of a 64-bit word. All stay positive, so torch's signed shifts act as logical ones.
_LOW_NIBBLES = 0x0F0F0F0F0F0F0F0F
_LOW_PAIRS = 0x0303030303030303
_LOW_BITS = 0x0101010101010101
_LOW_HALF = 0xFFFFFFFF
_SIGN_BITS = ~0x7F7F7F7F7F7F7F7F


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Where one chunk of n rows of B blocks is written: views of the output tensors.

    Attributes:
        codes: uint8 [n, B, bytes of codes per block].
        scales: float16 or float32 [n, B, groups per block]; uint8 where the file has a byte each.
        zeros: offsets of the same shape and dtype as ``scales``, or None.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None


def convert_tensor(
    name: str, kind: TensorType, shape: tuple[int, ...], raw: Tensor, factor: float = 1.0
) -> Weight:
    """A tensor's bytes as a canonical weight that owns its memory.

    Args:
        name: canonical name, for messages and for the result.
        kind: block type.
        shape: torch order; quantized types need [N, K].
        raw: uint8 [bytes], or [N, bytes of a row]; may be a view of the file.
        factor: of all scales of an NVFP4 tensor, which files have beside it.

    Returns:
        F32, F16 and BF16: a tensor of that dtype and shape. Others: a QuantizedLinear.

    Raises:
        UnsupportedModelError: the block type is not implemented.
        CheckpointError: a value, scale or minimum is NaN or infinite, or a vector is quantized.
    """
    if kind.name not in SUPPORTED_TYPES:
        raise UnsupportedModelError(
            f"tensor {name} has type {kind.name}; supported are {', '.join(SUPPORTED_TYPES)}",
            hint="use a file quantized to one of these types, such as Q4_K_M or Q4_0",
        )
    if kind.name in DENSE_TYPES:
        dense = raw.reshape(-1).clone().view(_DENSE_DTYPES[kind.name]).view(shape)
        _check_finite(name, kind, "value", dense.view(shape[0], -1))
        return dense
    if len(shape) != 2:
        raise CheckpointError(
            f"tensor {name} of shape {list(shape)} has type {kind.name}; expected "
            f"{', '.join(DENSE_TYPES)} for anything but a matrix"
        )
    return _convert_matrix(name, kind, shape, raw, factor)


def _convert_matrix(
    name: str, kind: TensorType, shape: tuple[int, ...], raw: Tensor, factor: float
) -> Weight:
    form, (n, k) = kind.format, shape
    assert form is not None
    blocks = k // kind.elements
    groups = kind.elements // form.group_size
    bits = form.bits
    raw_NBb = raw.view(n, blocks, kind.nbytes)
    codes = torch.empty(n, blocks, kind.elements * bits // 8, dtype=torch.uint8)
    dtype = _DENSE_DTYPES[kind.numbers] if kind.compact is None else torch.uint8
    scales = torch.empty(n, blocks, groups, dtype=dtype)
    zeros = torch.empty_like(scales) if form.zero == "float" else None
    step = max(1, _CHUNK_BYTES // (blocks * kind.nbytes))
    for start in range(0, n, step):
        rows = slice(start, start + step)
        part = _Blocks(codes[rows], scales[rows], None if zeros is None else zeros[rows])
        _LAYOUTS[kind.layout](raw_NBb[rows], part)
    scales, compact = scales.view(n, -1), None
    if kind.compact is not None:
        compact = _byte_scales(name, kind, scales, factor)
        scales, _ = compact.numbers()
    zeros = None if zeros is None else zeros.view(n, -1)
    # Exponents reach further than products with entries may.
    most = None if compact is None else scales * max(form.table)
    for label, values in (("scale", scales), ("minimum", zeros), ("largest weight", most)):
        if values is not None:
            _check_finite(name, kind, label, values)
    return QuantizedLinear(name, form, codes.view(n, -1), scales, zeros, k, compact=compact)


def _byte_scales(name: str, kind: TensorType, scales: Tensor, factor: float) -> ByteScales:
    """Bytes [N, G] as the floats that they are.

    Raises CheckpointError for a sign, which float8 scales have not.
    """
    if kind.name == "MXFP4":
        return ByteScales(scales.view(torch.float8_e8m0fnu))
    signed = (scales & 0x80).nonzero()
    if len(signed):
        row, group = (int(i) for i in signed[0])
        raise CheckpointError(
            f"tensor {name} ({kind.name}): scale of row {row}, group {group} is the byte "
            f"0x{int(scales[row, group]):02X}; expected at most 0x7E, which has no sign",
            hint="the file is damaged: download or quantize it again",
        )
    return ByteScales(scales.view(torch.float8_e4m3fn), torch.full((len(scales),), factor))


def _check_finite(name: str, kind: TensorType, label: str, values: Tensor) -> None:
    """Refuse NaN and infinity in values [N, columns]: they would poison all that they touch."""
    # NaN passes through, so the extremes show anything that is not finite.
    if all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(values)):
        return
    bad = (~torch.isfinite(values)).nonzero()
    row, column = (int(i) for i in bad[0])
    at = f"row {row}, column {column}" if label == "value" else f"row {row}, group {column}"
    raise CheckpointError(
        f"tensor {name} ({kind.name}): {label} of {at} is {float(values[row, column])}, and "
        f"{len(bad)} of {values.numel()} are not finite",
        hint="the file is damaged: download or quantize it again",
    )


def _q4_0(raw: Tensor, out: _Blocks) -> None:
    out.scales.copy_(_half(raw[..., :2]))
    _put_nibbles(out.codes, raw[..., 2:])


def _q4_1(raw: Tensor, out: _Blocks) -> None:
    assert out.zeros is not None
    out.scales.copy_(_half(raw[..., :2]))
    out.zeros.copy_(_half(raw[..., 2:4]))
    _put_nibbles(out.codes, raw[..., 4:])


def _fifth_bits(qh: Tensor) -> Tensor:
    """Bit j of uint8 [..., 4] read as one u32 -> bit 4 of code j: int64 words [..., 4]."""
    octets = qh.long()
    # The product has bit i of seven in bit 8 i, among others that the mask drops.
    bits = (octets & 0x7F) * 0x0002040810204081
    bits &= _LOW_BITS
    bits |= (octets >> 7) << 56
    return bits << 4


def _put_five(codes: Tensor, qh: Tensor, qs: Tensor) -> None:
    low, high = _nibbles(_words_of(qs))
    words = torch.cat((low, high), dim=-1) | _fifth_bits(qh)
    put(codes.flatten(-2), words.flatten(-2))


def _q5_0(raw: Tensor, out: _Blocks) -> None:
    out.scales.copy_(_half(raw[..., :2]))
    _put_five(out.codes, raw[..., 2:6], raw[..., 6:])


def _q5_1(raw: Tensor, out: _Blocks) -> None:
    assert out.zeros is not None
    out.scales.copy_(_half(raw[..., :2]))
    out.zeros.copy_(_half(raw[..., 2:4]))
    _put_five(out.codes, raw[..., 4:8], raw[..., 8:])


def _q8_0(raw: Tensor, out: _Blocks) -> None:
    out.scales.copy_(_half(raw[..., :2]))
    # Two's complement to offset 128: flip the sign bit.
    words = _words_of(raw[..., 2:])
    torch.bitwise_xor(words, _SIGN_BITS, out=out.codes.view(torch.int64))


def _q2_k(raw: Tensor, out: _Blocks) -> None:
    """Groups of 16 with a 4-bit scale and a 4-bit minimum: raw uint8 [n, B, 84].

    Two chunks of 128 elements; byte e of a chunk's 32 holds elements e, e + 32, e + 64, e + 96.
    """
    assert out.zeros is not None
    d, dmin = _half(raw[..., 80:82]).float(), _half(raw[..., 82:84]).float()
    scales = raw[..., :16]
    torch.mul(d, (scales & 15).float(), out=out.scales)
    torch.mul(dmin, (scales >> 4).float(), out=out.zeros)
    out.zeros.neg_()
    put(out.codes, _pairs(raw[..., 16:80]).flatten(-3))


def _q3_k(raw: Tensor, out: _Blocks) -> None:
    """Groups of 16 with a 6-bit scale of offset 32: raw uint8 [n, B, 110].

    The low two bits lie as in Q2_K; bit r of byte e of the mask is bit 2 of element 32 r + e.
    The format subtracts 4 where that bit is clear, so the code with it has offset 4.
    """
    mask = _words_of(raw[..., :32]).unsqueeze(-2)
    runs = _pairs(raw[..., 32:96]).flatten(-3, -2)
    for run in range(8):
        runs[..., run, :] |= ((mask[..., 0, :] >> run) & _LOW_BITS) << 2
    put(out.codes, runs.flatten(-2))
    low, high = raw[..., 96:104], raw[..., 104:108]
    low = torch.cat((low & 15, low >> 4), dim=-1)
    high = torch.cat([(high >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-1)
    scale = (low | (high << 4)).float() - 32
    torch.mul(_half(raw[..., 108:]).float(), scale, out=out.scales)


def _q4_k(raw: Tensor, out: _Blocks) -> None:
    """Groups of 32 with a 6-bit scale and a 6-bit minimum: raw uint8 [n, B, 144].

    Four chunks of 64 elements: 32 low nibbles, then 32 high ones.
    """
    _six_bit_scales(raw[..., :16], out)
    _put_nibbles(out.codes.unflatten(-1, (4, 32)), raw[..., 16:].unflatten(-1, (4, 32)))


def _q5_k(raw: Tensor, out: _Blocks) -> None:
    """Q4_K with a fifth bit: raw uint8 [n, B, 176].

    Bit s of byte e of the 32 high bytes is bit 4 of element 32 s + e.
    """
    _six_bit_scales(raw[..., :16], out)
    high = _words_of(raw[..., 16:48])
    halves = _nibbles(_words_of(raw[..., 48:]).unflatten(-1, (4, 4)))
    runs = torch.stack(halves, dim=-2).flatten(-3, -2)
    for run in range(8):
        runs[..., run, :] |= ((high >> run) & _LOW_BITS) << 4
    put(out.codes, runs.flatten(-2))


def _q6_k(raw: Tensor, out: _Blocks) -> None:
    """Groups of 16 with an int8 scale: raw uint8 [n, B, 210]."""
    low, high = _nibbles(_words_of(raw[..., :128]).unflatten(-1, (2, 2, 4)))
    pairs = _words_of(raw[..., 128:192]).unflatten(-1, (2, 4))
    # Per chunk of 128 elements four runs of 32: low nibbles of both halves, then high ones.
    runs = torch.cat((low, high), dim=-2)
    for run in range(4):
        runs[..., run, :] |= ((pairs >> (2 * run)) & _LOW_PAIRS) << 4
    put(out.codes, runs.flatten(-3))
    scale = raw[..., 192:208].view(torch.int8).float()
    torch.mul(_half(raw[..., 208:]).float(), scale, out=out.scales)


def _iq4_xs(raw: Tensor, out: _Blocks) -> None:
    """Groups of 32 with a 6-bit scale of offset 32, codes into a table: raw uint8 [n, B, 136]."""
    # The two high bits of scales 4 i to 4 i + 3 are byte i, and byte i of the low ones has 2 i
    # in its low nibble.
    high, low = raw[..., 2:4], raw[..., 4:8]
    high = torch.stack([(high >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-1).flatten(-2)
    low = torch.stack((low & 15, low >> 4), dim=-1).flatten(-2)
    scale = (low | (high << 4)).float() - 32
    torch.mul(_half(raw[..., :2]).float(), scale, out=out.scales)
    _put_nibbles(out.codes.unflatten(-1, (8, 16)), raw[..., 8:].unflatten(-1, (8, 16)))


def _mxfp4(raw: Tensor, out: _Blocks) -> None:
    """Groups of 32 with an exponent: raw uint8 [n, B, 17]."""
    out.scales.copy_(raw[..., :1])
    # Codes start at odd bytes of every second block.
    _put_nibbles(out.codes, raw[..., 1:].clone(memory_format=torch.contiguous_format))


def _nvfp4(raw: Tensor, out: _Blocks) -> None:
    """Four groups of 16 with a float8 scale each: raw uint8 [n, B, 36]."""
    out.scales.copy_(raw[..., :4])
    out.codes.view(torch.int64).copy_(_unshuffled(_words_of(raw[..., 4:])))


def _pairs(qs: Tensor) -> Tensor:
    """uint8 [..., 64] to words [..., 2, 4, 4] of 2-bit codes: chunk, run of 32 elements, word."""
    words = _words_of(qs).unflatten(-1, (2, 4))
    return torch.stack([(words >> shift) & _LOW_PAIRS for shift in (0, 2, 4, 6)], dim=-2)


def _six_bit_scales(head: Tensor, out: _Blocks) -> None:
    """Scales and minima of Q4_K and Q5_K: head uint8 [n, B, 16] is d, dmin and eight of each."""
    assert out.zeros is not None
    d, dmin = _half(head[..., 0:2]).float(), _half(head[..., 2:4]).float()
    low, mid, high = head[..., 4:8], head[..., 8:12], head[..., 12:16]
    scale = torch.cat((low & 63, (high & 15) | ((low >> 2) & 48)), dim=-1)
    minimum = torch.cat((mid & 63, (high >> 4) | ((mid >> 2) & 48)), dim=-1)
    torch.mul(d, scale.float(), out=out.scales)
    torch.mul(dmin, minimum.float(), out=out.zeros)
    out.zeros.neg_()


def _words_of(part: Tensor) -> Tensor:
    """uint8 [n, ..., 8 m] to int64 [n, ..., m]; always a copy, since a view may be unaligned.

    Blocks and their fields start at even bytes, so 16-bit moves are safe and twice as fast.
    """
    words = part.new_empty(part.shape)
    rows = max(1, SERIAL * part.shape[0] // max(1, part.numel() // 2))
    pairs = words.view(torch.int16).split(rows), part.view(torch.int16).split(rows)
    for target, source in zip(*pairs, strict=True):
        target.copy_(source)
    return words.view(torch.int64)


def _half(part: Tensor) -> Tensor:
    """uint8 [..., 2] to float16 [..., 1]."""
    return part.clone(memory_format=torch.contiguous_format).view(torch.float16)


def _nibbles(words: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high nibble of every byte of words [..., m], as words [..., m] of codes."""
    return words & _LOW_NIBBLES, (words >> 4) & _LOW_NIBBLES


def _put_nibbles(codes: Tensor, qs: Tensor) -> None:
    """Split-half nibbles qs uint8 [..., C] to the 4-bit stream codes uint8 [..., C].

    The low nibbles are the first C codes, the high ones the second; C is a multiple of 16.
    """
    words = _unshuffled(_words_of(qs))
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


_LAYOUTS: dict[str, Callable[[Tensor, _Blocks], None]] = {
    layout.__name__.lstrip("_"): layout
    for layout in (
        *(_q4_0, _q4_1, _q5_0, _q5_1, _q8_0, _q2_k, _q3_k, _q4_k, _q5_k, _q6_k),
        *(_iq4_xs, _mxfp4, _nvfp4),
    )
}
