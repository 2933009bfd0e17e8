"""Answers that came before their turn, in a file; in memory is only where they lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from .files import no_record, open_alone, write_at
from .lines import OUTPUT_START, answered_status

# Bytes in the file that nobody needs any more, from which on it is written anew.
_MOST_DEAD = 16 << 20


class AheadFile:
    """Output lines by the number of their input line, each kept until it is dropped.

    The file has a line for each: the number, a space, the output line. What a kill left of a last
    one is cut off by the next write. The file is made with the first answer and emptied
    with the last.

    Args:
        path: the file; what an earlier run left in it is read.

    Raises:
        ConfigError: it holds something else, or another run has it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._new_path = Path(f"{path}.new")
        self._places: dict[int, tuple[int, int]] = {}
        self._size = self._dead = 0
        self._file = open_alone(path) if path.exists() else -1
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, index: int) -> bool:
        return index in self._places

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._places))

    def __getitem__(self, index: int) -> bytes:
        """The output line of a number that is there."""
        start, length = self._places[index]
        return os.pread(self._file, length, start)

    def put(self, index: int, answer: bytes) -> None:
        """Keep an output line; raises OSError when it cannot be written."""
        if self._file < 0:
            self._file = open_alone(self._path)
        number = b"%d " % index
        written = write_at(self._file, number + answer, self._size)
        self._places[index] = (self._size + len(number), len(answer))
        self._size += written

    def drop(self, index: int) -> None:
        """Forget a line that is there; the file gets shorter now and then."""
        self._dead += self._places.pop(index)[1]
        if not self._places:
            self.clear()
        elif self._dead > max(_MOST_DEAD, self._size // 2):
            self._rewrite()

    def clear(self) -> None:
        """Forget everything, and what a kill left of a line."""
        self._places.clear()
        self._size = self._dead = 0
        if self._file >= 0:
            os.ftruncate(self._file, 0)

    def cut(self) -> None:
        """Cut off what a kill left of a last line."""
        if self._file >= 0:
            os.ftruncate(self._file, self._size)

    def remove(self) -> None:
        """Close the file and remove it."""
        self.close()
        for path in (self._path, self._new_path):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _load(self) -> None:
        if self._file < 0:
            return
        with open(os.dup(self._file), "rb") as file:
            for line in file:
                number, _, answer = line.partition(b" ")
                start = OUTPUT_START[: len(answer)]
                if not (number.isdigit() and answer.startswith(start)):
                    raise no_record(self._path)
                if not line.endswith(b"\n"):
                    break
                if answered_status(answer) is None:
                    raise no_record(self._path)
                self._places[int(number)] = (self._size + len(number) + 1, len(answer))
                self._size += len(line)

    def _rewrite(self) -> None:
        """Write the file anew without what was dropped; a kill leaves the old one or the new."""
        new, size, places = open_alone(self._new_path), 0, {}
        try:
            os.ftruncate(new, 0)
            for index in self._places:
                answer, number = self[index], b"%d " % index
                places[index] = (size + len(number), len(answer))
                size += write_at(new, number + answer, size)
            os.replace(self._new_path, self._path)
        except BaseException:
            os.close(new)
            with suppress(OSError):
                self._new_path.unlink()
            raise
        os.close(self._file)
        self._file, self._size, self._dead, self._places = new, size, 0, places
