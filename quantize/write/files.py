"""Files of a new folder: whole and on the disk, or not there at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from halfbyte.errors import QuantizeError

from ...loaders.files.safetensors_index import INDEX, SINGLE
from .tokenizer import as_json

_PART = "model-{:05}.safetensors"
_WHOLE = "model-{:05}-of-{:05}.safetensors"


def unwritable(path: Path, error: OSError | Exception) -> QuantizeError:
    """The error for a file or folder that cannot be written."""
    reason = getattr(error, "strerror", None) or str(error)
    return QuantizeError(
        f"cannot write {path}: {reason}",
        hint="free some space there, or name a folder on a disk that has it and may be written to",
    )


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that is made here, and removed with all that is in it when its filling fails.

    Raises QuantizeError when something is at ``path`` already, or it cannot be made.
    """
    try:
        path.mkdir()
    except FileExistsError:
        raise QuantizeError(
            f"{path} is there already; nothing is ever written over it",
            hint="name a folder that does not exist yet",
        ) from None
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield path
        _sync(path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def write_file(path: Path, data: bytes) -> None:
    """A new file, on the disk when this returns. Raises QuantizeError when it cannot be written."""
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error) from error


class ShardWriter:
    """Safetensors files of a folder, of about one size; one of them is in memory at a time.

    Args:
        folder: where they go.
        shard_bytes: of the tensors of a file; a larger tensor has a file of its own.

    Attributes:
        total: bytes of all tensors.
    """

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.total = 0
        self._folder, self._limit = folder, shard_bytes
        self._waiting: dict[str, Tensor] = {}
        self._held = 0
        self._shards: list[list[str]] = []

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Take in tensors ([N, K], [N] and others) that belong into one file.

        Raises QuantizeError when a file that is full cannot be written.
        """
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self._waiting and self._held + size > self._limit:
            self._flush()
        self._waiting.update(tensors)
        self._held += size
        self.total += size

    def finish(self) -> None:
        """Write what is left, and the index where there are several files.

        Raises QuantizeError when a file cannot be written.
        """
        self._flush()
        count = len(self._shards)
        places: dict[str, str] = {}
        for index, names in enumerate(self._shards, 1):
            final = SINGLE if count == 1 else _WHOLE.format(index, count)
            self._part(index).rename(self._folder / final)
            places.update(dict.fromkeys(names, final))
        if count > 1:
            values = {"metadata": {"total_size": self.total}, "weight_map": places}
            write_file(self._folder / INDEX, as_json(values))

    def _part(self, index: int) -> Path:
        return self._folder / _PART.format(index)

    def _flush(self) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        self._shards.append(list(self._waiting))
        path = self._part(len(self._shards))
        try:
            path.touch()
            mode = path.stat().st_mode  # the library makes its files for their owner alone
            save_file(self._waiting, path, metadata={"format": "pt"})
            path.chmod(mode)
            _sync(path)
        except (OSError, SafetensorError) as error:
            raise unwritable(path, error) from error
        self._waiting, self._held = {}, 0


def _sync(path: Path) -> None:
    """Wait until a file's, or a folder's, entries are on the disk."""
    if not hasattr(os, "O_DIRECTORY") and path.is_dir():
        return  # such systems cannot open folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        os.close(handle)
