"""cp.async: copies from global to shared memory, in groups (PTX ISA 9.7.9.25)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .epochs import PENDING
from .operations import PtxDecoding, PtxOperation, effect, unsupported
from .syntax import Immediate, Instruction

if TYPE_CHECKING:
    from .convoy import Convoy


@dataclass(slots=True)
class _Copy:
    """Copies of one instruction by one warp.

    Attributes:
        instruction: where they come from.
        targets: int64 [n], bytes from the start of all shared memory.
        granules: [n, k].
        sources: int64 [n], places in global memory, -1 where nothing is read.
        sizes: int64 [n], bytes that are read; zeros fill the rest.
        lanes: int64 [n], threads.
        data: uint8 [n, size], None as long as it has not been read.
        size: bytes of each.
    """

    instruction: Instruction
    targets: Any
    granules: Any
    sources: Any
    sizes: Any
    lanes: Any
    data: Any
    size: int


class CopyQueue:
    """Groups of copies under way, oldest first, for each resident warp."""

    def __init__(self, warps: int) -> None:
        self.open: list[list[_Copy]] = [[] for _ in range(warps)]
        self.groups: list[list[list[_Copy]]] = [[] for _ in range(warps)]

    def begin(self, warps: slice) -> None:
        """A new CTA starts with these warps; what the one before left under way is forgotten."""
        for warp in range(warps.start, warps.stop):
            self.open[warp], self.groups[warp] = [], []

    def commit(self, warp: int) -> None:
        """Close the open group."""
        self.groups[warp].append(self.open[warp])
        self.open[warp] = []

    def take(self, warp: int, leave: int) -> list[_Copy]:
        """Remove all but the last ``leave`` groups; their copies in order."""
        groups = self.groups[warp]
        count = max(0, len(groups) - leave)
        done, self.groups[warp] = groups[:count], groups[count:]
        return [copy for group in done for copy in group]


def decode_cp(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """cp.async and its groups. Other forms of cp are refused: UnsupportedFault."""
    if ins.parts[1] != "async" or (ins.guard is not None and ins.parts[2] not in ("ca", "cg")):
        raise unsupported(ins)
    if ins.parts[2] == "commit_group":
        return effect(ins, (), (), lambda c: _commit(c, ins))
    if ins.parts[2] in ("wait_group", "wait_all"):
        leave = ins.operands[0] if ins.operands else Immediate("0")
        if not isinstance(leave, Immediate):
            raise unsupported(ins)
        count = leave.bits(32)
        return effect(ins, (), (), lambda c: _wait(c, ins, count, ins.parts[2] == "wait_all"))
    if ins.parts[2] in ("ca", "cg") and ins.parts[3:5] == ("shared", "global"):
        return _decode_copy(decoding, ins)
    raise unsupported(ins)


def _commit(c: Convoy, ins: Instruction) -> None:
    c.need_whole(ins)
    for warp in c.warps.tolist():
        c.machine.copies.commit(warp)


def _decode_copy(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    target, target_offset = decoding.address(ins, 0)
    source, source_offset = decoding.address(ins, 1)
    width = ins.operands[2]
    hinted = any("cache_hint" in part for part in ins.parts)
    if not isinstance(width, Immediate) or width.bits(32) not in (4, 8, 16):
        raise unsupported(ins)
    size = width.bits(32)
    decoding.granule = min(decoding.granule, size)
    given = len(ins.operands) - 3 - hinted
    taken = decoding.source(ins, 3, 32) if given else decoding.constant(size, 32)
    coherent = ins.parts[2] == "cg"

    def run(c: Convoy) -> None:
        positions = c.active(ins)
        if positions is None:
            positions = np.arange(len(c.threads))
        if not len(positions):
            return
        targets = c.lanes(target)[positions].astype("i8") + target_offset
        sources = c.lanes(source)[positions].view("i8") + source_offset
        sizes = np.minimum(c.lanes(taken)[positions].astype("i8"), size)
        shared, memory = c.machine.shared, c.machine.memory
        place, granules = shared.places(c, ins, targets, size, positions)
        shared.claim(c, ins, granules, positions)
        shared.writers[granules] = (c.codes[positions] | PENDING)[:, None]
        reading = sizes > 0
        spots = np.full(len(positions), -1, "i8")
        for count in np.unique(sizes[reading]).tolist():
            lanes = np.flatnonzero(sizes == count)
            whole = count & (count - 1) == 0
            step = count if whole else 1
            spots[lanes] = memory.places(c, ins, sources[lanes].view("u8"), step, positions[lanes])
            last = sources[lanes] + (count - step)
            memory.places(c, ins, last.view("u8"), step, positions[lanes])
        if c.machine.options.count:
            c.machine.counts.shared(ins, c, targets, size, positions)
            c.machine.counts.sectors(ins, c, spots[reading], size, positions[reading])
        early = c.machine.chance.random() < c.machine.options.early_copy
        data = _fetch(c, ins, spots, sizes, size, positions, coherent) if early else None
        threads = c.threads[positions]
        warps = threads // 32
        cuts = [0, *(np.flatnonzero(np.diff(warps)) + 1).tolist(), len(warps)]
        for begin, end in itertools.pairwise(cuts):
            part = slice(begin, end)
            copy = _Copy(
                ins,
                place[part],
                granules[part],
                spots[part],
                sizes[part],
                threads[part],
                None if data is None else data[part],
                size,
            )
            c.machine.copies.open[int(warps[begin])].append(copy)

    return effect(ins, (target, source, taken), (), run)


def _fetch(
    c: Convoy,
    ins: Instruction,
    places: Any,
    sizes: Any,
    size: int,
    positions: Any,
    coherent: bool,
) -> Any:
    """uint8 [n, size]: what copies read, zeros behind it."""
    data = np.zeros((len(places), size), "u1")
    for count in np.unique(sizes).tolist():
        lanes = np.flatnonzero(sizes == count)
        step = count if count & (count - 1) == 0 else 1
        for begin in range(0, count, max(step, 1)):
            part = c.machine.memory.load(
                c, ins, places[lanes] + begin, step, positions[lanes], coherent
            )
            data[lanes, begin : begin + step] = part
    return data


def _wait(c: Convoy, ins: Instruction, leave: int, everything: bool) -> None:
    c.need_whole(ins)
    by_instruction: dict[tuple[int, bool], list[_Copy]] = {}
    for warp in c.warps.tolist():
        if everything:
            c.machine.copies.commit(warp)
        for copy in c.machine.copies.take(warp, leave):
            key = copy.instruction.index, copy.data is None
            by_instruction.setdefault(key, []).append(copy)
    for copies in by_instruction.values():
        _land(c, copies)


def _land(c: Convoy, copies: list[_Copy]) -> None:
    """Write what copies of one instruction have read, or read now, into shared memory."""
    shared, first = c.machine.shared, copies[0]
    join = lambda name: np.concatenate([getattr(copy, name) for copy in copies])  # noqa: E731
    positions = np.searchsorted(c.threads, join("lanes"))
    if first.data is None:
        coherent = first.instruction.parts[2] == "cg"
        data = _fetch(
            c, first.instruction, join("sources"), join("sizes"), first.size, positions, coherent
        )
    else:
        data = join("data")
    words = np.dtype(f"u{min(first.size, 8)}")
    many = max(1, first.size // 8)
    cells = shared.data.view(words).reshape(-1, many)
    cells[join("targets") // first.size] = data.view(words).reshape(-1, many)
    granules = join("granules")
    shared.writers[granules] = c.codes[positions][:, None]
    if shared.proxy is not None:
        shared.proxy.landed(granules)
