"""A GGUF model in one file, or split into files ``NAME-00001-of-0000N.gguf``, as one whole.

Every part is a GGUF container of its own. The first holds the metadata; the others repeat nothing
but which part they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfbyte.errors import CheckpointError

from ..files.fields import Fields, shown
from ..files.folder_files import ModelFolder
from .reader import MAX_TENSORS, GGUFArray, GGUFFile, GGUFTensor

if TYPE_CHECKING:
    from torch import Tensor

_MAX_PARTS = 1024
_PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)


def part_of(name: str) -> tuple[str, int, int] | None:
    """Prefix, number from 1 and number of parts in the name of a part; None for other names."""
    found = _PART.fullmatch(name)
    return (found[1], int(found[2]), int(found[3])) if found else None


def first_part(names: Iterable[str]) -> str | None:
    """The first file of a split model when ``names`` are parts of a single one, else None."""
    names = sorted(names)
    parts = [part_of(name) for name in names]
    models = {(part[0], part[2]) for part in parts if part is not None}
    return names[0] if len(models) == 1 and None not in parts else None


class GGUFParts:
    """Open files of one model: metadata, all tensor headers, and views of tensor bytes.

    Attributes:
        metadata: key -> value of the first part.
        tensors: name -> header, part after part in file order.
        files: the parts in order.

    Args:
        path: the only file, or any part; the others are looked for beside it.

    Raises:
        CheckpointError: a file is damaged, or the parts do not make up one model.
    """

    def __init__(self, path: Path) -> None:
        given = GGUFFile(path)
        self.files: list[GGUFFile] = [given]
        self.tensors: dict[str, GGUFTensor] = {}
        self._file_of: dict[str, GGUFFile] = {}
        try:
            count = Fields(str(path), given.metadata).integer("split.count", 0, _MAX_PARTS, 1)
            part = part_of(path.name)
            if count > 1:
                self._open_parts(given, count)
            elif part is not None and part[2] > 1:
                raise CheckpointError(
                    f"{path}: the name says part {part[1]} of {part[2]}, but the file has no "
                    "split.count",
                    hint="rename the file if it holds the whole model",
                )
            else:
                self._take_tensors(given)
            self.metadata: dict[str, Any] = self.files[0].metadata
        except BaseException:
            self.close()
            raise

    def _open_parts(self, given: GGUFFile, count: int) -> None:
        """Open the parts in order, each checked before the next one is touched."""
        number = _check_name(given, count)
        paths = _all_paths(given, number, count)
        ordered: list[GGUFFile] = []
        for index, path in enumerate(paths):
            file = given if index == number else GGUFFile(path)
            if file is not given:
                self.files.append(file)
            ordered.append(file)
            _check_part(ordered[0], file, index, count)
            self._take_tensors(file)
        self.files = ordered
        total = ordered[0].metadata["split.tensors.count"]
        if len(self.tensors) != total:
            raise CheckpointError(
                f"{ordered[0].path}: the {count} parts hold {len(self.tensors)} tensors; "
                f"split.tensors.count says {total}",
                hint="the parts belong to different models: download them again",
            )

    def _take_tensors(self, file: GGUFFile) -> None:
        for name, tensor in file.tensors.items():
            other = self._file_of.get(name)
            if other is not None:
                raise CheckpointError(
                    f"{file.path}: tensor {name} is also in {other.path.name}",
                    hint="the parts belong to different models: download them again",
                )
            self.tensors[name] = tensor
            self._file_of[name] = file
        if len(self.tensors) > MAX_TENSORS:
            raise CheckpointError(f"{file.path} brings the tensors of the model over {MAX_TENSORS}")

    def raw(self, tensor: GGUFTensor) -> Tensor:
        """uint8 view [nbytes] of a tensor's bytes in the map; copy before keeping."""
        return self._file_of[tensor.name].raw(tensor)

    def path_of(self, tensor: GGUFTensor) -> Path:
        """The file that holds a tensor."""
        return self._file_of[tensor.name].path

    def release(self, tensors: Iterable[GGUFTensor]) -> None:
        """Drop the resident pages of these tensors; they can be read again."""
        for tensor in tensors:
            self._file_of[tensor.name].file.release([(tensor.offset, tensor.nbytes)])

    def close(self) -> None:
        """Unmap all files."""
        for file in self.files:
            file.close()


def _part_name(path: Path, index: int, count: int) -> str:
    part = part_of(path.name)
    prefix = path.stem if part is None else part[0]
    return f"{prefix}-{index + 1:05d}-of-{count:05d}.gguf"


def _check_name(file: GGUFFile, count: int) -> int:
    """Index of a part; its name must say the same, or the others could not be found."""
    number = Fields(str(file.path), file.metadata).integer("split.no", 0, count - 1)
    expected = _part_name(file.path, number, count)
    if file.path.name != expected:
        raise CheckpointError(
            f"{file.path} is part {number + 1} of {count} of a split model; expected the name "
            f"{expected}",
            hint="give the parts back the names that they were made with",
        )
    return number


def _all_paths(given: GGUFFile, number: int, count: int) -> list[Path]:
    """The files of all parts; every one but the given must be in its folder."""
    folder = ModelFolder(given.path.parent)
    names = [_part_name(given.path, i, count) for i in range(count)]
    absent = [n for i, n in enumerate(names) if i != number and folder.find(n) is None]
    if absent:
        more = f" and more, {len(absent)} in all," if len(absent) > 10 else ""
        raise CheckpointError(
            f"{given.path} is part {number + 1} of {count}: {', '.join(absent[:10])}{more} "
            f"not in {folder.path}",
            hint="download all parts into one folder",
        )
    return [folder.path / name for name in names]


def _check_part(first: GGUFFile, part: GGUFFile, number: int, count: int) -> None:
    """A part says which one it is, and nothing else that the first does not say."""
    total = Fields(str(first.path), first.metadata).integer("split.tensors.count", 0, MAX_TENSORS)
    expected = {"split.no": number, "split.count": count, "split.tensors.count": total}
    for key, value in expected.items():
        found = part.metadata.get(key)
        if found != value or isinstance(found, bool):
            raise CheckpointError(
                f"{part.path}: {key} is {shown(found)}; expected {value} in part {number + 1} of "
                f"{count}",
                hint="the file belongs to another model, or is a copy of another part",
            )
    # Other metadata in a later part would be ignored, so it must repeat the first part's.
    for key, value in part.metadata.items():
        if part is first or key.startswith("split.") or key == "general.alignment":
            continue
        if isinstance(value, GGUFArray) or first.metadata.get(key) != value:
            raise CheckpointError(
                f"{part.path}: metadata key {shown(key)} is {shown(value)}, but "
                f"{shown(first.metadata.get(key))} in {first.path.name}; only the first part of a "
                "split model may hold metadata of its own",
                hint="the parts belong to different models: download them again",
            )
