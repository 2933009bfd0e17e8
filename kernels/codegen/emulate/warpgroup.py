"""wgmma: products of warp groups on shared memory (PTX ISA 9.7.15).

Each warp computes its own 16 rows, so the four warps of a group need not run together. The
product is computed when it is issued. That it may happen at any time until its wait shows in what
is forbidden meanwhile: its accumulators may not be touched, its registers of A not be changed, and
nobody may write to the shared memory that it reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .faults import EarlyReadFault, EmulatedFault, MissingFenceFault
from .matrix import ELEMENTS, a_fragment, accumulated, stacked, values_of
from .operations import PtxDecoding, PtxOperation, effect, unsupported
from .syntax import Immediate, Instruction, OperandList

if TYPE_CHECKING:
    from .convoy import Convoy
    from .program import Segment

_SHAPE = re.compile(r"m64n(\d+)k(\d+)")
_ROW_BYTES = {0: 16, 1: 128, 2: 64, 3: 32}  # by the descriptor's swizzling mode
_K_BYTES = 32  # of every shape but those of single bits


@dataclass(frozen=True, slots=True)
class MatrixDescriptor:
    """Where a matrix is in shared memory: PTX ISA 9.7.15.5.1.2.2.

    Attributes:
        start: address of the first element.
        leading: byte offset along the dimension that is contiguous, between atoms.
        stride: byte offset along the other one, between atoms of 8 rows.
        mode: swizzling: 0 none, 1 of 128 bytes, 2 of 64, 3 of 32.
        base_offset: phase of a pattern that does not begin at a multiple of its own size.
    """

    start: int
    leading: int
    stride: int
    mode: int
    base_offset: int

    @classmethod
    def of(cls, bits: int) -> MatrixDescriptor:
        """The fields of 64 bits."""
        field = lambda at, width: bits >> at & ((1 << width) - 1)  # noqa: E731
        return cls(
            field(0, 14) << 4, field(16, 14) << 4, field(32, 14) << 4, field(62, 2), field(49, 3)
        )

    def rows(self, count: int) -> Any:
        """int64 [count, 2]: addresses of the 16-byte pieces of rows of 32 bytes of K.

        This is the K-major layout: atoms of 8 rows, ``stride`` apart.
        """
        width = _ROW_BYTES[self.mode]
        row, piece = np.arange(count)[:, None], np.arange(2)
        step = 16 if width > 16 else self.leading
        place = self.start + row // 8 * self.stride + row % 8 * width + piece * step
        return self._swizzled(place)

    def columns(self, count: int) -> Any:
        """int64 [16, count // 8]: addresses of 8 elements of 16 bits along M or N, for 16 of K.

        This is the MN-major layout: ``leading`` apart along M or N, ``stride`` along K. Without
        swizzling the two change places, which nothing here needs.
        """
        width = _ROW_BYTES[self.mode]
        k, piece = np.arange(16)[:, None], np.arange(count // 8)
        each = width // 16
        place = (
            self.start
            + k // 8 * self.stride
            + k % 8 * width
            + piece // each * self.leading
            + piece % each * 16
        )
        return self._swizzled(place)

    def _swizzled(self, place: Any) -> Any:
        """Bits 4 to 6 of an address, as many as the mode has, exclusive-or bits 7 to 9."""
        return place ^ (place >> 3 & (_ROW_BYTES[self.mode] - 16))


@dataclass(frozen=True, slots=True)
class _Product:
    """A product in flight of one warp: its registers, its shape and the granules that it reads."""

    accumulators: frozenset[int]
    factors: frozenset[int]
    shape: str
    granules: tuple[Any, ...]


class ProductQueue:
    """Products in flight of each resident warp, and what their fences have covered."""

    def __init__(self, warps: int) -> None:
        self.open: list[list[_Product]] = [[] for _ in range(warps)]
        self.groups: list[list[list[_Product]]] = [[] for _ in range(warps)]
        self.unfenced: list[frozenset[int]] = [frozenset() for _ in range(warps)]
        self.fenced = np.zeros(warps, bool)

    def begin(self, warps: slice) -> None:
        """A new CTA starts with these warps."""
        self.fenced[warps] = False
        for warp in range(warps.start, warps.stop):
            self.open[warp], self.groups[warp] = [], []
            self.unfenced[warp] = frozenset()

    def in_flight(self, warp: int) -> list[_Product]:
        """All products of a warp that have not been waited for."""
        return [*(p for group in self.groups[warp] for p in group), *self.open[warp]]


class ProductWatch:
    """What a convoy may not touch while it runs, and which registers it has changed.

    Attributes:
        changed: slots that were changed since the last wgmma.fence.
    """

    def __init__(self, convoy: Convoy, queue: ProductQueue) -> None:
        self._convoy, self._queue = convoy, queue
        self.changed = set().union(*(queue.unfenced[w] for w in convoy.warps.tolist()))
        self._accumulators: frozenset[int] = frozenset()
        self._factors: frozenset[int] = frozenset()
        self.look()

    def look(self) -> None:
        """Find out anew what is in flight."""
        products = [p for w in self._convoy.warps.tolist() for p in self._queue.in_flight(w)]
        self._accumulators = frozenset().union(*(p.accumulators for p in products))
        self._factors = frozenset().union(*(p.factors for p in products))

    def check(self, segment: Segment) -> None:
        """Raises EarlyReadFault where a segment touches registers of products in flight."""
        if not self._accumulators:
            return
        if self._accumulators.isdisjoint(segment.touches) and self._factors.isdisjoint(
            segment.writes
        ):
            return
        for operation in segment.operations:
            changed = frozenset(operation.writes) - operation.products
            if operation.touches() & self._accumulators or changed & self._factors:
                what = "touches registers of a wgmma before its wait"
                raise self._convoy.fault(EarlyReadFault, operation.instruction, 0, what)

    def note(self, segment: Segment) -> None:
        """Note what a segment changes. Copies are as their sources: the assembler renames them."""
        before = self.changed
        self.changed = (before - segment.copied.keys()) | segment.changes
        if before:
            self.changed |= {slot for slot, came in segment.copied.items() if came in before}

    def leave(self) -> None:
        """Keep what has been changed for the warps' next convoys."""
        for warp in self._convoy.warps.tolist():
            self._queue.unfenced[warp] = frozenset(self.changed)


def decode_wgmma(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """wgmma and what orders it. Other forms are refused: UnsupportedFault."""
    if ins.guard is not None or ins.parts[2:4] != ("sync", "aligned"):
        raise unsupported(ins)
    name = ins.parts[1]
    if name == "mma_async":
        return _decode_product(decoding, ins)
    if name == "fence":
        return effect(ins, (), (), lambda c: _fence(c, ins))
    if name == "commit_group":
        return effect(ins, (), (), lambda c: _commit(c, ins))
    leave = ins.operands[0]
    if name != "wait_group" or not isinstance(leave, Immediate):
        raise unsupported(ins)
    count = leave.bits(32)
    return effect(ins, (), (), lambda c: _wait(c, ins, count))


def decode_proxy_fence(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """fence.proxy.async of shared memory."""
    if ins.guard is not None:
        raise unsupported(ins)

    def run(c: Convoy) -> None:
        c.need_whole(ins)
        if c.machine.shared.proxy is not None:
            c.machine.shared.proxy.fence(c)

    return effect(ins, (), (), run)


def _watch(c: Convoy) -> ProductWatch:
    assert c.watch is not None, "a program with wgmma has a watch"
    return c.watch


def _fence(c: Convoy, ins: Instruction) -> None:
    c.need_whole(ins)
    queue = c.machine.products
    queue.fenced[c.warps] = True
    _watch(c).changed = set()


def _commit(c: Convoy, ins: Instruction) -> None:
    c.need_whole(ins)
    queue = c.machine.products
    for warp in c.warps.tolist():
        queue.groups[warp].append(queue.open[warp])
        queue.open[warp] = []


def _wait(c: Convoy, ins: Instruction, leave: int) -> None:
    c.need_whole(ins)
    queue, proxy = c.machine.products, c.machine.shared.proxy
    assert proxy is not None
    # Warps that read the same share one array of granules; id() tells which.
    done: dict[int, tuple[Any, list[int]]] = {}
    for row, warp in enumerate(c.warps.tolist()):
        groups = queue.groups[warp]
        count = max(0, len(groups) - leave)
        for product in (p for group in groups[:count] for p in group):
            for granules in product.granules:
                done.setdefault(id(granules), (granules, []))[1].append(row)
        queue.groups[warp] = groups[count:]
    for granules, rows in done.values():
        first = rows[0] * 32
        proxy.reading[granules] -= np.int16(len(rows))
        proxy.mark(granules, c.floors[first], c.codes[first], len(set(rows)) > 1)
    _watch(c).look()


def _decode_product(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    shape = _SHAPE.fullmatch(ins.parts[4])
    kinds = [part for part in ins.parts[5:] if part != "satfinite"]
    saturate = ins.has("satfinite")
    if shape is None or len(kinds) != 3 or kinds[0] not in ("f32", "s32"):
        raise unsupported(ins)
    if any(kind not in ELEMENTS for kind in kinds[1:]):
        raise unsupported(ins)
    dtype, value_a = ELEMENTS[kinds[1]]
    dtype_b, value_b = ELEMENTS[kinds[2]]
    columns, depth, result = int(shape[1]), int(shape[2]), kinds[0]
    if depth * dtype.itemsize != _K_BYTES or dtype_b.itemsize != dtype.itemsize:
        raise unsupported(ins)
    accumulators = [decoding.target(ins, part, 32) for part in decoding.parts(ins, 0)]
    if len(accumulators) != columns // 2:
        raise unsupported(ins)
    left = ins.operands[1]
    from_registers = isinstance(left, OperandList)
    if from_registers:
        factors = [decoding.target(ins, part, 32) for part in left.parts]
    else:
        factors = [decoding.source(ins, 1, 64)]
    descriptor = decoding.source(ins, 2, 64)
    scale = ins.operands[3]
    if isinstance(scale, Immediate):
        keep = decoding.constant(int(scale.bits(32) != 0), 1)
    else:
        keep = decoding.source(ins, 3, 1)
    transposed = _flags(ins, from_registers)
    if transposed and dtype.itemsize != 2:
        raise unsupported(ins)
    fragment = _ProductForm(
        ins, columns, dtype, value_a, value_b, result, saturate, transposed, frozenset(accumulators)
    )

    def run(c: Convoy) -> None:
        c.need_whole(ins)
        read: list[list[Any]] = [[] for _ in c.warps]
        right = fragment.right(c, descriptor, read)
        if from_registers:
            a = value_a(a_fragment(stacked(c, factors), dtype))
        else:
            a = fragment.left(c, factors[0], read)
        total = np.empty((len(c.warps), 16, columns))
        for rows, matrix in right:
            product = a[rows].reshape(-1, depth) @ matrix.T
            total[rows] = product.reshape(len(rows), 16, columns)
        old = values_of(accumulator_matrix(stacked(c, accumulators)), result)
        keeps = c.rows(keep)[:, 0]
        total += np.where(keeps[:, None, None], old, 0.0)
        registers = accumulator_registers(accumulated(total, result, saturate))
        for slot, row in zip(accumulators, registers.reshape(len(accumulators), -1), strict=True):
            c.values[slot] = row
        fragment.issue(c, factors if from_registers else (), read)

    operation = effect(ins, (*accumulators, *factors, descriptor, keep), accumulators, run)
    return operation.with_products(frozenset(accumulators))


def _flags(ins: Instruction, from_registers: bool) -> bool:
    """Whether B is transposed. Scales other than 1 and a transposed A are refused."""
    flags = []
    for operand in ins.operands[4:]:
        if not isinstance(operand, Immediate):
            raise unsupported(ins)
        flags.append(operand.bits(32))
    if any(flag != 1 for flag in flags[:2]) or len(flags) not in (0, 2, 3, 4):
        raise unsupported(ins, "a scale that is not 1")
    places = flags[2:]
    if len(places) == 2 and places[0] != 0:
        raise unsupported(ins, "a transposed A")
    return bool(places and places[-1])


def accumulator_matrix(registers: Any) -> Any:
    """[n, 16, N] of a warp's accumulators [N / 2, n, 32] (PTX ISA 9.7.15.5.1.1.2).

    Register i of lane 4 g + t has row g + 8 (i div 2 mod 2), column 8 (i div 4) + 2 t + i mod 2.
    """
    count = registers.shape[1]
    parts = registers.reshape(-1, 2, 2, count, 8, 4)  # [N block, row half, column bit, n, g, t]
    return parts.transpose(3, 1, 4, 0, 5, 2).reshape(count, 16, -1)


def accumulator_registers(matrix: Any) -> Any:
    """The inverse of :func:`accumulator_matrix`."""
    count = len(matrix)
    parts = matrix.reshape(count, 2, 8, -1, 4, 2)
    registers = np.ascontiguousarray(parts.transpose(3, 1, 5, 0, 2, 4))
    return registers.reshape(-1, count, 32)


@dataclass(frozen=True, slots=True)
class _ProductForm:
    """What a wgmma instruction is, decoded."""

    instruction: Instruction
    columns: int
    dtype: np.dtype[Any]
    value_a: Callable[[Any], Any]
    value_b: Callable[[Any], Any]
    result: str
    saturate: bool
    transposed: bool
    accumulators: frozenset[int]

    def right(self, c: Convoy, slot: int, read: list[list[Any]]) -> list[tuple[Any, Any]]:
        """(rows of the convoy's warps, B transposed as float64 [N, K]) for each one in use."""
        found = []
        for rows, descriptor in self._descriptors(c, slot):
            if self.transposed:
                cells = descriptor.columns(self.columns)
                data = self._fetch(c, rows, cells, read).view(self.dtype)
                matrix = data.reshape(16, self.columns).T
            else:
                cells = descriptor.rows(self.columns)
                data = self._fetch(c, rows, cells, read).view(self.dtype)
                matrix = data.reshape(self.columns, -1)
            found.append((rows, self.value_b(matrix)))
        return found

    def left(self, c: Convoy, slot: int, read: list[list[Any]]) -> Any:
        """A as float64 [warps, 16, K]: of each warp its rows of the descriptor's 64."""
        parts = {}
        quarter = c.warps_in_cta() % 4
        for rows, descriptor in self._descriptors(c, slot):
            cells = descriptor.rows(64)
            for row in rows.tolist():
                begin = 16 * int(quarter[row])
                one = np.array([row])
                data = self._fetch(c, one, cells[begin : begin + 16], read).view(self.dtype)
                parts[row] = self.value_a(data.reshape(16, -1))
        return np.stack([parts[row] for row in range(len(c.warps))])

    def _descriptors(self, c: Convoy, slot: int) -> list[tuple[Any, MatrixDescriptor]]:
        """(warps' rows, descriptor) for each CTA and each descriptor of the convoy."""
        bits = c.rows(slot)
        if (bits != bits[:, :1]).any():
            raise unsupported(self.instruction, "lanes with different descriptors")
        keys: dict[tuple[int, int], list[int]] = {}
        for row, (cta, value) in enumerate(
            zip(c.slots[::32].tolist(), bits[:, 0].tolist(), strict=True)
        ):
            keys.setdefault((cta, value), []).append(row)
        found = []
        for (_, value), rows in keys.items():
            descriptor = MatrixDescriptor.of(value)
            if descriptor.base_offset or (self.transposed and descriptor.mode == 0):
                raise unsupported(self.instruction, f"descriptor {value:#x}")
            found.append((np.array(rows), descriptor))
        return found

    def _fetch(self, c: Convoy, rows: Any, cells: Any, read: list[list[Any]]) -> Any:
        """uint8 of 16-byte pieces at addresses [...], read by some warps of one CTA."""
        shared = c.machine.shared
        assert shared.proxy is not None
        addresses = cells.reshape(-1)
        positions = np.full(len(addresses), int(rows[0]) * 32)
        place, granules = shared.places(c, self.instruction, addresses, 16, positions)
        granules = granules.reshape(-1)
        shared.proxy.read(c, self.instruction, granules, rows)
        for row in rows.tolist():
            read[row].append(granules)
        return shared.data.reshape(-1, 16).take(place // 16, axis=0)

    def issue(self, c: Convoy, factors: Any, read: list[list[Any]]) -> None:
        """Note the product as in flight. Raises MissingFenceFault."""
        queue, watch = c.machine.products, _watch(c)
        names = self.accumulators | frozenset(factors)
        for row, warp in enumerate(c.warps.tolist()):
            if not queue.fenced[warp] or not names.isdisjoint(watch.changed):
                raise self._unfenced(c, row)
            for other in queue.in_flight(warp):
                if not other.accumulators.isdisjoint(names) and (
                    other.accumulators != self.accumulators
                    or other.shape != self.instruction.parts[4]
                ):
                    what = "uses accumulators of a wgmma of another shape before its wait"
                    raise c.fault(EarlyReadFault, self.instruction, row * 32, what)
            queue.open[warp].append(
                _Product(
                    self.accumulators,
                    frozenset(factors),
                    self.instruction.parts[4],
                    tuple(read[row]),
                )
            )
        watch.look()

    def _unfenced(self, c: Convoy, row: int) -> EmulatedFault:
        what = "no wgmma.fence after other instructions changed its registers"
        return c.fault(MissingFenceFault, self.instruction, row * 32, what)
