"""Write a quantized model as a Hugging Face folder that other engines load.

Shape letters: N output features, K input features.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from halfbyte.errors import QuantizeError

from ...kernels.formats.canonical import QuantizedLinear, Weight, WeightFormat
from ...loaders.base import Checkpoint
from ...loaders.model.config import ModelConfig
from ...loaders.model.quantizing import is_decoder_linear
from .card import CardFacts, model_card
from .files import ShardWriter, new_folder, write_file
from .folder_format import FolderFormat, FolderModules
from .model_config import config_values
from .names import FolderTensor, family_of, folder_tensors, load_tensor
from .tokenizer import as_json, tokenizer_files

FolderDtype = Literal["float16", "bfloat16", "float32"]
SHARD_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class WrittenFolder:
    """What was written.

    Attributes:
        path: the folder.
        weights: numbers of the quantized matrices.
        nbytes: bytes of their tensors, with scales, zero points and tables.
        total: bytes of all tensors.
        modules: quantized module -> its format, and the modules that were kept dense.
        notes: what a user should know: what was left out, or is no longer as in the source.
    """

    path: Path
    weights: int
    nbytes: int
    total: int
    modules: FolderModules
    notes: tuple[str, ...]

    @property
    def bits(self) -> float:
        """Real bits of a quantized weight."""
        return 8 * self.nbytes / max(1, self.weights)


def write_folder(
    model: Checkpoint,
    form: FolderFormat,
    out: Path,
    *,
    card: CardFacts | None = None,
    dtype: FolderDtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> WrittenFolder:
    """Write a model whose decoder's matrices are quantized.

    Dense tensors keep the type that they have in the source. What a GGUF file has in blocks and is
    to be dense, its embedding above all, is written in ``dtype``. One file of weights is in memory
    at a time. ``config.json`` is written last, so that nothing unfinished can be loaded.

    Args:
        model: the model; its matrices that are QuantizedLinear become ``form``'s.
        form: the format.
        out: a folder that does not exist yet; removed again when something goes wrong.
        card: what the model card says beside what is known here.
        dtype: what a model of a GGUF file is to compute with; None: that of its 16-bit matrices,
            else ``bfloat16`` for Gemmas, whose residuals are beyond float16, and ``float16``.
        shard_bytes: most bytes of one file of weights.

    Raises:
        QuantizeError: the format cannot hold a matrix, the model cannot be said in a
            ``config.json``, or a file cannot be written.
        CheckpointError: a weight of the source is damaged.
        TokenizerError: a GGUF file's vocabulary is missing, damaged or of an unknown kind.
    """
    notes: list[str] = []
    kind = dtype or folder_dtype(model)
    values = config_values(model, kind, notes)
    beside = tokenizer_files(model, notes)
    tensors = list(folder_tensors(model.config))
    quantized: dict[str, WeightFormat] = {}
    inputs: dict[str, int] = {}
    dense: list[str] = []
    weights = nbytes = 0
    with new_folder(out):
        shards = ShardWriter(out, shard_bytes)
        for tensor in tensors:
            weight = load_tensor(model, tensor)
            if isinstance(weight, QuantizedLinear) and _quantized(tensor, weight, form):
                parts = form.encode(tensor.module, weight, getattr(torch, kind))
                quantized[tensor.module] = weight.format
                inputs[tensor.module] = weight.in_features
                weights += weight.shape[0] * weight.shape[1]
                nbytes += sum(part.nbytes for part in parts.values())
            else:
                if weight_sides(weight) == 2 and not tensor.is_embedding:
                    dense.append(tensor.module)
                parts = {tensor.name: _dense(tensor, weight, model.config, kind, notes)}
            shards.add(parts)
            model.release(tensor.parts)
        if not quantized:
            raise QuantizeError(
                f"{model.path} has no quantized matrix; expected a model that was quantized",
                hint="quantize it first",
            )
        shards.finish()
        modules = FolderModules(quantized, inputs, tuple(dense), kind)
        written = WrittenFolder(out, weights, nbytes, shards.total, modules, tuple(notes))
        values["quantization_config"] = form.config(modules)
        for name, data in beside.items():
            write_file(out / name, data)
        facts = card or CardFacts()
        text = model_card(model, form.method, facts, written.bits, shards.total, modules, notes)
        write_file(out / "README.md", text.encode())
        write_file(out / "config.json.part", as_json(values))
        os.replace(out / "config.json.part", out / "config.json")
    return written


def folder_dtype(model: Checkpoint) -> FolderDtype:
    """What the written model computes with: what a folder says, or what suits a GGUF file."""
    for name in ("float16", "bfloat16"):
        if model.config.dtype == name:
            return name
    if model.kind != "gguf":
        return "float32"
    return "bfloat16" if family_of(model.config).gemma else "float16"


def weight_sides(weight: Weight) -> int:
    """Number of dimensions: 2 of a matrix [N, K]."""
    return len(weight.shape)


def _quantized(tensor: FolderTensor, weight: QuantizedLinear, form: FolderFormat) -> bool:
    """Whether a matrix [N, K] is stored quantized; embeddings, and most heads, never are."""
    if tensor.is_embedding:
        return False
    if tensor.is_head:
        return form.heads and _fits(tensor, weight, form)
    return is_decoder_linear(tensor.name, weight.shape)


def _fits(tensor: FolderTensor, weight: QuantizedLinear, form: FolderFormat) -> bool:
    try:
        form.check(tensor.module, weight.format, weight.shape)
    except QuantizeError:
        return False
    return True


def _dense(
    tensor: FolderTensor, weight: Weight, config: ModelConfig, dtype: FolderDtype, notes: list[str]
) -> Tensor:
    """A tensor as it is stored dense: any shape, in its own type or in ``dtype``."""
    if isinstance(weight, QuantizedLinear):
        notes.append(f"{tensor.name}, in codes in the source, is written dense in {dtype}")
        return weight.dequantize(getattr(torch, dtype))
    offset = float(family_of(config).gemma) - config.norm_offset
    if offset and tensor.name.endswith("norm.weight"):
        # GGUF files hold 1 + w where folders hold w.
        return weight.float() - offset
    return weight.contiguous()
