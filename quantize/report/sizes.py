"""What a model takes, from headers alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ...loaders.base import Checkpoint, TensorInfo
from ...loaders.model.quantizing import is_decoder_linear


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Bytes and bits of a model's file or folder.

    Attributes:
        name: of the file or folder.
        nbytes: of all tensors.
        bits: bits of a weight over all tensors.
        layer_bits: bits of a weight over the matrices of the decoder's layers.
        formats: the layers' formats, that of the most weights first.
    """

    name: str
    nbytes: int
    bits: float
    layer_bits: float
    formats: tuple[str, ...]


def model_size(checkpoint: Checkpoint) -> ModelSize:
    """The size of a checkpoint as it is stored."""
    infos = checkpoint.tensors()
    linears = [info for info in infos if is_decoder_linear(info.name, info.shape)]
    weights: dict[str, int] = {}
    for info in linears:
        weights[info.label] = weights.get(info.label, 0) + math.prod(info.shape)
    return ModelSize(
        name=checkpoint.path.name,
        nbytes=sum(info.nbytes for info in infos),
        bits=_bits(infos),
        layer_bits=_bits(linears),
        formats=tuple(sorted(weights, key=lambda label: -weights[label])),
    )


def _bits(infos: Iterable[TensorInfo]) -> float:
    infos = list(infos)
    return 8 * sum(info.nbytes for info in infos) / max(1, sum(math.prod(i.shape) for i in infos))
