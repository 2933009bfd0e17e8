"""Which tensors a folder has, under the names that transformers gives them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from halfbyte.errors import QuantizeError

from ...kernels.formats.canonical import QuantizedLinear, Weight, can_fuse
from ...loaders.base import Checkpoint
from ...loaders.hf.names import spelling
from ...loaders.model.checks import EMBED, LM_HEAD, expected_tensors
from ...loaders.model.config import ModelConfig
from ...loaders.model.families import MODEL_FAMILIES
from ...loaders.model.family import ModelFamily
from ...loaders.model.fused import stacked_parts


@dataclass(frozen=True, slots=True)
class FolderTensor:
    """A tensor of a folder, before it is quantized.

    Attributes:
        name: in the folder.
        canonical: its name here; that of the stack where it has several parts.
        parts: canonical names of what it is made of, first rows first.
    """

    name: str
    canonical: str
    parts: tuple[str, ...]

    @property
    def module(self) -> str:
        """Its module in the folder."""
        return self.name.rpartition(".")[0]

    @property
    def is_embedding(self) -> bool:
        """Whether it is the embedding matrix."""
        return self.canonical == EMBED

    @property
    def is_head(self) -> bool:
        """Whether it is the matrix of the LM head."""
        return self.canonical == LM_HEAD


def family_of(config: ModelConfig) -> ModelFamily:
    """The family of a model."""
    return next(f for f in MODEL_FAMILIES if f.name == config.architecture)


def folder_tensors(config: ModelConfig) -> Iterator[FolderTensor]:
    """Every tensor of a model in the order of its layers; a tied LM head is none.

    What transformers has as one matrix (Phi-3's ``qkv_proj``) is one tensor.
    """
    family = family_of(config)
    expected = expected_tensors(config)
    stacks = dict(stacked_parts(expected, family.hf.stacked))
    starts = {parts[0]: (name, tuple(parts)) for name, parts in stacks.items()}
    inner = {part for parts in stacks.values() for part in parts}
    spelled = spelling((), {"model_type": family.hf.model_type})
    for name in expected:
        if name in starts:
            whole, parts = starts[name]
            yield FolderTensor(spelled(whole), whole, parts)
        elif name not in inner:
            yield FolderTensor(spelled(name), name, (name,))


def load_tensor(model: Checkpoint, tensor: FolderTensor) -> Weight:
    """A tensor of a folder from the weights of a model, [N, K] or a vector [N].

    Raises QuantizeError where its parts are quantized in different ways.
    """
    weights = [model.load(part) for part in tensor.parts]
    return weights[0] if len(weights) == 1 else _stacked(tensor, weights)


def _stacked(tensor: FolderTensor, weights: Sequence[Weight]) -> Weight:
    """Weights along N. Raises QuantizeError unless all are dense, or of one format and order."""
    if all(isinstance(weight, Tensor) for weight in weights):
        return torch.cat([weight for weight in weights if isinstance(weight, Tensor)])
    quantized = [weight for weight in weights if isinstance(weight, QuantizedLinear)]
    if len(quantized) == len(weights) and can_fuse(quantized):
        return QuantizedLinear.concat(quantized)
    raise QuantizeError(
        f"{', '.join(tensor.parts)} are one matrix, {tensor.name}, in transformers, but are not "
        "quantized alike",
        hint="give them the same bits, groups, order of columns and input scales",
    )
