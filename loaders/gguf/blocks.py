"""GGUF blocks to canonical weights, vectorised, straight into packed codes.

The work is done on little-endian 64-bit words, eight codes at a time, in chunks of rows that
fit the first-level caches; no array with one code per byte is ever built for the 4-bit types.

Shape letters: N rows, K elements of a row, B blocks of a row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ...kernels.formats.canonical import QuantizedLinear, Weight
from . import kquants
from .types import CANONICAL, DENSE_TYPES, NUMBERS, SUPPORTED_TYPES, BlockType
from .words import LOW_BITS, SIGN_BITS, Parts, half, nibbles, put, put_nibbles, words_of

# Bytes of raw blocks converted at a time: enough that starting an operation costs little beside
# doing it, and so few that no operation on 64-bit words is spread over threads (``SERIAL``).
_CHUNK_BYTES = 1 << 17

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def convert_tensor(name: str, kind: BlockType, shape: tuple[int, ...], raw: Tensor) -> Weight:
    """A tensor's bytes as a canonical weight that owns its memory.

    Args:
        name: canonical name, for messages and for the result.
        kind: block type.
        shape: torch order; quantized types need [N, K].
        raw: uint8 [bytes], or [N, bytes of a row]; may be a view of the file.

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
        dense = raw.reshape(-1).clone().view(_DTYPES[NUMBERS[kind.name]]).view(shape)
        _check_finite(name, kind, "value", dense.view(shape[0], -1))
        return dense
    if len(shape) != 2:
        raise CheckpointError(
            f"tensor {name} of shape {list(shape)} has type {kind.name}; expected "
            f"{', '.join(DENSE_TYPES)} for anything but a matrix"
        )
    return _convert_matrix(name, kind, shape, raw)


def _convert_matrix(name: str, kind: BlockType, shape: tuple[int, ...], raw: Tensor) -> Weight:
    convert, form = _CONVERT[kind.name], CANONICAL[kind.name]
    n, k = shape
    blocks = k // kind.elements
    groups = kind.elements // form.group_size
    bits = form.bits
    raw_NBb = raw.view(n, blocks, kind.nbytes)
    codes = torch.empty(n, blocks, kind.elements * bits // 8, dtype=torch.uint8)
    scales = torch.empty(n, blocks, groups, dtype=_DTYPES[NUMBERS[kind.name]])
    zeros = torch.empty_like(scales) if form.zero == "float" else None
    step = max(1, _CHUNK_BYTES // (blocks * kind.nbytes))
    for start in range(0, n, step):
        rows = slice(start, start + step)
        part = Parts(codes[rows], scales[rows], None if zeros is None else zeros[rows])
        convert(raw_NBb[rows], part)
    scales = scales.view(n, -1)
    zeros = None if zeros is None else zeros.view(n, -1)
    for label, values in (("scale", scales), ("minimum", zeros)):
        if values is not None:
            _check_finite(name, kind, label, values)
    return QuantizedLinear(name, form, codes.view(n, -1), scales, zeros, k)


def _check_finite(name: str, kind: BlockType, label: str, values: Tensor) -> None:
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


def _q4_0(raw: Tensor, out: Parts) -> None:
    out.scales.copy_(half(raw[..., :2]))
    put_nibbles(out.codes, raw[..., 2:])


def _q4_1(raw: Tensor, out: Parts) -> None:
    assert out.zeros is not None
    out.scales.copy_(half(raw[..., :2]))
    out.zeros.copy_(half(raw[..., 2:4]))
    put_nibbles(out.codes, raw[..., 4:])


def _fifth_bits(qh: Tensor) -> Tensor:
    """Bit j of uint8 [..., 4] read as one u32 -> bit 4 of code j: int64 words [..., 4]."""
    octets = qh.long()
    # The product has bit i of seven in bit 8 i, among others that the mask drops.
    bits = (octets & 0x7F) * 0x0002040810204081
    bits &= LOW_BITS
    bits |= (octets >> 7) << 56
    return bits << 4


def _put_five(codes: Tensor, qh: Tensor, qs: Tensor) -> None:
    low, high = nibbles(words_of(qs))
    words = torch.cat((low, high), dim=-1) | _fifth_bits(qh)
    put(codes.flatten(-2), words.flatten(-2))


def _q5_0(raw: Tensor, out: Parts) -> None:
    out.scales.copy_(half(raw[..., :2]))
    _put_five(out.codes, raw[..., 2:6], raw[..., 6:])


def _q5_1(raw: Tensor, out: Parts) -> None:
    assert out.zeros is not None
    out.scales.copy_(half(raw[..., :2]))
    out.zeros.copy_(half(raw[..., 2:4]))
    _put_five(out.codes, raw[..., 4:8], raw[..., 8:])


def _q8_0(raw: Tensor, out: Parts) -> None:
    out.scales.copy_(half(raw[..., :2]))
    # Two's complement to offset 128: flip the sign bit.
    words = words_of(raw[..., 2:])
    torch.bitwise_xor(words, SIGN_BITS, out=out.codes.view(torch.int64))


# Takes uint8 [n, B, block bytes] and fills the parts of those rows.
_CONVERT: dict[str, Callable[[Tensor, Parts], None]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": kquants.q2_k,
    "Q3_K": kquants.q3_k,
    "Q4_K": kquants.q4_k,
    "Q5_K": kquants.q5_k,
    "Q6_K": kquants.q6_k,
    # The nibbles of IQ4_NL lie as those of Q4_0; only their meaning differs.
    "IQ4_NL": _q4_0,
    "IQ4_XS": kquants.iq4_xs,
}
