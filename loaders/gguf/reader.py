"""Bounded, memory-mapped reader of the GGUF container (versions 2 and 3, little-endian).

A GGUF file is: magic, version, counts, key/value metadata, tensor infos, padding, tensor data.
Every count, length, type and offset is checked against the bytes that are really there before
anything of that size is built, so a short hostile file costs neither time nor memory.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfbyte.errors import CheckpointError

from ..files.fields import shown
from ..files.mapped import MappedFile
from .types import BLOCK_TYPES, REMOVED_TYPES, TensorType

if TYPE_CHECKING:
    from torch import Tensor

MAX_KEYS = 1 << 14
MAX_TENSORS = 1 << 16
MAX_KEY_BYTES = 1 << 16
MAX_TENSOR_NAME_BYTES = 63
MAX_STRING_BYTES = 1 << 20
MAX_TEXT_BYTES = 1 << 23  # all keys, names and plain string values together
MAX_ARRAY_STRINGS = 1 << 21  # in all string arrays together: twice the largest vocabularies
MAX_ARRAY_ITEMS = 1 << 24
MAX_ALIGNMENT = 1 << 20
_MAX_DIMS = 4

_STRING, _ARRAY, _BOOL = 8, 9, 7
# Value type id -> (name, struct code); string and array have no fixed size.
_SCALARS: dict[int, tuple[str, struct.Struct]] = {
    0: ("uint8", struct.Struct("<B")),
    1: ("int8", struct.Struct("<b")),
    2: ("uint16", struct.Struct("<H")),
    3: ("int16", struct.Struct("<h")),
    4: ("uint32", struct.Struct("<I")),
    5: ("int32", struct.Struct("<i")),
    6: ("float32", struct.Struct("<f")),
    _BOOL: ("bool", struct.Struct("<B")),
    10: ("uint64", struct.Struct("<Q")),
    11: ("int64", struct.Struct("<q")),
    12: ("float64", struct.Struct("<d")),
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor's header.

    Attributes:
        name: as in the file.
        shape: torch order (the file stores it reversed).
        type: block type.
        offset: first byte in the file.
        nbytes: bytes in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    nbytes: int


class GGUFArray:
    """A metadata array, checked when the file was opened; numbers are decoded only when asked for.

    Attributes:
        item_type: GGUF value type id of the items.
        count: number of items.
    """

    __slots__ = ("_file", "_offset", "_strings", "count", "item_type")

    def __init__(
        self,
        file: MappedFile,
        item_type: int,
        count: int,
        offset: int,
        strings: tuple[str, ...] = (),
    ) -> None:
        self._file = file
        self._offset = offset
        self._strings = strings
        self.item_type = item_type
        self.count = count

    def __repr__(self) -> str:
        kind = "string" if self.item_type == _STRING else _SCALARS[self.item_type][0]
        return f"array of {self.count} {kind}"

    def values(self) -> tuple[Any, ...]:
        """The items: str, int, float or bool."""
        if self.item_type == _STRING:
            return self._strings
        code = _SCALARS[self.item_type][1].format[-1]
        items = struct.unpack_from(f"<{self.count}{code}", self._file.buffer, self._offset)
        return tuple(map(bool, items)) if self.item_type == _BOOL else items


class GGUFFile:
    """An open GGUF file: metadata, tensor headers, and mapped views of tensor bytes.

    Attributes:
        path: the file.
        version: 2 or 3.
        metadata: key -> int, float, bool, str or :class:`GGUFArray`.
        value_types: key -> GGUF value type id.
        tensors: name -> header, in file order.
        alignment: every tensor's offset in the data section is a multiple of it.

    Raises:
        CheckpointError: anything in the file is damaged, inconsistent or beyond the limits.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = MappedFile(path)
        try:
            cursor = _Cursor(self.file)
            self.version = _read_version(cursor)
            n_tensors = cursor.count("tensor count", MAX_TENSORS, bytes_each=24)
            n_keys = cursor.count("metadata key count", MAX_KEYS, bytes_each=13)
            self.metadata, self.value_types = _read_metadata(cursor, n_keys)
            self.alignment = _alignment(path, self.metadata)
            infos = [_read_tensor_info(cursor) for _ in range(n_tensors)]
            data_start = -(-cursor.position // self.alignment) * self.alignment
            self.tensors = _place_tensors(self.file, infos, data_start, self.alignment)
        except BaseException:
            self.file.close()
            raise

    def raw(self, tensor: GGUFTensor) -> Tensor:
        """uint8 view [nbytes] of a tensor's bytes in the map; copy before keeping."""
        return self.file.view(tensor.offset, tensor.nbytes)

    def close(self) -> None:
        """Unmap the file."""
        self.file.close()


class _Cursor:
    """Sequential reads with a bounds check before each one."""

    def __init__(self, file: MappedFile) -> None:
        self.path = file.path
        self.file = file
        self.buffer = file.buffer
        self.size = file.size
        self.position = 0
        self.text_bytes = 0
        self.array_strings = 0

    def error(self, message: str, hint: str = "") -> CheckpointError:
        return CheckpointError(f"{self.path}: {message}", hint=hint)

    def need(self, nbytes: int, what: str) -> None:
        left = self.size - self.position
        if nbytes > left:
            raise self.error(
                f"{what} needs {nbytes} bytes at offset {self.position}, but the file ends after "
                f"{left} more",
                "the file is truncated or damaged: download it again",
            )

    def take(self, layout: struct.Struct, what: str) -> Any:
        self.need(layout.size, what)
        value = layout.unpack_from(self.buffer, self.position)[0]
        self.position += layout.size
        return value

    def count(self, what: str, limit: int, bytes_each: int) -> int:
        """A u64 count, bounded by ``limit`` and by the bytes that so many items need."""
        value = self.take(_U64, what)
        if value > limit:
            raise self.error(f"{what} is {value}; expected at most {limit}")
        self.need(value * bytes_each, f"{what} {value}")
        return value

    def string(self, what: str, limit: int) -> str:
        length = self.take(_U64, f"the length of {what}")
        if length > limit:
            raise self.error(f"{what} is {length} bytes long; expected at most {limit}")
        self.need(length, what)
        self.text_bytes += length
        if self.text_bytes > MAX_TEXT_BYTES:
            raise self.error(f"{what} brings names and strings over {MAX_TEXT_BYTES} bytes")
        data = self.buffer[self.position : self.position + length]
        self.position += length
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not valid UTF-8 at its byte {error.start}") from error

    def strings(self, count: int, what: str) -> tuple[str, ...]:
        """The next ``count`` strings; one tight loop, as there are many.

        To check a string is to decode it, so the result is kept: a vocabulary would take as long
        once more.
        """
        self.array_strings += count
        if self.array_strings > MAX_ARRAY_STRINGS:
            raise self.error(
                f"{what} brings the strings in metadata arrays to {self.array_strings}; "
                f"expected at most {MAX_ARRAY_STRINGS}"
            )
        buffer, position, size = self.buffer, self.position, self.size
        length_at = _U64.unpack_from
        found: list[str] = []
        try:
            for _ in range(count):
                start = position + 8
                if start > size:
                    break
                position = start + length_at(buffer, position)[0]
                if position > size or position - start > MAX_STRING_BYTES:
                    break
                found.append(str(buffer[start:position], "utf-8"))
            else:
                self.position = position
                return tuple(found)
        except UnicodeDecodeError as error:
            raise self.error(
                f"{what}: item {len(found)} is not valid UTF-8 at its byte {error.start}"
            ) from error
        raise self.error(
            f"{what}: item {len(found)} of {count} runs past the end of the file, or is longer "
            f"than {MAX_STRING_BYTES} bytes",
            "the file is truncated or damaged: download it again",
        )


def _read_version(cursor: _Cursor) -> int:
    if cursor.size < 4 or cursor.buffer[:4] != b"GGUF":
        raise cursor.error(
            f"starts with {cursor.buffer[:4]!r}; expected b'GGUF'",
            "this is not a GGUF file; an unfinished download or a web page may have been saved",
        )
    cursor.position = 4
    version = cursor.take(_U32, "the version")
    if version in (2, 3):
        return version
    if version == 1:
        raise cursor.error(
            "GGUF version 1 is not supported; expected 2 or 3",
            "convert the original model again with a current converter",
        )
    if version in (1 << 24, 2 << 24, 3 << 24):
        raise cursor.error(
            "this is a big-endian GGUF file; only little-endian ones are supported",
            "convert the original model again, for little-endian machines",
        )
    raise cursor.error(f"GGUF version is {version}; expected 2 or 3")


def _read_metadata(cursor: _Cursor, count: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Values by their keys, and their types."""
    metadata: dict[str, Any] = {}
    types: dict[str, int] = {}
    for index in range(count):
        key = cursor.string(f"metadata key {index}", MAX_KEY_BYTES)
        if not key or "\0" in key:
            raise cursor.error(f"metadata key {index} is {shown(key)}; expected a plain name")
        if key in metadata:
            raise cursor.error(f"metadata key {shown(key)} appears twice")
        what = f"metadata key {shown(key)}"
        types[key] = cursor.take(_U32, f"the type of {what}")
        metadata[key] = _read_value(cursor, types[key], what)
    return metadata, types


def _read_value(cursor: _Cursor, kind: int, what: str) -> Any:
    if kind == _STRING:
        return cursor.string(what, MAX_STRING_BYTES)
    if kind == _ARRAY:
        return _read_array(cursor, what)
    if kind not in _SCALARS:
        raise cursor.error(f"{what} has value type {kind}; expected 0 to 12")
    value = cursor.take(_SCALARS[kind][1], what)
    if kind == _BOOL:
        if value > 1:
            raise cursor.error(f"{what} is a bool with the byte {value}; expected 0 or 1")
        return bool(value)
    return value


def _read_array(cursor: _Cursor, what: str) -> GGUFArray:
    item_type = cursor.take(_U32, f"the item type of {what}")
    if item_type == _ARRAY:
        raise cursor.error(f"{what} is an array of arrays; nested arrays are not supported")
    if item_type != _STRING and item_type not in _SCALARS:
        raise cursor.error(f"{what} is an array of value type {item_type}; expected 0 to 12")
    item_bytes = 8 if item_type == _STRING else _SCALARS[item_type][1].size
    count = cursor.count(f"the item count of {what}", MAX_ARRAY_ITEMS, item_bytes)
    if item_type == _STRING:
        offset = cursor.position
        return GGUFArray(cursor.file, item_type, count, offset, cursor.strings(count, what))
    array = GGUFArray(cursor.file, item_type, count, cursor.position)
    cursor.position += count * item_bytes
    return array


def _alignment(path: Path, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    good = isinstance(value, int) and not isinstance(value, bool) and 8 <= value <= MAX_ALIGNMENT
    if not good or value & (value - 1):
        raise CheckpointError(
            f"{path}: general.alignment is {shown(value)}; expected a power of two from 8 to "
            f"{MAX_ALIGNMENT}"
        )
    return value


def _read_tensor_info(cursor: _Cursor) -> GGUFTensor:
    """One header; its offset is still relative to the data section."""
    name = cursor.string("a tensor name", MAX_TENSOR_NAME_BYTES)
    if not name or not name.isprintable():
        raise cursor.error(f"a tensor is named {shown(name)}; expected a plain name")
    n_dims = cursor.take(_U32, f"the dimension count of {name}")
    if not 1 <= n_dims <= _MAX_DIMS:
        raise cursor.error(f"tensor {name} has {n_dims} dimensions; expected 1 to {_MAX_DIMS}")
    sizes = [cursor.take(_U64, f"the sizes of {name}") for _ in range(n_dims)]
    type_id = cursor.take(_U32, f"the type of {name}")
    offset = cursor.take(_U64, f"the offset of {name}")
    kind = BLOCK_TYPES.get(type_id)
    if kind is None:
        removed = REMOVED_TYPES.get(type_id)
        known = f" ({removed}, which was removed from the format)" if removed else ""
        raise cursor.error(
            f"tensor {name} has type {type_id}{known}; expected one of "
            f"{', '.join(t.name for t in BLOCK_TYPES.values())}",
            "convert the original model again with a current converter",
        )
    if 0 in sizes:
        raise cursor.error(f"tensor {name} has sizes {sizes}; expected at least 1 each")
    if sizes[0] % kind.elements:
        raise cursor.error(
            f"tensor {name} has rows of {sizes[0]} elements; {kind.name} needs a multiple of "
            f"{kind.elements}"
        )
    # Python integers do not wrap, so a product that overflows 64 bits simply exceeds the file.
    nbytes = math.prod(sizes) // kind.elements * kind.nbytes
    return GGUFTensor(name, tuple(reversed(sizes)), kind, offset, nbytes)


def _place_tensors(
    file: MappedFile, infos: list[GGUFTensor], data_start: int, alignment: int
) -> dict[str, GGUFTensor]:
    """Absolute offsets; refuses duplicates, ranges outside the file, and overlaps."""
    tensors: dict[str, GGUFTensor] = {}
    for info in infos:
        start = data_start + info.offset
        if info.name in tensors:
            raise CheckpointError(f"{file.path}: tensor {info.name} appears twice")
        if info.offset % alignment:
            raise CheckpointError(
                f"{file.path}: tensor {info.name} is at offset {info.offset}; expected a multiple "
                f"of the alignment {alignment}"
            )
        if start + info.nbytes > file.size:
            raise CheckpointError(
                f"{file.path}: tensor {info.name} spans bytes {start} to {start + info.nbytes}, "
                f"but the file has {file.size}",
                hint="the file is truncated or damaged: download it again",
            )
        tensors[info.name] = GGUFTensor(info.name, info.shape, info.type, start, info.nbytes)
    previous: GGUFTensor | None = None
    for tensor in sorted(tensors.values(), key=lambda t: t.offset):
        if previous is not None and tensor.offset < previous.offset + previous.nbytes:
            raise CheckpointError(
                f"{file.path}: tensors {previous.name} and {tensor.name} overlap at byte "
                f"{tensor.offset}"
            )
        previous = tensor
    return tensors
