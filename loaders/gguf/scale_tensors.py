"""Factors of quantized matrices that GGUF files have as tensors beside them (NVFP4).

``blk.0.ffn_up.scale`` multiplies all scales of ``blk.0.ffn_up.weight``. ``.input_scale`` is there
for products that round their inputs to 4 bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ..model.report import LoadReport
from .parts import GGUFParts
from .reader import GGUFTensor

_ENDINGS = (".scale", ".input_scale")


def beside_matrices(tensors: Mapping[str, GGUFTensor]) -> dict[str, GGUFTensor]:
    """Scale tensors by name: those that stand beside a ``.weight``."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        for ending in _ENDINGS
        if name.endswith(ending) and f"{name.removesuffix(ending)}.weight" in tensors
    }


def read_scale_tensors(where: str, parts: GGUFParts, report: LoadReport) -> dict[str, float]:
    """Name of a matrix -> the factor of its scales.

    Args:
        where: file, for messages.
        parts: of the model.
        report: is told of scales for inputs, which are not used.

    Raises:
        CheckpointError: a factor is 0, not finite, or no number of float32.
        UnsupportedModelError: a factor for each expert, or one of another type than NVFP4.
    """
    found: dict[str, float] = {}
    for name, tensor in beside_matrices(parts.tensors).items():
        if name.endswith(".input_scale"):
            report.decide(
                "inputs stay in 16 or 32 bits where the file has scales to round them to 4: "
                "this is more accurate"
            )
            continue
        weight = parts.tensors[f"{name.removesuffix('.scale')}.weight"]
        if weight.type.name != "NVFP4":
            raise UnsupportedModelError(
                f"{where}: tensor {name} scales {weight.name}, which has type {weight.type.name}; "
                "supported beside a scale is NVFP4"
            )
        if tensor.type.name != "F32" or math.prod(tensor.shape) != 1:
            kind = f"{tensor.type.name} {list(tensor.shape)}"
            raise UnsupportedModelError(
                f"{where}: tensor {name} is {kind}; supported is one number in F32"
            )
        found[weight.name] = _number(where, name, parts, tensor)
    return found


def _number(where: str, name: str, parts: GGUFParts, tensor: GGUFTensor) -> float:
    import torch

    value = float(parts.raw(tensor).reshape(-1).clone().view(torch.float32))
    if not math.isfinite(value) or value == 0:
        raise CheckpointError(
            f"{where}: tensor {name} holds {value}; expected a finite number that is not 0",
            hint="the file is damaged: download or quantize it again",
        )
    return value
