"""Files that one run has for itself, and writes at offsets that it keeps."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from halfbyte.errors import ConfigError


def open_alone(path: Path) -> int:
    """A descriptor of a regular file, locked against other runs until it is closed.

    Where the file system knows no locks, the file is open without one.

    Raises:
        ConfigError: it cannot be opened for writing, is something else, or another run has it.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        if not path.is_file():
            raise ConfigError(
                f"{path} is no regular file", hint="a batch writes to a file, to be resumed"
            )
        if _held_by_another(file):
            raise ConfigError(f"{path} is being written by another run")
    except BaseException:
        os.close(file)
        raise
    return file


def _held_by_another(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def write_at(file: int, data: bytes, offset: int) -> int:
    """Write all of ``data`` at an offset, in as many pieces as that takes; how many bytes.

    Raises OSError when the disk is full, perhaps after some of it.
    """
    view = memoryview(data)
    while view:
        count = os.pwrite(file, view, offset)
        view, offset = view[count:], offset + count
    return len(data)


def no_record(path: Path, index: int | None = None) -> ConfigError:
    """The refusal of a file that something else has written.

    Args:
        path: the file.
        index: number of the line that shows it, from 0, where one does.
    """
    where = "" if index is None else f": its line {index + 1} is no answer of a batch"
    return ConfigError(
        f"{path} is there already and was not written by halfbyte batch{where}",
        hint="it is left as it is: give another OUT, or move it away",
    )
