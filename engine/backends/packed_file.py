"""One file of packed weights of ``cpu_c``: written once, mapped by later runs.

Layout: magic (8 bytes), length of the header (8, little-endian), SHA-256 of the header (32), the
header as JSON, and from the next page on the tensors, each at a whole cache line. The header has
the key of the whole, the file's size, and of each weight its fields and where its tensors lie.
Nothing in the file is code. The tensors have no checksum: to read them all would take as long as
to pack them.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from halfbyte.errors import CheckpointError

from ...kernels.cpu.arena import ARENA_ALIGN
from ...kernels.cpu.build import trusted
from ...kernels.cpu.enums import Added, NumberType, TileCodes, TileValues
from ...kernels.cpu.ops import CHUNK, TILE
from ...kernels.cpu.pack import TiledLinear, TileShape
from ...kernels.formats.weight_format import ActivationFormat, InputRule
from ...loaders.files.mapped import MappedFile

MAGIC = b"HBPACKED"
PAGE = 4096
# Seconds without a write after which an unfinished file is nobody's any more.
ABANDONED_S = 3600
_PREFIX = len(MAGIC) + 8 + 32
_MOST_HEADER = 64 << 20
_NUMBERS = ("n", "k", "span", "center", "run_shift")
_FLAGS = ("halves", "divides")
_ENUMS = {"codes": TileCodes, "values": TileValues, "number": NumberType, "added": Added}
_TENSORS = {
    "data": torch.uint8,
    "bias": torch.float32,
    "table": torch.float32,
    "outer": torch.float32,
    "firsts": torch.int32,
    "factors": torch.float32,
    "order": torch.int32,
}

Parts = Mapping[str, Sequence[TiledLinear]]
"""Name of a matrix, or of several stacked ones -> what it was packed as."""


class PackedFileError(Exception):
    """The file is not what was written under this key; the text says how it differs."""


def write_packed(path: Path, key: str, weights: Parts) -> int:
    """Write weights into a file that only this user can read; returns its size in bytes.

    It takes its place whole, so processes that write the same one at once do no harm, and those
    that have mapped an earlier one keep that. Raises OSError, and leaves nothing behind then.
    """
    tensors: list[Tensor] = []
    end = 0

    def placed(tensor: Tensor | None) -> list[int] | None:
        nonlocal end
        if tensor is None:
            return None
        begin = -(-end // ARENA_ALIGN) * ARENA_ALIGN
        end = begin + tensor.numel() * tensor.element_size()
        tensors.append(tensor)
        return [begin, end - begin]

    described = {
        name: [
            {
                **{field: int(getattr(w, field)) for field in (*_NUMBERS, *_ENUMS)},
                **{field: bool(getattr(w, field)) for field in _FLAGS},
                **{field: placed(getattr(w, field)) for field in _TENSORS},
                "act": None if w.act is None else asdict(w.act),
                "rule": w.rule,
            }
            for w in parts
        ]
        for name, parts in weights.items()
    }
    header = json.dumps({"key": key, "bytes": end, "weights": described}).encode()
    begin = -(-(_PREFIX + len(header)) // PAGE) * PAGE
    for left in path.parent.glob(f"{glob.escape(path.stem)}*.part"):
        if time.time() - left.stat().st_mtime > ABANDONED_S:  # by a process that was killed
            left.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(prefix=path.stem, suffix=".part", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(MAGIC + len(header).to_bytes(8, "little"))
            file.write(hashlib.sha256(header).digest() + header)
            file.seek(begin)
            for tensor in tensors:
                file.seek(-(-(file.tell() - begin) // ARENA_ALIGN) * ARENA_ALIGN + begin)
                file.write(tensor.contiguous().view(torch.uint8).numpy().data)
            # Else a crash of the machine could leave the name and lose what it stands for.
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return begin + end


def read_packed(path: Path, key: str) -> dict[str, list[TiledLinear]]:
    """The weights of a file, over its mapped bytes; pages are read when they are first used.

    Raises:
        FileNotFoundError: there is none.
        PackedFileError: it is damaged, cut, of another key, or others could have written it.
    """
    if not trusted(path):
        raise PackedFileError("other users could have written it")
    try:
        file = MappedFile(path)
    except CheckpointError as error:
        raise PackedFileError(str(error)) from error
    head = bytes(file.buffer[:_PREFIX])
    length = int.from_bytes(head[len(MAGIC) : len(MAGIC) + 8], "little")
    if len(head) < _PREFIX or not head.startswith(MAGIC):
        raise PackedFileError("it is no file of packed weights")
    if length > min(_MOST_HEADER, file.size - _PREFIX):
        raise PackedFileError(f"its header of {length} bytes is longer than the file")
    header = bytes(file.buffer[_PREFIX : _PREFIX + length])
    if hashlib.sha256(header).digest() != head[-32:]:
        raise PackedFileError("its header is damaged")
    begin = -(-(_PREFIX + length) // PAGE) * PAGE
    try:
        found = json.loads(header)
        if found["key"] != key:
            raise PackedFileError("it is of another model, other options or another version")
        if file.size != begin + found["bytes"]:
            raise PackedFileError(f"it has {file.size} bytes, not {begin + found['bytes']}")
        return {
            name: [_weight(file, begin, fields) for fields in parts]
            for name, parts in found["weights"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, CheckpointError) as error:
        raise PackedFileError(f"its header makes no sense: {error}") from error


def _weight(file: MappedFile, begin: int, fields: Mapping[str, Any]) -> TiledLinear:
    """One weight. Whatever its header says, the kernels read nothing but its own tensors."""
    plain: dict[str, Any] = {name: int(fields[name]) for name in _NUMBERS}
    plain |= {name: kind(fields[name]) for name, kind in _ENUMS.items()}
    plain |= {name: bool(fields[name]) for name in _FLAGS}
    tensors: dict[str, Any] = {
        name: None if fields[name] is None else _tensor(file, begin, *fields[name]).view(kind)
        for name, kind in _TENSORS.items()
    }
    act = None if fields["act"] is None else ActivationFormat(**fields["act"])
    rule = fields["rule"]
    if rule not in get_args(InputRule):
        raise ValueError(f"inputs are rounded by {rule!r}")
    weight = TiledLinear(**plain, **tensors, act=act, rule=rule)
    n, k, span = weight.n, weight.k, weight.span
    if min(n, k, span) < 1 or span % CHUNK:
        raise ValueError(f"a matrix of {n} by {k} in spans of {span}")
    shape = TileShape(
        weight.codes, weight.values, k, span, weight.halves, weight.number, weight.added
    )
    rows = -(-n // TILE) * TILE
    expected = {"data": shape.tile_bytes(n), "bias": rows, "factors": rows, "table": 16, "order": k}
    needed = ("data", "table") if weight.codes == TileCodes.TABLE else ("data",)
    for name, count in expected.items():
        found = None if tensors[name] is None else tensors[name].numel()
        if found != count and (found is not None or name in needed):
            raise ValueError(f"{name} of a matrix of {n} by {k} has {found} elements")
    if weight.number == NumberType.NESTED:
        _check_nested(weight)
    order = weight.order
    if order is not None and not 0 <= int(order.min()) <= int(order.max()) < k:
        raise ValueError(f"columns beyond the {k} of a matrix")
    return weight


def _check_nested(weight: TiledLinear) -> None:
    """Every row's scales lie in runs that ``outer`` has: see ``CodedScales``."""
    n, spans = weight.n, -(-weight.k // weight.span)
    outer, firsts = weight.outer, weight.firsts
    if outer is None or firsts is None or firsts.numel() != -(-n // TILE) * TILE:
        raise ValueError(f"nested scales of a matrix of {n} rows without a first scale for each")
    runs, odd = divmod(outer.numel() - 256, 2)
    if odd or not 0 <= weight.run_shift < 31:
        raise ValueError(f"nested scales in runs of 2**{weight.run_shift}, {outer.numel()} factors")
    last = int(firsts.max()) + spans - 1
    if int(firsts.min()) < 0 or last >> weight.run_shift >= runs:
        raise ValueError(f"nested scales {int(firsts.min())} to {last} in {runs} runs")


def _tensor(file: MappedFile, begin: int, offset: int, nbytes: int) -> Tensor:
    """Bytes of the file, as CheckpointError has it where they are not there."""
    if offset % ARENA_ALIGN or offset < 0:
        raise ValueError(f"a tensor at byte {offset}")
    return file.view(begin + offset, nbytes)
