"""Weights that are stored as they are, one int8 or FP8 number each, with scales beside them.

What compressed-tensors calls int-quantized, float-quantized and naive-quantized, and what
``fp8``, ``modelopt`` and ``quark`` write. SmoothQuant's factors are already inside the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ...files.safetensors_index import StoredTensor
from ...model.report import LoadReport
from .base import QuantizedModule, Read
from .checks import check_dtype, finite, missing, wrong_shape
from .ct_scheme import TensorScheme, WeightScheme
from .scales import activation, checked_module, per_row, read_scales, row_chunks, stored_weights

if TYPE_CHECKING:
    from torch import Tensor

    from ....kernels.formats.canonical import QuantizedLinear

_DTYPES = {"I8": "int", "F8_E4M3": "float"}


def find_scaled(
    where: str,
    module: str,
    shape: tuple[int, int],
    scheme: TensorScheme,
    stored: Mapping[str, StoredTensor],
    report: LoadReport,
    scale_name: str = "weight_scale",
) -> tuple[QuantizedModule, WeightScheme]:
    """A module with an int8 or FP8 ``weight``, checked from headers.

    Args:
        where: folder, for messages.
        module: full name.
        shape: (N, K) that the model expects.
        scheme: what the config says of it.
        stored: all tensors.
        report: gets warnings.
        scale_name: suffix of the scales, by which the weight is multiplied.

    Returns:
        The module, and the weights' scheme with the strategy that the scales show.

    Raises:
        CheckpointError: tensors are missing, of the wrong shape or dtype.
        UnsupportedModelError: float8 of another kind than e4m3.
    """
    weight, weights = stored[f"{module}.weight"], scheme.weights
    if weight.dtype == "F8_E5M2":
        raise UnsupportedModelError(
            f"{where}: tensor {weight.name} is F8_E5M2; supported are I8 and F8_E4M3"
        )
    check_dtype(where, weight, _DTYPES)
    if weights is None or weights.kind != _DTYPES[weight.dtype]:
        kind = "no" if weights is None else weights.kind
        raise CheckpointError(
            f"{where}: tensor {weight.name} is {weight.dtype}, but group {scheme.name} of the "
            f"config says {kind} weights",
            hint="the config and the weights belong to different models",
        )
    if weight.shape != shape:
        raise wrong_shape(where, weight, f"{list(shape)} by the config")
    scale = stored.get(f"{module}.{scale_name}")
    if scale is None:
        raise missing(where, module, [scale_name], f"the weight is {weight.dtype}")
    parts = {"weight": weight, scale_name: scale}
    seen = stored_weights(where, weights, shape, scale)
    zero = stored.get(f"{module}.weight_zero_point")
    if zero is not None:
        parts["weight_zero_point"] = zero
        check_dtype(where, zero, ("I8", "I32") if weights.kind == "int" else ("F8_E4M3", "I8"))
        if zero.shape != scale.shape:
            raise wrong_shape(where, zero, f"{list(scale.shape)} like the scales")
    elif not weights.symmetric:
        raise missing(where, module, ["weight_zero_point"], f"group {scheme.name} is asymmetric")
    return checked_module(where, module, shape, scheme, seen, parts, stored, report), seen


def load_scaled(
    where: str, module: QuantizedModule, scheme: TensorScheme, seen: WeightScheme, read: Read
) -> QuantizedLinear:
    """The weight [N, K]: codes, scales, zero points, and the rule of its inputs.

    Raises CheckpointError for scales that are not finite, FP8 codes that are no numbers, and
    integers outside the range of their bits.
    """
    from ....kernels.formats.canonical import QuantizedLinear

    suffix = next(name for name in module.parts if name.startswith("weight_scale"))
    tensor = module.parts["weight"]
    scales = read_scales(where, seen, module.shape, module.parts[suffix], read)
    zeros = _zero_points(where, module, seen, read)
    if seen.kind == "float":
        codes = _float_codes(where, tensor, read)
    else:
        codes = _int_codes(where, tensor, seen.bits, read)
    assert module.format is not None
    form = replace(module.format, act=activation(where, scheme.inputs, module, read))
    return QuantizedLinear(tensor.name, form, codes, scales, zeros, module.shape[1])


def _float_codes(where: str, tensor: StoredTensor, read: Read) -> Tensor:
    """The bytes of an e4m3 matrix, uint8 [N, K]; it has no infinity, and one NaN of each sign."""
    import torch

    codes = read(tensor).view(torch.uint8).clone()
    for part in row_chunks(codes, codes.shape[1]):
        bad = (part & 0x7F) == 0x7F
        if bad.any():
            byte = int(part[bad][0])
            raise CheckpointError(
                f"{where}: tensor {tensor.name} holds the FP8 code 0x{byte:02X}, which is not a "
                "number; expected numbers only",
                hint="the file is damaged: download it again, or quantize the model again",
            )
    return codes


def _int_codes(where: str, tensor: StoredTensor, bits: int, read: Read) -> Tensor:
    """Signed int8 [N, K] to the canonical stream of codes, offset by half their range."""
    import torch

    from ....kernels.formats.canonical import pack_codes

    signed = read(tensor)
    if bits == 8:
        return signed.view(torch.uint8) ^ 0x80
    half, packed = 1 << (bits - 1), []
    for part in row_chunks(signed, signed.shape[1]):
        low, high = int(part.min()), int(part.max())
        if low < -half or high >= half:
            raise CheckpointError(
                f"{where}: tensor {tensor.name} holds {low if low < -half else high}; expected "
                f"{-half} to {half - 1} in {bits} bits"
            )
        packed.append(pack_codes((part + half).view(torch.uint8), bits))
    return torch.cat(packed)


def _zero_points(
    where: str, module: QuantizedModule, seen: WeightScheme, read: Read
) -> Tensor | None:
    """Zero points of offset codes, uint8 [N, G]; None when symmetric."""
    stored = module.parts.get("weight_zero_point")
    if stored is None:
        return None
    values = per_row(seen, module.shape, read(stored).float())
    return offset_zeros(where, stored.name, seen, values)


def offset_zeros(where: str, name: str, seen: WeightScheme, values: Tensor) -> Tensor | None:
    """Signed float32 [N, G] to zero points of offset codes, uint8 [N, G]; None when symmetric.

    Raises CheckpointError when they are out of range, or not 0 although the config says symmetric.
    """
    import torch

    half = 1 << (seen.bits - 1)
    values = finite(where, name, values)  # float8 zero points may be NaN
    low, high = int(values.min()), int(values.max())
    if seen.symmetric and (low or high):
        raise CheckpointError(
            f"{where}: tensor {name} holds {low or high}, but the config says that weights are "
            "symmetric; expected 0"
        )
    if low < -half or high >= half:
        raise CheckpointError(
            f"{where}: tensor {name} holds {low if low < -half else high}; expected {-half} to "
            f"{half - 1} in {seen.bits} bits"
        )
    return None if seen.symmetric else (values + half).to(torch.uint8)
