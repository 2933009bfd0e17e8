"""A GGUF file of a model: its tensors in the file's own names and order, metadata, tokenizer.

Tensors go through one by one; nothing but what is quantized already is in memory as a whole.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from torch import Tensor

from halfbyte.errors import QuantizeError

from ...kernels.formats.canonical import QuantizedLinear, Weight
from ...kernels.formats.stored import StoredLinear
from ...loaders.base import Checkpoint, load_stored
from ...loaders.gguf.checkpoint import FACTOR_TENSORS, file_name
from ...loaders.gguf.config import read_config
from ...loaders.gguf.parts import GGUFParts
from ...loaders.gguf.reader import GGUFFile, GGUFTensor
from ...loaders.gguf.tokenizer import read_tokenizer
from ...loaders.gguf.types import BLOCK_TYPES, CANONICAL
from ...loaders.model.report import LoadReport
from ..methods.gguf_blocks import TYPES
from ..methods.gguf_fit import BlockScales
from ..methods.gguf_layout import write_blocks
from .gguf_metadata import (
    QUANTIZATION_VERSION,
    Metadata,
    add_entries,
    architecture_of,
    check_config,
    copied_metadata,
    count,
    described_metadata,
    family_of,
    rope_tensors,
    without_window,
)
from .gguf_vocabulary import check_vocabulary, vocabulary_metadata

_IDS = {kind.name: kind.id for kind in BLOCK_TYPES.values()}
_DENSE = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
# What ``general.file_type`` is where most weights are of a type; a hint for people.
_FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K": 12,
    "Q4_K": 15,
    "Q5_K": 17,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "BF16": 32,
}


@dataclass(frozen=True, slots=True)
class _Header:
    """A tensor of the file: the weights stacked in it, its shape and type."""

    name: str
    parts: tuple[str, ...]
    shape: tuple[int, ...]
    type: str

    @property
    def nbytes(self) -> int:
        kind = BLOCK_TYPES[_IDS[self.type]]
        return int(np.prod(self.shape)) // kind.elements * kind.nbytes


def write_gguf(model: Checkpoint, out: Path, file_type: int | None = None) -> None:
    """Write a model as one GGUF file, the same bytes for the same model.

    A model that came from a GGUF file keeps all its metadata; one from a folder gets what its
    config and its tokenizer files say. Dense vectors of a folder become F32, dense matrices stay.
    See :func:`.gguf_metadata.without_window`, too.

    Args:
        model: with weights dense, in GGUF blocks, or in codes that blocks of 32 can hold as they
            are.
        out: the file; must not be there.
        file_type: ``general.file_type``; None = by the type of most weights.

    Raises:
        QuantizeError: the format cannot hold the architecture, the tokenizer or a weight.
        TokenizerError: the model's tokenizer is damaged or missing.
        OSError: the file cannot be written.
    """
    metadata, extra = _described(model)
    headers = [_header(model, name, parts) for name, parts in _tensor_names(model).items()]
    metadata["general.file_type"] = count(_file_type(headers) if file_type is None else file_type)
    metadata["general.quantization_version"] = count(QUANTIZATION_VERSION)
    writer = _writer(model)
    add_entries(writer, metadata)
    for name, values in extra.items():
        writer.add_tensor_info(name, [len(values)], np.dtype(np.float32), 4 * len(values))
    for header in headers:
        kind, shape = GGMLQuantizationType(_IDS[header.type]), header.shape
        writer.add_tensor_info(header.name, shape, np.dtype(np.float32), header.nbytes, kind)
    if out.exists():
        raise QuantizeError(f"{out} is there already; expected a path for a new file")
    try:
        writer.write_header_to_file(out)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in extra.values():
            writer.write_tensor_data(np.array(values, dtype=np.float32))
        for header in headers:
            writer.write_tensor_data(_bytes_of(model, header).numpy())
            model.release(header.parts)
    finally:
        writer.close()


def check_writable(model: Checkpoint) -> None:
    """Refuse, before hours of work, a model that :func:`write_gguf` could not write.

    Raises:
        QuantizeError: the format cannot hold the architecture or the tokenizer.
        TokenizerError: the model's tokenizer is damaged or missing.
    """
    _described(model)


def _described(model: Checkpoint) -> tuple[Metadata, Mapping[str, tuple[float, ...]]]:
    """Metadata, and small tensors that the config is read from."""
    if model.kind == "gguf":
        parts = GGUFParts(model.path)
        try:
            metadata = copied_metadata(parts)
            return metadata, {
                name: tuple(parts.raw(tensor).clone().view(torch.float32).tolist())
                for name, tensor in parts.tensors.items()
                if name in FACTOR_TENSORS
            }
        finally:
            parts.close()
    config = without_window(model.config)
    metadata = described_metadata(config, model.path)
    metadata |= vocabulary_metadata(model)
    extra = rope_tensors(model.config)
    _check_readable(model, metadata, extra)
    return metadata, extra


def _check_readable(
    model: Checkpoint, metadata: Metadata, extra: Mapping[str, tuple[float, ...]]
) -> None:
    """Read metadata back and compare what it means."""
    infos = {info.name: info for info in model.tensors()}
    tensors: dict[str, GGUFTensor] = {}
    for name, parts in _tensor_names(model).items():
        info = infos[parts[0]]
        tensors[name] = GGUFTensor(name, info.shape, BLOCK_TYPES[_IDS[info.dtype]], 0, 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.gguf"
        writer = _writer(model)
        add_entries(writer, metadata)
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        file = GGUFFile(path)
        try:
            report = LoadReport("gguf")
            read = read_config(str(model.path), file.metadata, tensors, dict(extra), report)
            check_config(without_window(model.config), read, model.path)
            check_vocabulary(model, read_tokenizer(str(model.path), file.metadata, report))
        finally:
            file.close()


def _writer(model: Checkpoint) -> GGUFWriter:
    writer = GGUFWriter(None, architecture_of(model.config))
    writer.kv_data[0].clear()  # the architecture comes with the other metadata
    return writer


def _tensor_names(model: Checkpoint) -> dict[str, tuple[str, ...]]:
    """Tensors of the file: the weights that are stacked in each, in order."""
    facts = family_of(model.config).gguf
    found: dict[str, list[str]] = {}
    for info in model.tensors():
        found.setdefault(file_name(info.name, facts), []).append(info.name)
    return {name: tuple(_ordered(parts)) for name, parts in found.items()}


def _ordered(names: Iterable[str]) -> list[str]:
    """Experts by number; q, k and v, and gate and up, in the order in which they are stacked."""
    order = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")

    def key(name: str) -> tuple[int, int]:
        *_, number, module, _ = ("", "", *name.split("."))
        return (
            int(number) if number.isdigit() else 0,
            order.index(module) if module in order else 0,
        )

    return sorted(names, key=key)


def _header(model: Checkpoint, name: str, parts: tuple[str, ...]) -> _Header:
    weights = [load_stored(model, part) for part in parts]
    types = sorted({_type_of(model, weight) for weight in weights})
    if len(types) > 1:
        raise QuantizeError(
            f"{name} holds {', '.join(parts[:4])} of types {', '.join(types)}; expected one type: "
            "they are one tensor in a GGUF file"
        )
    first, rows = weights[0].shape, sum(weight.shape[0] for weight in weights)
    if name.endswith(("_exps.weight", "_exps.bias")):
        shape: tuple[int, ...] = (len(parts), *first)
    else:
        shape = (rows, *first[1:])
    return _Header(name, parts, shape, types[0])


def _type_of(model: Checkpoint, weight: Weight) -> str:
    if isinstance(weight, QuantizedLinear):
        return _block_type(weight)
    of_folder = model.kind != "gguf"
    return "F32" if of_folder and weight.dim() == 1 else _DENSE[weight.dtype]


def _block_type(weight: QuantizedLinear) -> str:
    """The type of blocks that hold a weight [N, K] as it is."""
    if isinstance(weight, StoredLinear) and weight.encoding in _IDS:
        return weight.encoding
    form, k = weight.format, weight.in_features
    group = k if form.group_size == -1 else form.group_size
    for name, known in CANONICAL.items():
        plain = BLOCK_TYPES[_IDS[name]].elements == known.group_size
        same = (form.bits, form.zero, form.table) == (known.bits, known.zero, known.table)
        whole = group % known.group_size == 0 and k % known.group_size == 0
        if plain and same and whole and name in TYPES and weight.perm is None and not form.act:
            numbers = [x for x in (weight.scales, weight.zeros) if x is not None]
            if all(torch.equal(x.half().float(), x.float()) for x in numbers):
                return name
    raise QuantizeError(
        f"{weight.name} is quantized as {form.bits} bits in groups of {form.group_size} "
        f"({form.zero}); no GGUF block that can be written holds that as it is",
        hint="quantize the dense model to a GGUF type",
    )


def _bytes_of(model: Checkpoint, header: _Header) -> Tensor:
    """A tensor's bytes, uint8 [rows, bytes of a row], or of a vector [bytes]."""
    parts = [_raw(model, name, header.type) for name in header.parts]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _raw(model: Checkpoint, name: str, kind: str) -> Tensor:
    weight = load_stored(model, name)
    if isinstance(weight, QuantizedLinear):
        raw = _blocks(weight, kind)
    else:
        dtype = next(dtype for dtype, label in _DENSE.items() if label == kind)
        offset = model.config.norm_offset if "norm.weight" in name else 0.0
        if offset:
            weight = weight.float() + offset
        raw = weight.to(dtype).contiguous().view(weight.shape[0], -1).view(torch.uint8)
    return _interleaved(model, name, raw).contiguous()


def _blocks(weight: QuantizedLinear, kind: str) -> Tensor:
    """Raw blocks uint8 [N, bytes of a row]."""
    if isinstance(weight, StoredLinear) and weight.encoding == kind:
        first, *more = weight.parts
        return torch.cat((first, *more)) if more else first
    block = BLOCK_TYPES[_IDS[kind]]
    groups = weight.in_features // block.elements

    def spread(x_NG: Tensor) -> Tensor:
        return x_NG.half().repeat_interleave(groups // x_NG.shape[1], dim=1)

    offset = None if weight.zeros is None else spread(weight.zeros)
    return write_blocks(block, weight.unpack(), BlockScales(spread(weight.scales), offset))


def _interleaved(model: Checkpoint, name: str, raw: Tensor) -> Tensor:
    """Rows of q and k in the order of families that rotate neighbours; see the loader."""
    config = model.config
    heads = config.num_heads if ".q_proj." in name else config.num_kv_heads
    if not family_of(config).gguf.interleaved or not (".q_proj." in name or ".k_proj." in name):
        return raw
    rows = raw.shape[0]
    return raw.reshape(heads, 2, rows // heads // 2, -1).transpose(1, 2).reshape(rows, -1)


def _file_type(headers: Iterable[_Header]) -> int:
    sizes: dict[str, int] = {}
    for header in headers:
        sizes[header.type] = sizes.get(header.type, 0) + int(np.prod(header.shape))
    return _FILE_TYPES[max(sizes, key=lambda kind: sizes[kind])]
