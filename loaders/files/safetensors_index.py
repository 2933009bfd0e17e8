"""Safetensors containers, single and sharded: every header checked before data is touched.

A file is: u64 header length, a JSON header, and a buffer that the tensors tile without holes.
The data is then read through our own memory map, so that pages can be given back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from halfbyte.errors import CheckpointError

from .fields import shown
from .folder_files import ModelFolder
from .json_text import parse_object
from .mapped import MappedFile

if TYPE_CHECKING:
    from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Far above real headers (about 150 bytes a tensor), and small enough that parsing a hostile
# one stays within a second and 100 MB.
MAX_HEADER_BYTES = 1 << 24
_MAX_TENSORS = 1 << 18  # four tensors for each of 128 experts' matrices in 94 layers: 144 000
MAX_INDEX_BYTES = 1 << 25
_MAX_ITEMS = 1 << 20  # brackets and commas; a tensor has nine or ten
MAX_SHARDS = 1 << 12
_MAX_DIMS = 8
MAX_NAME = 512

DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor's header.

    Attributes:
        name: as in the file.
        dtype: the container's spelling, such as ``BF16``.
        shape: torch order.
        file: index of its file in :attr:`SafetensorsFiles.files`.
        offset: first byte in the file.
        nbytes: bytes in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    offset: int
    nbytes: int


class SafetensorsFiles:
    """The open weights files of one model folder.

    Attributes:
        files: mapped files, in the order of the index.
        tensors: name -> header, in file order.
        unlisted: tensors in the files that the index does not name; they are not used.

    Raises:
        CheckpointError: a file is missing, damaged or crafted, or the index does not match.
    """

    def __init__(self, folder: ModelFolder) -> None:
        self.files: list[MappedFile] = []
        self.tensors: dict[str, StoredTensor] = {}
        self.unlisted: list[str] = []
        try:
            weight_map = _weight_map(folder)
            names = [SINGLE] if weight_map is None else list(dict.fromkeys(weight_map.values()))
            for name in names:
                self._add(folder, name)
            if weight_map is not None:
                self._follow_index(folder, names, weight_map)
        except BaseException:
            self.close()
            raise

    def _add(self, folder: ModelFolder, name: str) -> None:
        found = folder.find(name)
        if found is None:
            raise CheckpointError(
                f"{folder.path / name}, listed in {INDEX}, is missing",
                hint="the download is incomplete: repeat it",
            )
        file = MappedFile(found, folder.path / name)
        self.files.append(file)
        for tensor in read_header(file, len(self.files) - 1):
            if tensor.name in self.tensors:
                raise CheckpointError(
                    f"{folder.path}: tensor {tensor.name} is in two files, "
                    f"{self.files[self.tensors[tensor.name].file].path.name} and {name}"
                )
            self.tensors[tensor.name] = tensor

    def _follow_index(
        self, folder: ModelFolder, names: list[str], weight_map: dict[str, str]
    ) -> None:
        for tensor, name in weight_map.items():
            stored = self.tensors.get(tensor)
            if stored is None or names[stored.file] != name:
                raise CheckpointError(
                    f"{folder.path / INDEX} says that tensor {shown(tensor)} is in {name}; it is "
                    f"{'not there' if stored is None else 'in ' + names[stored.file]}",
                    hint="the folder mixes two downloads: repeat it",
                )
        self.unlisted = [name for name in self.tensors if name not in weight_map]
        for name in self.unlisted:
            del self.tensors[name]

    def raw(self, tensor: StoredTensor) -> Tensor:
        """uint8 view [nbytes] of a tensor's bytes; copy before keeping."""
        return self.files[tensor.file].view(tensor.offset, tensor.nbytes)

    def release(self, tensors: Iterable[StoredTensor]) -> None:
        """Drop the file pages of these tensors from memory."""
        for tensor in tensors:
            self.files[tensor.file].release([(tensor.offset, tensor.nbytes)])

    def close(self) -> None:
        """Unmap all files."""
        for file in self.files:
            file.close()


def _weight_map(folder: ModelFolder) -> dict[str, str] | None:
    """The index's tensor -> file map, or None when the model is one file."""
    if folder.find(SINGLE) is not None:
        return None
    index = folder.read_json(INDEX, MAX_INDEX_BYTES, _MAX_ITEMS)
    where = folder.path / INDEX
    if index is None:
        raise CheckpointError(
            f"{folder.path} has neither {SINGLE} nor {INDEX}",
            hint="other names (.bin and .pt files, adapters, consolidated files) are not read; "
            "pickled weights have to be saved as safetensors first",
        )
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not 0 < len(weight_map) <= _MAX_TENSORS:
        raise CheckpointError(
            f"{where}: weight_map is {shown(weight_map)}; expected an object with 1 to "
            f"{_MAX_TENSORS} tensors"
        )
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{where}: tensor {shown(tensor)} is in {shown(name)}; expected the name of a "
                ".safetensors file"
            )
    count = len(set(weight_map.values()))
    if count > MAX_SHARDS:
        raise CheckpointError(f"{where}: {count} files; expected at most {MAX_SHARDS}")
    return weight_map


def read_header(file: MappedFile, index: int = 0) -> list[StoredTensor]:
    """The headers of one safetensors file, in data order.

    Checks length, JSON, dtypes, shapes, and that the byte ranges tile the data exactly.
    Raises CheckpointError naming the file, the tensor, the value found and the one expected.
    """
    where = file.path
    if file.size < 8:
        raise CheckpointError(
            f"{where}: {file.size} bytes; a safetensors file has at least 8",
            hint="the file is truncated or damaged: download it again",
        )
    length = int.from_bytes(file.buffer[:8], "little")
    limit = min(MAX_HEADER_BYTES, file.size - 8)
    if not 2 <= length <= limit:
        raise CheckpointError(
            f"{where}: header length {length}; expected 2 to {limit}",
            hint="the file is truncated or is not a safetensors file: download it again",
        )
    header = file.buffer[8 : 8 + length]
    if header[:1] != b"{":
        raise CheckpointError(f"{where}: the header starts with {header[:1]!r}; expected '{{'")
    entries = parse_object(header, str(where), max_bytes=length, max_items=_MAX_ITEMS)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{where}: __metadata__ is not an object of strings")
    data_start = 8 + length
    tensors = [_entry(str(where), name, entry, index) for name, entry in entries.items()]
    tensors.sort(key=lambda t: (t.offset, t.nbytes))
    end = 0
    for tensor in tensors:
        if tensor.offset != end:
            kind = "overlaps the tensor before it" if tensor.offset < end else "leaves a hole"
            raise CheckpointError(
                f"{where}: tensor {tensor.name} starts at data byte {tensor.offset}; expected "
                f"{end}: it {kind}",
                hint="the file is damaged or crafted: download it again",
            )
        end += tensor.nbytes
    if end != file.size - data_start:
        raise CheckpointError(
            f"{where}: the tensors need {end} bytes of data; the file has {file.size - data_start}",
            hint="the file is truncated or damaged: download it again",
        )
    return [
        StoredTensor(t.name, t.dtype, t.shape, index, data_start + t.offset, t.nbytes)
        for t in tensors
    ]


def _entry(where: str, name: str, entry: Any, index: int) -> StoredTensor:
    """One header entry; its offset is still relative to the data."""
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise CheckpointError(
            f"{where}: a tensor is named {shown(name)}; expected a plain name of up to {MAX_NAME} "
            "characters"
        )
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            f"{where}: tensor {name} is {shown(entry)}; expected dtype, shape, data_offsets"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    size = DTYPE_BYTES.get(dtype) if isinstance(dtype, str) else None
    if size is None:
        raise CheckpointError(
            f"{where}: tensor {name} has dtype {shown(dtype)}; expected one of "
            f"{', '.join(DTYPE_BYTES)}"
        )
    if not _whole_numbers(shape) or len(shape) > _MAX_DIMS:
        raise CheckpointError(
            f"{where}: tensor {name} has shape {shown(shape)}; expected at most {_MAX_DIMS} "
            "whole numbers"
        )
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            f"{where}: tensor {name} has data_offsets {shown(offsets)}; expected two rising "
            "whole numbers"
        )
    nbytes = offsets[1] - offsets[0]
    needed = math.prod(shape) * size
    if nbytes != needed:
        raise CheckpointError(
            f"{where}: tensor {name}, {dtype} {shape}, spans {nbytes} bytes; expected {needed}"
        )
    return StoredTensor(name, dtype, tuple(shape), index, offsets[0], nbytes)


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value
    )
