"""Hugging Face folders with unquantized safetensors: Llama, Mistral, Qwen2, Qwen3."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from halfbyte.errors import CheckpointError, UnsupportedModelError

from . import hf_config, hf_tokenizer, model_checks
from .base import TensorInfo, TokenizerSource
from .fields import Fields
from .folder_files import ModelFolder
from .hf_quantized import refuse_quantized, refuse_quantized_tensors
from .report import LoadReport
from .safetensors_index import SafetensorsFiles, StoredTensor

if TYPE_CHECKING:
    from torch import Tensor

_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class HFFolderCheckpoint:
    """An open model folder behind the :class:`~halfbyte.loaders.base.Checkpoint` protocol.

    ``config.json`` and all safetensors headers are read and checked on construction; no code
    and no pickle in the folder is ever touched.

    Attributes:
        kind: ``safetensors``.
        path: the folder.
        config: the architecture.

    Raises:
        CheckpointError: a file is damaged, crafted or missing.
        UnsupportedModelError: model type, config value, dtype or quantization not implemented.
    """

    kind: str = "safetensors"

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._report = LoadReport(self.kind)
        self._folder = ModelFolder(self.path)
        where = self.path / "config.json"
        values = self._folder.read_json("config.json")
        if values is None:
            raise CheckpointError(f"{where} is missing", hint="download the whole repository")
        refuse_quantized(self._folder, values)
        generation = Fields(
            str(self.path / "generation_config.json"),
            self._folder.read_json("generation_config.json") or {},
        )
        # The model type first: an unknown one says more than what its tensors look like.
        hf_config.check_family(Fields(str(where), values), self._report)
        self._files = SafetensorsFiles(self._folder)
        try:
            stored = self._files.tensors
            refuse_quantized_tensors(str(self.path), stored)
            self.config = hf_config.read_config(
                str(where),
                values,
                generation,
                self._folder.display_name(),
                _matrix_dtype(stored),
                self._report,
            )
            self._infos = self._check(stored)
        except BaseException:
            self._files.close()
            raise

    def _check(self, stored: dict[str, StoredTensor]) -> dict[str, TensorInfo]:
        report = self._report
        for file in self._files.files:
            report.files[file.path.name] = file.size
        for name in self._files.unlisted:
            report.warn(f"tensor {name} is not in the index; not used")
        infos = {}
        for tensor in stored.values():
            report.count(tensor.dtype, tensor.nbytes)
            infos[tensor.name] = TensorInfo(tensor.name, tensor.shape, tensor.dtype, tensor.nbytes)
        if self.config.tie_word_embeddings:
            report.decide("tie_word_embeddings: the LM head is the embedding matrix")
        used = model_checks.check_tensors(self.config, infos, str(self.path), report)
        for info in used.values():
            if info.format not in _DTYPE_NAMES:
                raise UnsupportedModelError(
                    f"{self.path}: tensor {info.name} has dtype {info.format}; supported are "
                    f"{', '.join(_DTYPE_NAMES)}"
                )
        return used

    def tensors(self) -> list[TensorInfo]:
        """Every tensor that the model uses, in file order."""
        return list(self._infos.values())

    def has(self, name: str) -> bool:
        """Whether the model uses a tensor of that name."""
        return name in self._infos

    def load(self, name: str) -> Tensor:
        """One weight, [N, K] or a vector [N], in the dtype of the file and its own memory.

        Raises CheckpointError when there is no such tensor.
        """
        info = self._infos.get(name)
        if info is None:
            raise CheckpointError(f"{self.path}: there is no tensor {name}")
        raw = self._files.raw(self._files.tensors[name])
        import torch

        return raw.clone().view(getattr(torch, _DTYPE_NAMES[info.format])).view(info.shape)

    def release(self, names: Iterable[str]) -> None:
        """Drop the file pages of these tensors from memory; they can be read again."""
        self._files.release(
            self._files.tensors[name] for name in names if name in self._files.tensors
        )

    def tokenizer(self) -> TokenizerSource:
        """The tokenizer's raw material. Raises TokenizerError when there is none."""
        return hf_tokenizer.read_tokenizer(self._folder, self.config, self._report)

    def report(self) -> LoadReport:
        """What was detected, checked and decided so far."""
        return self._report

    def close(self) -> None:
        """Unmap the files; weights handed out before stay valid."""
        self._files.close()


def _matrix_dtype(stored: dict[str, StoredTensor]) -> str:
    """Type of the embedding matrix, for configs that name none."""
    embed = stored.get(model_checks.EMBED)
    return _DTYPE_NAMES.get(embed.dtype if embed else "", "float32")
