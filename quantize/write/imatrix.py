"""Importance matrices of llama.cpp: the mean square of each input of each matrix, in a file.

Source: tools/imatrix and common/imatrix-loader.cpp of llama.cpp. A GGUF file has the sum of squares
``NAME.in_sum2`` [E, K] and ``NAME.counts`` [E] of the inputs of the tensor NAME, E experts or 1.
Older files (``.dat``) are a list of names, calls and numbers, which are means times calls.

Shape letters: E experts of a stack, K inputs.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFValueType as Kind
from gguf import GGUFWriter
from torch import Tensor

from halfbyte.errors import CheckpointError, QuantizeError

from ...loaders.base import Checkpoint
from ...loaders.gguf.checkpoint import file_name
from ...loaders.gguf.reader import MAX_TENSORS, GGUFArray, GGUFFile
from .gguf_metadata import add_entries, array, count, family_of, text

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MOST_VALUES = 1 << 28
_EXPERT = re.compile(r"\.experts\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class ImatrixEntry:
    """Inputs of one tensor of a GGUF file.

    Attributes:
        sums: float32 [E, K], of the squares of its inputs.
        counts: float32 [E], how many there were.
    """

    sums: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True)
class Imatrix:
    """An importance matrix.

    Attributes:
        entries: by the names of tensors in GGUF files.
        datasets: what the texts were called.
        chunks: texts.
        length: tokens of a text; 0 = unknown.
    """

    entries: dict[str, ImatrixEntry]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    length: int = 0

    def importance(self, model: Checkpoint) -> dict[str, Tensor]:
        """The mean square [K] of inputs by canonical names; a matrix without any is left out.

        Raises:
            QuantizeError: an entry belongs to a tensor of another size.
        """
        facts = family_of(model.config).gguf
        found: dict[str, Tensor] = {}
        for info in model.tensors():
            entry = self.entries.get(file_name(info.name, facts))
            if entry is None or len(info.shape) != 2:
                continue
            expert = _EXPERT.search(info.name)
            # Old files have one count for all experts of a stack.
            sums, counts = entry.sums, entry.counts
            if expert and len(counts) == 1 and not sums.numel() % info.shape[1]:
                sums = sums.view(-1, info.shape[1])
                counts = counts.expand(len(sums))
            index = int(expert[1]) if expert and len(sums) > 1 else 0
            if sums.shape[1] != info.shape[1] or index >= len(sums):
                raise QuantizeError(
                    f"the importance of {file_name(info.name, facts)} has shape "
                    f"{list(entry.sums.shape)}; expected {info.shape[1]} columns: it was made for "
                    "another model"
                )
            if counts[index] > 0:
                found[info.name] = sums[index] / counts[index]
        return found


def make_imatrix(
    model: Checkpoint, means: Mapping[str, tuple[Tensor, int]], dataset: str, length: int
) -> Imatrix:
    """From what calibration saw.

    Args:
        model: whose matrices they are.
        means: canonical name of a weight -> mean square [K] of its inputs, and how many.
        dataset: what the text is called.
        length: tokens of a window.
    """
    facts = family_of(model.config).gguf
    stacks: dict[str, dict[int, tuple[Tensor, int]]] = {}
    for name, (mean, seen) in means.items():
        expert = _EXPERT.search(name)
        stack = stacks.setdefault(file_name(name, facts), {})
        stack[int(expert[1]) if expert else 0] = mean.float() * seen, seen
    entries: dict[str, ImatrixEntry] = {}
    for name, stack in stacks.items():
        none = torch.zeros_like(next(iter(stack.values()))[0]), 0
        rows = [stack.get(i, none) for i in range(max(stack) + 1)]
        counts = torch.tensor([float(seen) for _, seen in rows])
        entries[name] = ImatrixEntry(torch.stack([sums for sums, _ in rows]), counts)
    most = max((int(e.counts.max()) for e in entries.values()), default=0)
    return Imatrix(entries, (dataset,), -(-most // max(1, length)), length)


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write llama.cpp's present format; the same bytes for the same numbers."""
    writer = GGUFWriter(None, "imatrix")
    writer.kv_data[0].clear()
    add_entries(
        writer,
        {
            "general.type": text("imatrix"),
            "imatrix.datasets": array(imatrix.datasets or ("unknown",), Kind.STRING),
            "imatrix.chunk_count": count(imatrix.chunks),
            "imatrix.chunk_size": count(imatrix.length),
        },
    )
    for name, entry in sorted(imatrix.entries.items()):
        writer.add_tensor(name + _SUMS, entry.sums.float().contiguous().numpy())
        writer.add_tensor(name + _COUNTS, entry.counts.float().view(-1, 1).contiguous().numpy())
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_imatrix(path: Path) -> Imatrix:
    """An importance matrix in either format.

    Raises:
        CheckpointError: the file is damaged, or is none.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    found = _read_gguf(path) if magic == b"GGUF" else _read_old(path)
    for name, entry in found.entries.items():
        good = bool(entry.sums.isfinite().all()) and bool((entry.sums >= 0).all())
        if not good or not bool((entry.counts >= 0).all()):
            raise CheckpointError(
                f"{path}: the importance of {name} holds negative numbers or ones that are not "
                "finite; expected sums of squares"
            )
    return found


def _read_gguf(path: Path) -> Imatrix:
    file = GGUFFile(path)
    try:
        entries: dict[str, ImatrixEntry] = {}
        for name, tensor in file.tensors.items():
            base = name.removesuffix(_SUMS)
            counts = file.tensors.get(base + _COUNTS)
            if base == name:
                continue
            if counts is None or {tensor.type.name, counts.type.name} != {"F32"}:
                raise CheckpointError(
                    f"{path}: {name} needs {base}{_COUNTS} beside it, both F32; this is no "
                    "importance matrix, or it is damaged"
                )
            seen = file.raw(counts).clone().view(torch.float32)
            sums = file.raw(tensor).clone().view(torch.float32)
            if sums.numel() % seen.numel():
                raise CheckpointError(
                    f"{path}: {name} has {sums.numel()} numbers for {seen.numel()} counts"
                )
            entries[base] = ImatrixEntry(sums.view(seen.numel(), -1), seen)
        if not entries:
            raise CheckpointError(
                f"{path}: no tensor is called ...{_SUMS}; expected an importance matrix",
                hint="llama-imatrix makes one",
            )
        sets = file.metadata.get("imatrix.datasets")
        names = tuple(map(str, sets.values())) if isinstance(sets, GGUFArray) else ()
        numbers = (file.metadata.get(f"imatrix.chunk_{key}", 0) for key in ("count", "size"))
        chunks, length = (n if isinstance(n, int) and n >= 0 else 0 for n in numbers)
        return Imatrix(entries, names, chunks, length)
    finally:
        file.close()


class _Cursor:
    """Bounded reads of an old file."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, path.read_bytes(), 0

    def take(self, nbytes: int, what: str) -> bytes:
        if not 0 <= nbytes <= len(self.data) - self.at:
            raise CheckpointError(
                f"{self.path}: {what} needs {nbytes} bytes at offset {self.at} of "
                f"{len(self.data)}; expected an importance matrix",
                hint="llama-imatrix makes one",
            )
        self.at += nbytes
        return self.data[self.at - nbytes : self.at]

    def number(self, what: str) -> int:
        return struct.unpack("<i", self.take(4, what))[0]


def _read_old(path: Path) -> Imatrix:
    cursor = _Cursor(path)
    total = cursor.number("the number of entries")
    if not 1 <= total <= MAX_TENSORS:
        raise CheckpointError(
            f"{path}: has {total} entries; expected 1 to {MAX_TENSORS} of an importance matrix"
        )
    entries: dict[str, ImatrixEntry] = {}
    for index in range(total):
        length = cursor.number(f"the name of entry {index}")
        raw = cursor.take(length, f"the name of entry {index}")
        name = raw.decode("utf-8", "replace")
        calls, values = (cursor.number(f"entry {name!r:.60}") for _ in range(2))
        if calls < 0 or not 0 < values <= _MOST_VALUES:
            raise CheckpointError(f"{path}: entry {name!r:.60} has {calls} calls, {values} values")
        numbers = np.frombuffer(cursor.take(4 * values, f"entry {name!r:.60}"), dtype="<f4")
        sums = torch.from_numpy(numbers.astype(np.float32)).unsqueeze(0)
        entries[name] = ImatrixEntry(sums, torch.tensor([float(calls)]))
    chunks, names = 0, ()
    if cursor.at + 8 <= len(cursor.data):
        chunks = max(0, cursor.number("the number of chunks"))
        names = (cursor.take(cursor.number("a name"), "a name").decode("utf-8", "replace"),)
    return Imatrix(entries, names, chunks)
