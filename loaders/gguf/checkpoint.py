"""GGUF checkpoints of the families in :mod:`..model.families`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ..base import TensorInfo, TokenizerSource
from ..model import checks as model_checks
from ..model.family import GGUFFacts
from ..model.fused import FUSED, heads_of, split_fused
from ..model.report import LoadReport
from . import config as gguf_config
from . import tokenizer as gguf_tokenizer
from .delta import delta_file_name, delta_name
from .experts import expert_file_module, expert_module, split_stacks
from .parts import GGUFParts
from .reader import GGUFTensor
from .scale_tensors import beside_matrices, read_scale_tensors
from .types import DENSE_TYPES, SUPPORTED_TYPES

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.formats.canonical import Weight

_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_sinks": "self_attn.sinks",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# A parameter without a suffix where models have it.
_SINKS = _LAYER_NAMES["attn_sinks"]
_TOP_FILE_NAMES = {canonical: own for own, canonical in _TOP_NAMES.items()}
# Where q, k and v, or gate and up, are one tensor.
_STACKED = {
    "self_attn.qkv_proj": "attn_qkv",
    **dict.fromkeys(FUSED["self_attn.qkv_proj"], "attn_qkv"),
    **dict.fromkeys(FUSED["mlp.gate_up_proj"], "ffn_up"),
    "mlp.gate_up_proj": "ffn_up",
}
FACTOR_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Divisors of the rotary frequencies; they become a part of the config."""
_LAYER_NAME = re.compile(r"blk\.(0|[1-9][0-9]{0,8})\.(.+)\.(weight|bias)")
_TOP_NAME = re.compile(r"([a-z_]+)\.(weight|bias)")


class GGUFCheckpoint:
    """An open GGUF model behind the :class:`~halfbyte.loaders.base.Checkpoint` protocol.

    All headers are checked on construction: the tensors that the config implies are there, with
    their shapes and with supported types.

    Attributes:
        kind: ``gguf``.
        path: the file, or the part of a split model that was given.
        config: the architecture.

    Raises:
        CheckpointError: the file is damaged, crafted or incomplete.
        UnsupportedModelError: architecture, tensor type or a metadata value is not implemented.
    """

    kind: str = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._report = LoadReport(self.kind)
        self._parts = GGUFParts(self.path)
        try:
            self._open()
        except BaseException:
            self._parts.close()
            raise

    def _open(self) -> None:
        where = str(self.path)
        report, parts = self._report, self._parts
        for file in parts.files:
            report.files[file.path.name] = file.file.size
        if len(parts.files) > 1:
            report.decide(f"split into {len(parts.files)} parts; all are here")
        for tensor in parts.tensors.values():
            report.count(tensor.type.name, tensor.nbytes)
        factors = {
            name: _read_factors(where, parts, parts.tensors[name])
            for name in FACTOR_TENSORS
            if name in parts.tensors
        }
        self._scale_factors = read_scale_tensors(where, parts, report)
        beside = {*factors, *beside_matrices(parts.tensors)}
        metadata = parts.metadata
        self.config = gguf_config.read_config(where, metadata, parts.tensors, factors, report)
        facts = gguf_config.read_family(where, metadata).gguf
        self._by_name = {
            _canonical_name(name, facts, parts.tensors): tensor
            for name, tensor in parts.tensors.items()
            if name not in beside and not self._predicts_more(name)
        }
        spelled = self._spelling(facts)
        stored = {name: _info(name, tensor) for name, tensor in self._by_name.items()}
        expected = model_checks.expected_tensors(self.config)
        heads = heads_of(self.config)
        stored, self._rows = split_fused(stored, expected, where, spelled, heads)
        stored, experts = split_stacks(stored, expected, self.config.experts, where, spelled)
        self._rows |= experts
        keys = gguf_config.keys_of(metadata["general.architecture"])
        spelling = model_checks.Spelling(spelled, keys)
        self._infos = model_checks.check_tensors(self.config, stored, where, report, spelling)
        for info in self._infos.values():
            _check_type(where, self._source(info.name).name, info)
        self._tie_equal_head()
        self._interleaved = facts.interleaved
        if self._interleaved:
            report.decide("q and k rows put back from interleaved to half-split order")

    def _predicts_more(self, name: str) -> bool:
        """Whether a tensor is of the layers for multi-token prediction, which are left out."""
        layer = re.match(r"blk\.([0-9]{1,9})\.", name)
        if self.config.delta is None or layer is None or int(layer[1]) < self.config.num_layers:
            return False
        self._report.warn(model_checks.NO_PREDICTION)
        return True

    def _spelling(self, facts: GGUFFacts) -> Callable[[str], str]:
        """What turns a canonical name into the file's, or into the one that it should have."""
        stored = {name: tensor.name for name, tensor in self._by_name.items()}
        return lambda name: stored.get(name) or file_name(name, facts)

    def _tie_equal_head(self) -> None:
        """Tie the LM head when the file holds the embedding matrix once more as the head."""
        head = self._by_name.get(model_checks.LM_HEAD)
        embedding = self._by_name.get(model_checks.EMBED)
        if head is None or embedding is None:
            return
        if head.type != embedding.type:
            return
        from ..model.heads import same_matrix

        rows = head.shape[0]
        raw = (self._parts.raw(tensor).view(rows, -1) for tensor in (head, embedding))
        if same_matrix(*raw):
            self.config = replace(self.config, tie_word_embeddings=True)
            del self._infos[model_checks.LM_HEAD], self._report.tensors[model_checks.LM_HEAD]
            self._report.decide(f"{head.name} equals {embedding.name}: one matrix serves as both")
        self._parts.release((head, embedding))

    def tensors(self) -> list[TensorInfo]:
        """Every tensor that the model uses, under its canonical name, in file order."""
        return list(self._infos.values())

    def has(self, name: str) -> bool:
        """Whether the model uses a tensor of that canonical name."""
        return name in self._infos

    def load(self, name: str) -> Weight:
        """One canonical weight, in its own memory.

        F32, F16 and BF16 tensors keep their dtype; the block types become QuantizedLinear.
        Raises CheckpointError when there is no such tensor or its scales are not finite.
        """
        return _convert(*self._located(name))

    def load_stored(self, name: str) -> Weight:
        """As :meth:`load`, but a matrix is still in its blocks: see ``StoredLinear``."""
        from ...kernels.formats.canonical import QuantizedLinear
        from ...kernels.formats.stored import StoredLinear

        located = _, _, tensor, shape, raw, _ = self._located(name)
        form = tensor.type.format
        if form is None or len(shape) != 2:
            return _convert(*located)

        def convert() -> QuantizedLinear:
            weight = _convert(*located)
            assert isinstance(weight, QuantizedLinear)
            return weight

        n, k = shape
        own, compact = (raw.view(n, -1),), tensor.type.compact
        return StoredLinear(name, form, (n, k), tensor.type.name, own, convert, compact)

    def _located(self, name: str) -> tuple[Path, str, GGUFTensor, tuple[int, ...], Tensor, float]:
        """What :func:`_convert` takes: file, name, header, shape, bytes, factor of all scales."""
        info = self._infos.get(name)
        if info is None:
            raise CheckpointError(f"{self.path}: there is no tensor {name}")
        rows, tensor = self._rows.get(name), self._source(name)
        raw = self._parts.raw(tensor)
        if rows is not None:  # rows follow each other, whatever their type
            # A vector's rows are its elements.
            count = math.prod(tensor.shape if len(info.shape) == 1 else tensor.shape[:-1])
            raw = raw.view(count, -1)
            if rows.count == 1:
                raw = raw[rows.start : rows.stop]
            else:
                by_head = raw.view(rows.count, rows.period, -1)
                raw = by_head[:, rows.start : rows.stop].flatten(0, 1)
        heads = self._heads_of(name)
        if heads:
            raw = _half_split_rows(raw, heads, info.shape[0])
        factor = self._scale_factors.get(tensor.name, 1.0)
        return self._parts.path_of(tensor), name, tensor, info.shape, raw, factor

    def _source(self, name: str) -> GGUFTensor:
        """The stored tensor that a weight is, or is rows of."""
        rows = self._rows.get(name)
        return self._by_name[name if rows is None else rows.source]

    def _heads_of(self, name: str) -> int:
        """Heads whose rows are interleaved in this tensor; 0 when none are."""
        if not self._interleaved:
            return 0
        if ".q_proj." in name:
            return self.config.num_heads
        return self.config.num_kv_heads if ".k_proj." in name else 0

    def release(self, names: Iterable[str]) -> None:
        """Drop the file pages of these tensors from memory; they can be read again."""
        sources = {self._rows[n].source if n in self._rows else n for n in names}
        self._parts.release(self._by_name[n] for n in sources if n in self._by_name)

    def tokenizer(self) -> TokenizerSource:
        """The tokenizer in the metadata. Raises TokenizerError when there is none."""
        return gguf_tokenizer.read_tokenizer(str(self.path), self._parts.metadata, self._report)

    def report(self) -> LoadReport:
        """What was detected, checked and decided so far."""
        return self._report

    def close(self) -> None:
        """Unmap the file; weights handed out before stay valid."""
        self._parts.close()


def _canonical_name(name: str, facts: GGUFFacts, stored: Container[str]) -> str:
    """The Hugging Face name of a GGUF tensor, or the name itself when there is none."""
    odd = re.fullmatch(r"blk\.(0|[1-9][0-9]{0,8})\.(.+)", name)
    if odd and delta_name(odd[2]):
        return f"model.layers.{odd[1]}.{delta_name(odd[2])}"
    layer = _LAYER_NAME.fullmatch(name)
    if layer:
        index, module, ending = layer.groups()
        known = {**_LAYER_NAMES, **facts.renamed}
        canonical = known.get(module) or expert_module(module) or module
        # Phi-3's "up" is gate and up in one, unless there is a separate gate.
        stacked = "mlp.gate_up_proj" in facts.stacked
        if stacked and module == "ffn_up" and f"blk.{index}.ffn_gate.{ending}" not in stored:
            canonical = "mlp.gate_up_proj"
        if canonical == _SINKS and ending == "weight":
            return f"model.layers.{index}.{canonical}"
        return f"model.layers.{index}.{canonical}.{ending}"
    top = _TOP_NAME.fullmatch(name)
    if top and top[1] in _TOP_NAMES:
        return f"{_TOP_NAMES[top[1]]}.{top[2]}"
    return name


def file_name(name: str, facts: GGUFFacts) -> str:
    """The GGUF name that a tensor of a canonical name would have, or that stack has it.

    Args:
        name: canonical; one that has no GGUF name stays as it is.
        facts: of the model's family.
    """
    odd = re.fullmatch(r"model\.layers\.([0-9]+)\.(.+)", name)
    if odd and delta_file_name(odd[2]):
        return f"blk.{odd[1]}.{delta_file_name(odd[2])}"
    head, _, ending = f"{name}{'.weight' * name.endswith(_SINKS)}".rpartition(".")
    if head in _TOP_FILE_NAMES:
        return f"{_TOP_FILE_NAMES[head]}.{ending}"
    layer = re.fullmatch(r"model\.layers\.([0-9]+)\.(.+)", head)
    if layer is None:
        return name
    index, module = layer.groups()
    known = {**_LAYER_NAMES, **facts.renamed}
    modules = {canonical: own for own, canonical in known.items()}
    if any(module in (whole, *FUSED[whole]) for whole in facts.stacked):
        return f"blk.{index}.{_STACKED[module]}.{ending}"
    return f"blk.{index}.{modules.get(module) or expert_file_module(module) or module}.{ending}"


def _info(name: str, tensor: GGUFTensor) -> TensorInfo:
    """A tensor by its header; types that are unknown here are refused later."""
    kind, dtype = tensor.type, tensor.type.numbers
    told = kind.format, dtype, dtype != "F32", kind.name if kind.format else "", kind.compact
    return TensorInfo(name, tensor.shape, kind.name, tensor.nbytes, "", (), *told)


def _check_type(where: str, name: str, info: TensorInfo) -> None:
    """Refuse, before any data is read, types that ``load`` could not convert."""
    if info.label not in SUPPORTED_TYPES:
        raise UnsupportedModelError(
            f"{where}: tensor {name} has type {info.label}; supported are "
            f"{', '.join(SUPPORTED_TYPES)}",
            hint="use a file quantized to one of these types, such as Q4_K_M or Q4_0",
        )
    if len(info.shape) == 1 and info.label not in DENSE_TYPES:
        raise UnsupportedModelError(
            f"{where}: vector {name} has type {info.label}; supported are {', '.join(DENSE_TYPES)}"
        )


def _convert(
    path: Path,
    name: str,
    tensor: GGUFTensor,
    shape: tuple[int, ...],
    raw: Tensor,
    factor: float = 1.0,
) -> Weight:
    """Bytes to a canonical weight; what is wrong with them is said of the file's tensor."""
    from ...kernels.formats.canonical import QuantizedLinear
    from .blocks import convert_tensor

    try:
        weight = convert_tensor(tensor.name, tensor.type, shape, raw, factor)
        if isinstance(weight, QuantizedLinear):
            weight.name = name
        return weight
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}", hint=error.hint) from error


def _read_factors(where: str, parts: GGUFParts, tensor: GGUFTensor) -> tuple[float, ...]:
    """A small vector of rotary frequency divisors."""
    if len(tensor.shape) != 1 or tensor.type.name != "F32":
        raise CheckpointError(
            f"{where}: tensor {tensor.name} is {tensor.type.name} {list(tensor.shape)}; expected a "
            "vector of F32"
        )
    if tensor.shape[0] > model_checks.MAX_HEAD_DIM:
        raise CheckpointError(
            f"{where}: tensor {tensor.name} has {tensor.shape[0]} values; expected at most "
            f"{model_checks.MAX_HEAD_DIM}"
        )
    from torch import Tensor

    path, raw = parts.path_of(tensor), parts.raw(tensor)
    weight = _convert(path, tensor.name, tensor, tensor.shape, raw)
    assert isinstance(weight, Tensor)
    values = tuple(weight.tolist())
    wrong = [v for v in values if not 1e-6 <= v <= 1e9]
    if wrong:  # a frequency over less would be no number
        raise CheckpointError(
            f"{where}: tensor {tensor.name} holds {wrong[0]:g}; expected values from 1e-06 to 1e+09"
        )
    return values


def _half_split_rows(raw: Tensor, heads: int, rows: int) -> Tensor:
    """Undo the interleaving of row pairs in each head: whole rows move, whatever their type.

    raw: uint8 [bytes] or [rows, bytes of a row]; the result is a copy [rows, bytes of a row].
    File row 2 i + j of a head becomes row i + j d / 2, where d is the head size.
    """
    split = raw.reshape(heads, rows // heads // 2, 2, -1)
    return split.transpose(1, 2).reshape(rows, -1)
