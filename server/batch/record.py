"""What a batch has done so far, on disk in such a way that a kill at any moment loses none of it.

The output file is the record. It holds the answers in the input's order and nothing else, and an
answer's ``id`` says which line of which input it belongs to, and which model gave it. Answers that
come before their turn go to a second file beside it, ``OUT.ahead``, and from there to the output.
A line is in the output before it is dropped from there, and one that is in both counts once.
"""

from __future__ import annotations

import os
from io import BufferedReader
from pathlib import Path

from halfbyte.errors import ConfigError

from .ahead import AheadFile
from .files import no_record, open_alone, write_at
from .lines import (
    LINE_KEY_DIGITS,
    MODEL_KEY_DIGITS,
    OUTPUT_START,
    InputLine,
    answered_status,
    output_beginning,
)

_BEGINNING = len(OUTPUT_START) + MODEL_KEY_DIGITS + LINE_KEY_DIGITS + 2


def ahead_path(path: Path) -> Path:
    """The side file of an output."""
    return Path(f"{path}.ahead")


class BatchRecord:
    """The output file and its side file, which are this process's alone while it is open.

    First `check` is called with every line of the input in order, then `begin`, then `add`.

    Args:
        path: the output; made when it is not there.
        model: of `model_key`.

    Attributes:
        done: lines in the output.
        failed: answers in both files whose status is not 200.

    Raises:
        ConfigError: a file cannot be written, is no regular file, or another run has it open.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path = path
        self.done = 0
        self.failed = 0
        self._model = model
        self._fresh = not path.exists()
        self._begun = self._exhausted = False
        self._size = 0
        self._ahead = AheadFile(ahead_path(path))
        # Whoever removed the output wants to begin anew.
        self._unseen = set() if self._fresh else set(self._ahead)
        try:
            self._file = open_alone(path)
        except BaseException:
            self._ahead.close()
            raise
        self._reader: BufferedReader | None = open(os.dup(self._file), "rb")  # noqa: SIM115
        self._reader.seek(0)

    @property
    def answered(self) -> int:
        """Lines that have an answer, those before their turn among them."""
        return self.done + len(self._ahead)

    @property
    def ahead(self) -> int:
        """Answers that wait for their turn in the side file."""
        return len(self._ahead)

    def has(self, index: int) -> bool:
        """Whether the line of this number has an answer."""
        return index < self.done or index in self._ahead

    def check(self, line: InputLine) -> None:
        """Compare what the record has of a line with the input's.

        Raises:
            ConfigError: the record is of another input or model, or something else.
        """
        if line.index in self._unseen:
            self._unseen.remove(line.index)
            self._compare(self._ahead[line.index], line, self.path)
        if self._exhausted:
            return
        assert self._reader is not None
        # Not more than that of a file of somebody else's, which may be one huge line.
        found = self._reader.read(_BEGINNING)
        wanted = output_beginning(self._model, line)
        if len(found) == _BEGINNING or not wanted.startswith(found):
            self._compare(found, line, self.path)
        found += self._reader.readline()
        if not found.endswith(b"\n"):
            self._exhausted = True  # the end, or what a kill left of a line
            return
        status = answered_status(found)
        if status is None:
            raise no_record(self.path, line.index)
        self.failed += status != 200
        self._size += len(found)
        self.done += 1

    def begin(self) -> None:
        """Take up the work: cut off what a kill left of a line, and drop what is in both files.

        Raises:
            ConfigError: the record has answers to more lines than the input has.
        """
        assert self._reader is not None
        if self._unseen or (not self._exhausted and self._reader.read(1)):
            raise ConfigError(
                f"{self.path} has more answers than the input has lines",
                hint="give the input that it was begun with, or another OUT",
            )
        self._reader.close()
        self._reader = None
        os.ftruncate(self._file, self._size)
        if self._fresh:
            self._ahead.clear()
        self._ahead.cut()
        self._begun = True
        for index in self._ahead:
            if index < self.done:
                self._ahead.drop(index)
            else:
                self.failed += answered_status(self._ahead[index]) != 200
        self._advance()

    def add(self, index: int, answer: bytes, *, failed: bool) -> None:
        """Write the answer to a line.

        Args:
            index: of a line without one.
            answer: from `output_line`.
            failed: its status is not 200.

        Raises:
            OSError: it cannot be written; nothing written before is lost.
        """
        assert not self.has(index)
        if index == self.done:
            self._append(answer)
            self._advance()
        else:
            self._ahead.put(index, answer)
        self.failed += failed

    def finish(self) -> None:
        """End a whole batch: the output is on the disk, the side file is gone."""
        assert not self._ahead
        os.fsync(self._file)
        self._ahead.remove()
        self._fresh = False

    def close(self) -> None:
        """Let go of the files. An output made by this object that is still empty is removed."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._file < 0:
            return
        if self._fresh and not (self._begun and self.answered):
            self.path.unlink(missing_ok=True)
        if self._begun and not self._ahead:
            self._ahead.remove()
        self._ahead.close()
        os.close(self._file)
        self._file = -1

    def _compare(self, found: bytes, line: InputLine, path: Path) -> None:
        """Whether output begins as the answer to a line must."""
        wanted = output_beginning(self._model, line)
        if found.startswith(wanted):
            return
        if len(found) < len(wanted) or not found.startswith(OUTPUT_START):
            raise no_record(path, line.index)
        model = len(OUTPUT_START) + MODEL_KEY_DIGITS
        what = "model" if found[:model] != wanted[:model] else "input"
        raise ConfigError(
            f"{path} was begun with another {what}, as the answer to line {line.index + 1} shows",
            hint=f"give the {what} that it was begun with, or another OUT",
        )

    def _append(self, answer: bytes) -> None:
        self._size += write_at(self._file, answer, self._size)
        self.done += 1

    def _advance(self) -> None:
        """Move what has its turn now from the side file to the output."""
        while self.done in self._ahead:
            index = self.done
            self._append(self._ahead[index])
            self._ahead.drop(index)
