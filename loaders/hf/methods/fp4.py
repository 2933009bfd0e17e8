"""4-bit floats, two to a byte: MXFP4 and NVFP4 as compressed-tensors, ModelOpt and transformers do.

Codes are OCP's E2M1, the first of two in the low bits, so that the bytes of a row *are* the
canonical stream. MXFP4 has an exponent (e8m0) for each 32 columns; NVFP4 a float8 (e4m3) for each
16, and a float32 for the whole tensor, which compressed-tensors divides scales by
(``scale = e4m3 / weight_global_scale``) and ModelOpt multiplies them with
(``scale = e4m3 * weight_scale_2``). Weights are ``entry * scale``, each step rounded to float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from halfbyte.errors import CheckpointError

from ....kernels.formats.code_tables import E2M1
from ....kernels.formats.weight_format import CompactForm, WeightFormat
from ...files.safetensors_index import StoredTensor
from .base import QuantizedModule, Read
from .checks import check_dtype, check_shape, finite, missing

if TYPE_CHECKING:
    from torch import Tensor

    from ....kernels.formats.canonical import QuantizedLinear
    from ....kernels.formats.compact import ByteScales

_DAMAGED = "the file is damaged: download it again, or quantize the model again"
GROUPS = {16: "NVFP4", 32: "MXFP4"}
"""Columns that share a scale -> the format."""
_SCALES = {16: ("F8_E4M3",), 32: ("U8", "F8_E8M0")}
_COMPACT = {16: CompactForm("F8_E4M3"), 32: CompactForm("F8_E8M0")}


@dataclass(frozen=True, slots=True)
class PairNames:
    """What a tool calls the tensors of a matrix, by suffix.

    Attributes:
        codes: pairs of codes.
        scale: of groups.
        factor: of the whole tensor.
        divides: scales are divided by the factor.
        inputs: scales for rounding inputs to 4 bits, which are not used.
    """

    codes: str
    scale: str
    factor: str
    divides: bool
    inputs: tuple[str, ...]


COMPRESSED_TENSORS = PairNames(
    "weight_packed", "weight_scale", "weight_global_scale", True, ("input_global_scale",)
)
MODELOPT = PairNames("weight", "weight_scale", "weight_scale_2", False, ("input_scale",))


def find_pairs(
    where: str,
    module: str,
    shape: tuple[int, int],
    group: int,
    names: PairNames,
    stored: Mapping[str, StoredTensor],
) -> QuantizedModule:
    """A module with codes in pairs, checked from headers.

    Args:
        where: folder, for messages.
        module: full name.
        shape: (N, K) that the model expects.
        group: 16 for NVFP4, 32 for MXFP4.
        names: of the tool.
        stored: all tensors.

    Raises CheckpointError when tensors are missing, of the wrong shape or dtype.
    """
    n, k = shape
    parts = {names.codes: stored[f"{module}.{names.codes}"]}
    for suffix in (names.scale, names.factor) if group == 16 else (names.scale,):
        if f"{module}.{suffix}" not in stored:
            raise missing(where, module, [suffix], f"the weight is {GROUPS[group]}")
        parts[suffix] = stored[f"{module}.{suffix}"]
    check_dtype(where, parts[names.codes], ("U8",))
    check_groups(where, parts[names.codes], k, group)
    check_shape(where, parts[names.codes], (n, k // 2), f"two codes to a byte of {[n, k]}")
    check_dtype(where, parts[names.scale], _SCALES[group])
    check_shape(where, parts[names.scale], (n, k // group), f"{k // group} groups of {group}")
    if names.factor in parts:
        check_dtype(where, parts[names.factor], ("F32",))
        if parts[names.factor].shape not in ((), (1,)):
            check_shape(where, parts[names.factor], (1,), "one for the whole tensor")
    for suffix in names.inputs:
        if f"{module}.{suffix}" in stored:
            parts[suffix] = stored[f"{module}.{suffix}"]
    return pairs_module(module, shape, group, parts)


def pairs_module(
    module: str, shape: tuple[int, int], group: int, parts: Mapping[str, StoredTensor]
) -> QuantizedModule:
    """A matrix (N, K) in groups of 16 or 32, whose ``parts`` are checked."""
    form = WeightFormat(4, group, "table", E2M1)
    label, compact = GROUPS[group], _COMPACT[group]
    return QuantizedModule(
        module, shape, label, parts, form, dtype="F32", half=False, compact=compact
    )


def load_pairs(
    where: str, module: QuantizedModule, names: PairNames, read: Read
) -> QuantizedLinear:
    """The weight [N, K]; its codes are still as in the file.

    Raises CheckpointError for scales that are no numbers, a factor that is 0 or no number, and
    products of them that float32 does not hold.
    """
    import torch

    from ....kernels.formats.compact import ByteScales

    scale, factor = module.parts[names.scale], module.parts.get(names.factor)
    values = read(scale).view(torch.uint8)
    if factor is None:
        compact = exponents(where, scale.name, values)
    else:
        number = float(finite(where, factor.name, read(factor)))
        if number == 0:
            raise CheckpointError(
                f"{where}: tensor {factor.name} holds 0; expected a factor that is not 0",
                hint=_DAMAGED,
            )
        scales = finite(where, scale.name, read(scale).float()).to(torch.float8_e4m3fn)
        compact = ByteScales(scales, torch.full((len(scales),), number), names.divides)
    return pairs_weight(where, scale.name, module, read(module.parts[names.codes]), compact)


def exponents(where: str, name: str, values_NG: Tensor) -> ByteScales:
    """Bytes [N, G] of e8m0, in memory of their own. Raises CheckpointError for NaN."""
    import torch

    from ....kernels.formats.compact import ByteScales

    bad = (values_NG == 0xFF).nonzero()
    if len(bad):
        row, group = bad[0].tolist()
        raise CheckpointError(
            f"{where}: tensor {name} holds the exponent 255 (NaN) in row {row}, group {group}; "
            "expected 0 to 254",
            hint=_DAMAGED,
        )
    return ByteScales(values_NG.clone().view(torch.float8_e8m0fnu))


def pairs_weight(
    where: str, name: str, module: QuantizedModule, pairs_NK: Tensor, compact: ByteScales
) -> QuantizedLinear:
    """A weight of pairs of codes uint8 [N, K / 2]; ``name`` is that of its scales.

    Raises CheckpointError where scales make weights that are infinite.
    """
    import torch

    from ....kernels.formats.stored import STREAM, StoredLinear

    scales, _ = compact.numbers()
    if not bool(torch.aminmax(scales * max(E2M1))[1].isfinite()):
        row, group = (~(scales * max(E2M1)).isfinite()).nonzero()[0].tolist()
        raise CheckpointError(
            f"{where}: tensor {name}: the scale of row {row}, group {group} is "
            f"{float(scales[row, group]):g}, and {max(E2M1):g} times that is infinite in float32",
            hint=_DAMAGED,
        )
    assert module.format is not None
    return StoredLinear.of_codes(
        *(f"{module.module}.weight", module.format, module.shape, STREAM, pairs_NK, scales, None),
        lambda: pairs_NK.clone(),
        compact=compact,
    )


def check_groups(where: str, tensor: StoredTensor, k: int, group: int) -> None:
    """Raise CheckpointError when a tensor's K columns are no whole groups."""
    if k % group:
        raise CheckpointError(
            f"{where}: tensor {tensor.name}: groups of {group} do not divide K = {k}; expected "
            "whole groups",
            hint="the tool that defines this format refuses such weights, too",
        )
