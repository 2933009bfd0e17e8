"""Tensors that wait, kept in a file in place of memory.

Nothing is moved: a tensor's bytes are written to the file and the pages of memory that lie wholly
inside of it are given back to the system, so every view of it is right again once they are read
back.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from halfbyte.errors import ConfigError, QuantizeError

_Call = Callable[[int, memoryview, int], int]
_FULL = "make room, or quantize without --spill"


class Spill:
    """A file without a name, which is gone with the process, however that ends.

    Args:
        folder: where it lies; must exist.

    Raises:
        ConfigError: the system cannot give back single pages.
        QuantizeError: the file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        if not sys.platform.startswith("linux"):
            raise ConfigError(
                f"--spill needs Linux to give memory back, not {sys.platform}",
                hint="use fewer --samples",
            )
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self._free: dict[int, list[int]] = {}
        self._end = 0
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        except OSError as error:
            raise QuantizeError(f"{folder} takes no file: {error}", hint=_FULL) from None

    def put(self, tensor: Tensor) -> Spilled:
        """Write a tensor of the host, of any shape, and give its memory back.

        Raises QuantizeError when the disk is full.
        """
        address, size = _span(tensor)
        stock = self._free.setdefault(size, [])
        offset = stock.pop() if stock else self._end
        self._end = max(self._end, offset + size)
        self._move(_write, address, size, offset)
        spilled = Spilled(self, tensor, offset)
        spilled.drop()
        return spilled

    def read(self, address: int, size: int, offset: int) -> None:
        """Bytes at an offset, read to an address."""
        self._move(_read, address, size, offset)

    def give_back(self, address: int, size: int) -> None:
        """Return to the system the whole pages of some memory, which then holds nothing."""
        page = mmap.PAGESIZE
        begin, end = -(-address // page) * page, (address + size) // page * page
        if begin < end and self._libc.madvise(begin, end - begin, mmap.MADV_DONTNEED):
            raise QuantizeError(
                f"memory cannot be given back: {os.strerror(ctypes.get_errno())}",
                hint="quantize without --spill",
            )

    def forget(self, size: int, offset: int) -> None:
        """The room in the file may hold another tensor of that many bytes."""
        self._free[size].append(offset)

    def _move(self, call: _Call, address: int, size: int, offset: int) -> None:
        view = memoryview((ctypes.c_char * size).from_address(address)).cast("B")
        done = 0
        try:
            while done < size:
                moved = call(self._file.fileno(), view[done:], offset + done)
                if not moved:
                    raise OSError("the file is shorter than it was")
                done += moved
        except OSError as error:
            raise QuantizeError(f"activations cannot be spilled: {error}", hint=_FULL) from None


class Spilled:
    """A tensor in a file. Its memory holds nothing until it is read back."""

    def __init__(self, spill: Spill, tensor: Tensor, offset: int) -> None:
        self._spill, self._tensor, self._offset = spill, tensor, offset

    def drop(self) -> None:
        """Give the memory back; the file holds what it held."""
        self._spill.give_back(*_span(self._tensor))

    @contextlib.contextmanager
    def looked_at(self) -> Iterator[Tensor]:
        """The tensor, of any shape, for a block that only reads it."""
        self._spill.read(*_span(self._tensor), self._offset)
        yield self._tensor
        self.drop()

    def back(self) -> None:
        """Read it back for good."""
        address, size = _span(self._tensor)
        self._spill.read(address, size, self._offset)
        self._spill.forget(size, self._offset)


def _write(file: int, view: memoryview, offset: int) -> int:
    return os.pwrite(file, view, offset)


def _read(file: int, view: memoryview, offset: int) -> int:
    return os.preadv(file, [view], offset)


def _span(tensor: Tensor) -> tuple[int, int]:
    """Address and bytes from a tensor's first element to its last."""
    steps = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    size = 0 if tensor.numel() == 0 else (steps + 1) * tensor.element_size()
    return tensor.data_ptr(), size
