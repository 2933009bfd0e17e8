"""Hugging Face folders: safetensors, plain or quantized by one of :mod:`.methods`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ..base import TensorInfo, TokenizerSource
from ..files.fields import Fields
from ..files.folder_files import ModelFolder
from ..files.safetensors_index import INDEX, SafetensorsFiles, StoredTensor
from ..model import checks as model_checks
from ..model.expert_stacks import ExpertRows, split_expert_stacks, stack_spelling
from ..model.fused import RowRange, fused_shapes, heads_of, split_fused, take_rows
from ..model.report import LoadReport
from . import config as hf_config
from . import methods
from . import names as hf_names
from . import tokenizer as hf_tokenizer
from .methods.detect import claim, quantization_config, refuse_quantized_tensors
from .smoothquant import refuse_smoothquant

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.formats.canonical import Weight

_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TORCH_DTYPES = _DTYPE_NAMES | {
    "F64": "float64",
    "U8": "uint8",
    "F8_E8M0": "float8_e8m0fnu",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


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
        generation = Fields(
            str(self.path / "generation_config.json"),
            self._folder.read_json("generation_config.json") or {},
        )
        # The model type first: an unknown one says more than what its tensors look like.
        refuse_smoothquant(str(where), values)
        family = hf_config.check_family(Fields(str(where), values), self._report)
        self._expert_stacks = family.hf.expert_stacks
        found = quantization_config(self._folder, values, self._report)
        self._claim = "" if found is None else claim(found)
        self._method = None if found is None else methods.open_method(found, self._report)
        self._modules: dict[str, methods.QuantizedModule] = {}
        self._rows: dict[str, RowRange] = {}
        self._experts: dict[str, ExpertRows] = {}
        self._said_tied = False
        self._stacked: tuple[str, Weight] | None = None
        self._files = SafetensorsFiles(self._folder)
        try:
            stored = self._stored = hf_names.canonical(
                str(self.path), self._files.tensors, values, self._report
            )
            if self._method is None:
                refuse_quantized_tensors(str(self.path), stored)
            self.config = hf_config.read_config(
                str(where),
                values,
                generation,
                self._folder.display_name(),
                _matrix_dtype(stored),
                self._report,
            )
            spelled = hf_names.spelling(self._files.tensors, values)
            self._follow_stored_head("tie_word_embeddings" in values, spelled)
            self._infos = self._check(
                stored, model_checks.Spelling(spelled, hf_config.keys_of(values))
            )
            self._tie_equal_head(spelled)
        except BaseException:
            self._files.close()
            raise

    def _follow_stored_head(self, said: bool, spelled: Callable[[str], str]) -> None:
        """Expect an LM head of its own where one is stored, whatever ``tie_word_embeddings`` says.

        ``said`` is whether the config has that key.
        """
        prefix = model_checks.LM_HEAD.removesuffix("weight")
        tied = not any(name.startswith(prefix) for name in self._stored)
        head, embedding = spelled(model_checks.LM_HEAD), spelled(model_checks.EMBED)
        if not tied:
            pass  # whether it is the embedding matrix once more is seen when all headers are sound
        elif self.config.tie_word_embeddings:
            self._report.decide("tie_word_embeddings: the LM head is the embedding matrix")
        elif said:
            self._report.warn(
                f"config.json says that tie_word_embeddings is false, but there is no {head}: "
                f"{embedding} is the LM head"
            )
        else:
            self._report.decide(f"there is no {head}: {embedding} is the LM head")
        self._said_tied = self.config.tie_word_embeddings
        self.config = replace(self.config, tie_word_embeddings=tied)

    def _tie_equal_head(self, spelled: Callable[[str], str]) -> None:
        """Tie the LM head when the files hold the embedding matrix once more as the head."""
        if self.config.tie_word_embeddings:
            return
        head, embedding = (self._stored.get(n) for n in (model_checks.LM_HEAD, model_checks.EMBED))
        names = spelled(model_checks.LM_HEAD), spelled(model_checks.EMBED)
        plain = (
            model_checks.LM_HEAD not in self._modules and model_checks.EMBED not in self._modules
        )
        if plain and head is not None and embedding is not None:
            from ..model.heads import same_matrix

            same = same_matrix(self._read(head), self._read(embedding))
            self._files.release((head, embedding))
            if same:
                self.config = replace(self.config, tie_word_embeddings=True)
                del self._infos[model_checks.LM_HEAD], self._report.tensors[model_checks.LM_HEAD]
                self._report.decide(f"{names[0]} equals {names[1]}: one matrix serves as both")
                return
        if self._said_tied:
            self._report.decide(
                f"tie_word_embeddings is true, but {names[0]} is stored and differs from "
                f"{names[1]}: the stored head is used"
            )

    def _check(
        self, stored: dict[str, StoredTensor], spelling: model_checks.Spelling
    ) -> dict[str, TensorInfo]:
        report, spelled = self._report, spelling.tensor
        for file in self._files.files:
            report.files[file.path.name] = file.size
        for name in self._files.unlisted:
            report.warn(f"tensor {name} is not in {INDEX}; not used")
        expected = model_checks.expected_tensors(self.config)
        infos = self._logical(stored, fused_shapes(expected), spelled)
        for info in infos.values():
            report.count(info.label, info.nbytes)
        heads = heads_of(self.config)
        infos, self._rows = split_fused(infos, expected, str(self.path), spelled, heads)
        if self._expert_stacks:
            infos, self._experts = split_expert_stacks(infos, expected, str(self.path), spelling)
            own = self._files.tensors
            spelling = replace(spelling, tensor=stack_spelling(spelled, own))
        used = model_checks.check_tensors(self.config, infos, str(self.path), report, spelling)
        for info in used.values():
            source = self._rows[info.name].source if info.name in self._rows else info.name
            if source not in self._modules and info.label not in _DTYPE_NAMES:
                raise UnsupportedModelError(
                    f"{self.path}: tensor {spelled(source)} has dtype {info.label}; supported are "
                    f"{', '.join(_DTYPE_NAMES)}"
                )
        return used

    def _logical(
        self,
        stored: dict[str, StoredTensor],
        shapes: dict[str, tuple[int, ...]],
        spelled: Callable[[str], str],
    ) -> dict[str, TensorInfo]:
        """One entry for each weight, whatever number of tensors holds it, in file order."""
        owners: dict[str, list[str]] = {}
        if self._method is not None:
            # Methods see the file's own names, which the rules of its config are about.
            own = {tensor.name: tensor for tensor in stored.values()}
            names = {spelled(name): name for name in shapes}
            wanted = {spelled(name): shape for name, shape in shapes.items()}
            tensors = methods.FolderTensors(own, wanted, self._read)
            for module in self._method.modules(tensors):
                weight = f"{module.module}.weight"
                name = names.get(weight, weight)
                self._modules[name] = module
                for part in module.parts.values():
                    owners.setdefault(part.name, []).append(name)
        infos: dict[str, TensorInfo] = {}
        for own_name, tensor in stored.items():
            for name in owners.get(tensor.name, [own_name]):
                module = self._modules.get(name)
                if module is None:
                    dtype = self.config.dtype
                    info = TensorInfo(
                        *(name, tensor.shape, tensor.dtype, tensor.nbytes, dtype),
                        dtype=tensor.dtype,
                    )
                else:
                    told = self._claim, module.checks, module.format, module.dtype, module.half
                    info = TensorInfo(
                        *(name, module.shape, module.label, module.nbytes, *told),
                        compact=module.compact,
                    )
                infos[name] = info
        return infos

    def _read(self, tensor: StoredTensor) -> Tensor:
        """A tensor in its dtype and shape, as a view of the file where alignment allows."""
        import torch

        if tensor.dtype not in _TORCH_DTYPES:
            raise UnsupportedModelError(
                f"{self.path}: tensor {tensor.name} has dtype {tensor.dtype}; supported are "
                f"{', '.join(_TORCH_DTYPES)}"
            )
        raw, dtype = self._files.raw(tensor), getattr(torch, _TORCH_DTYPES[tensor.dtype])
        if raw.data_ptr() % dtype.itemsize or raw.storage_offset() % dtype.itemsize:
            raw = raw.clone()
        return raw.view(dtype).view(tensor.shape)

    def tensors(self) -> list[TensorInfo]:
        """Every tensor that the model uses, in file order."""
        return list(self._infos.values())

    def has(self, name: str) -> bool:
        """Whether the model uses a tensor of that name."""
        return name in self._infos

    def load(self, name: str) -> Weight:
        """One weight, [N, K] or a vector [N], in memory of its own.

        Dense ones keep the dtype of the file. Raises CheckpointError when there is no such tensor,
        or a value is NaN or infinite.
        """
        from ...kernels.formats.stored import settled

        return settled(self.load_stored(name))

    def load_stored(self, name: str) -> Weight:
        """As :meth:`load`, but a matrix may still be as in the file: see ``StoredLinear``."""
        if name not in self._infos:
            raise CheckpointError(f"{self.path}: there is no tensor {name}")
        rows, expert = self._rows.get(name), self._experts.get(name)
        if expert is not None:
            weight = expert.take(self._read(self._stored[expert.tensor]))
            self._check_finite(expert.tensor, weight, name)
            return weight
        if rows is None:
            return self._load_whole(name)
        # The parts are asked for one after another: keep the whole until another is wanted.
        if self._stacked is None or self._stacked[0] != rows.source:
            self._stacked = rows.source, self._load_whole(rows.source)
        return take_rows(self._stacked[1], rows)

    def _load_whole(self, name: str) -> Weight:
        module = self._modules.get(name)
        if module is not None:
            assert self._method is not None
            return self._method.load(module, self._read)
        weight = self._read(self._stored[name]).clone()
        self._check_finite(name, weight)
        return weight

    def _check_finite(self, name: str, values: Tensor, part: str = "") -> None:
        """Refuse what is no number in a stored tensor, or in the part of it that is called so."""
        import torch

        # The extremes are NaN where a value is: one pass, and no mask of the size of the weight.
        if not values.numel() or all(bool(x.isfinite()) for x in torch.aminmax(values)):
            return
        at = int((~values.flatten().isfinite()).nonzero()[0])
        stored = self._stored[name]
        file = self._files.files[stored.file].path
        raise CheckpointError(
            f"{file}: tensor {stored.name} holds {float(values.flatten()[at])} at element {at}"
            f"{f' of {part}' * bool(part)}; expected finite numbers",
            hint="the file is damaged: download it again",
        )

    def release(self, names: Iterable[str]) -> None:
        """Drop the file pages of these tensors from memory; they can be read again."""
        self._stacked = None
        for name in names:
            name = self._rows[name].source if name in self._rows else name
            name = self._experts[name].tensor if name in self._experts else name
            module = self._modules.get(name)
            if module is not None:
                self._files.release(module.parts.values())
            elif name in self._stored:
                self._files.release([self._stored[name]])

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
