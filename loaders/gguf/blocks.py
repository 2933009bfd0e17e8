"""GGUF blocks to canonical weights, straight into packed codes, a chunk of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ...kernels.formats.bit_stream import SERIAL
from ...kernels.formats.canonical import QuantizedLinear, Weight
from ...kernels.formats.compact import ByteScales
from .block_layouts import LAYOUTS, BlockViews
from .grid_layouts import GRID_LAYOUTS
from .types import DENSE_TYPES, SUPPORTED_TYPES, TensorType

# Bytes of raw blocks converted at a time: enough that starting an operation costs little beside
# doing it, and so few that no operation on 64-bit words is spread over threads (``SERIAL``).
_CHUNK_BYTES = 1 << 17
# The same in weights, where operations go over indices or single bytes.
_CHUNK_WEIGHTS = SERIAL
_BY_WEIGHT = {"tq1_0", *GRID_LAYOUTS}
_ALL_LAYOUTS = LAYOUTS | GRID_LAYOUTS

_DENSE_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


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
    step = max(1, _chunk_blocks(kind) // blocks)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        part = BlockViews(codes[rows], scales[rows], None if zeros is None else zeros[rows])
        _ALL_LAYOUTS[kind.layout](raw_NBb[rows], part)
    scales, compact = scales.view(n, -1), None
    if kind.compact is not None:
        compact = _byte_scales(name, kind, scales, factor)
        scales, _ = compact.numbers()
    zeros = None if zeros is None else zeros.view(n, -1)
    if form.zero == "int":  # the least number of such a type is -1
        zeros = torch.ones(scales.shape, dtype=torch.uint8)
    # Exponents reach further than products with entries may.
    most = None if compact is None else scales * max(form.table)
    for label, values in (("scale", scales), ("minimum", zeros), ("largest weight", most)):
        if values is not None and values.is_floating_point():
            _check_finite(name, kind, label, values)
    return QuantizedLinear(name, form, codes.view(n, -1), scales, zeros, k, compact=compact)


def _chunk_blocks(kind: TensorType) -> int:
    """Blocks that are converted at a time."""
    if kind.layout in _BY_WEIGHT:
        return _CHUNK_WEIGHTS // kind.elements
    return _CHUNK_BYTES // kind.nbytes


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
