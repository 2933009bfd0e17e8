"""The first reading of a batch's input: how long it is, which names are doubled, what is done."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import BinaryIO

import numpy as np

from .lines import custom_id_of, read_lines
from .record import BatchRecord

# Lines between two calls of the progress.
_TOLD_EVERY = 1000


class DoubledNames:
    """Lines whose ``custom_id`` an earlier line has, found with 24 bytes of memory a line.

    Names are compared by 64 bits of their BLAKE2b hash: that two of ten million different ones are
    taken for one has a probability of 3 in a million.
    """

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._lines = array("q")
        self._later = self._first = np.empty(0, np.int64)

    def add(self, index: int, name: str) -> None:
        """Note the name of a line; lines come in order."""
        digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self._hashes.append(int.from_bytes(digest, "little"))
        self._lines.append(index)

    def find(self) -> None:
        """Compare all names, once all are there."""
        hashes = np.frombuffer(self._hashes, np.uint64)
        order = np.argsort(hashes, kind="stable")
        is_later = np.zeros(len(order), bool)
        is_later[1:] = hashes[order[1:]] == hashes[order[:-1]]
        # Place in the order of the first line with the same name.
        first = np.maximum.accumulate(np.where(is_later, 0, np.arange(len(order))))
        lines = np.frombuffer(self._lines, np.int64)
        later = lines[order[is_later]]
        by_line = np.argsort(later)
        self._later = later[by_line]
        self._first = lines[order[first[is_later]]][by_line]
        self._hashes, self._lines = array("Q"), array("q")

    def first(self, index: int) -> int | None:
        """The number of the first line with the name of this one; None when that is this one."""
        place = int(np.searchsorted(self._later, index))
        if place < len(self._later) and self._later[place] == index:
            return int(self._first[place])
        return None


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of an input.

    Attributes:
        total: lines that are not blank.
        start: offset of the first line that the output has no answer to.
        doubled: lines whose name is not their own.
    """

    total: int
    start: int
    doubled: DoubledNames


def survey(
    file: BinaryIO, record: BatchRecord, progress: Callable[[int, int], None] = lambda *_: None
) -> Survey:
    """Read an input once, and compare it with the record of an earlier run.

    Args:
        file: the input, a regular file open for reading bytes.
        record: not begun.
        progress: called with bytes read and bytes in all.

    Raises:
        ConfigError: the record is of another input or model, or something else.
    """
    size = os.fstat(file.fileno()).st_size
    doubled = DoubledNames()
    total = start = 0
    for line in read_lines(file):
        record.check(line)
        if line.index < record.done:
            start = line.end
        if (name := custom_id_of(line.data)) is not None:
            doubled.add(line.index, name)
        total = line.index + 1
        if total % _TOLD_EVERY == 0:
            progress(line.end, size)
    doubled.find()
    return Survey(total, start, doubled)
