"""A read-only view of a file through a memory map, with every range checked against its size."""

from __future__ import annotations

import mmap
import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from halfbyte.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

# Linux's flag for a mapping that reserves no swap; Python names it only since 3.11.
_MAP_NORESERVE = 0x4000


class MappedFile:
    """A regular file mapped into memory for as long as the checkpoint is open.

    The mapping is private (copy on write): nothing ever reaches the file, and torch can view it
    without complaining that the buffer is read-only. Hosts are little-endian, as the formats are.

    Args:
        path: file to map.
        known_as: path to use in messages, where ``path`` is the target of a link.

    Raises:
        CheckpointError: the file is missing, empty, unreadable or not a regular file.
    """

    def __init__(self, path: Path, known_as: Path | None = None) -> None:
        self.path = known_as or path
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            handle = os.open(path, flags)
        except OSError as error:
            raise CheckpointError(f"cannot open {self.path}: {error.strerror}") from error
        try:
            info = os.fstat(handle)
            if not stat.S_ISREG(info.st_mode):
                raise CheckpointError(f"{self.path} is not a regular file")
            if info.st_size == 0:
                raise CheckpointError(f"{self.path} is empty", hint="download it again")
            self.size: int = info.st_size
            self._map: mmap.mmap | None = _map(handle, info.st_size)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot map {self.path} into memory: {error}") from error
        finally:
            os.close(handle)

    @property
    def buffer(self) -> mmap.mmap:
        """The map itself, for ``struct.unpack_from`` and slicing into ``bytes``."""
        if self._map is None:
            raise CheckpointError(f"{self.path} is closed", hint="open the checkpoint again")
        return self._map

    def view(self, offset: int, nbytes: int) -> Tensor:
        """uint8 tensor [nbytes] over the mapped bytes, not a copy; it keeps the map.

        Raises CheckpointError when the range is outside the file, or when the file has become
        shorter since it was opened (touching the lost pages would kill the process).
        """
        if not (offset >= 0 and 0 < nbytes <= self.size - offset):
            raise CheckpointError(
                f"{self.path}: bytes {offset} to {offset + nbytes} are outside the file of "
                f"{self.size} bytes"
            )
        now = self.buffer.size()
        if now < self.size:
            raise CheckpointError(
                f"{self.path} shrank from {self.size} to {now} bytes while it was open",
                hint="let the download or copy finish, then load again",
            )
        import torch

        return torch.frombuffer(self.buffer, dtype=torch.uint8, count=nbytes, offset=offset)

    def release(self, spans: Iterable[tuple[int, int]]) -> None:
        """Drop the resident pages that lie wholly inside the (offset, nbytes) spans."""
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if advice is None or self._map is None:
            return
        page = mmap.PAGESIZE
        for offset, nbytes in spans:
            start = -(-offset // page) * page
            stop = (offset + nbytes) // page * page
            if start < stop:
                self._map.madvise(advice, start, stop - start)

    def close(self) -> None:
        """Unmap; a second call does nothing."""
        # Not ``_map.close()``: tensors over the map keep it by reference alone, so that would pull
        # the memory from under a view that is still held. Without one, the map goes here.
        self._map = None


def _map(handle: int, size: int) -> mmap.mmap:
    """Private mapping of ``size`` bytes that reserves no memory where the system allows that."""
    if sys.platform.startswith("linux"):
        flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
        return mmap.mmap(handle, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return mmap.mmap(handle, size, access=mmap.ACCESS_COPY)
