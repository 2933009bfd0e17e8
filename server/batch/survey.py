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
    """Lines whose ``custom_id`` an earlier line has, found with 16 bytes of memory a line.

    Names are compared by 64 bits of their BLAKE2b hash: that two of ten million different ones are
    taken for one has a probability of 3 in a million.
    """

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._later = self._first = np.empty(0, np.int64)

    def add(self, name: str | None) -> None:
        """Note the name of the next line, None for one without."""
        # No name is a number after a byte that is not in UTF-8.
        own = b"\xff%d" % len(self._hashes)
        data = own if name is None else name.encode("utf-8", "surrogatepass")
        self._hashes.append(int.from_bytes(blake2b(data, digest_size=8).digest(), "little"))

    def find(self) -> None:
        """Compare all names, once all are there."""
        hashes = np.frombuffer(self._hashes, np.uint64)
        in_order = np.sort(hashes)
        doubled = in_order[1:][in_order[1:] == in_order[:-1]]
        del in_order
        if len(doubled):
            lines = np.flatnonzero(np.isin(hashes, doubled))
            _, first, which = np.unique(hashes[lines], return_index=True, return_inverse=True)
            is_later = first[which] != np.arange(len(lines))
            self._later, self._first = lines[is_later], lines[first[which]][is_later]
        self._hashes = array("Q")

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
        doubled.add(custom_id_of(line.data))
        total = line.index + 1
        if total % _TOLD_EVERY == 0:
            progress(line.end, size)
    doubled.find()
    return Survey(total, start, doubled)
