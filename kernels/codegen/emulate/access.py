"""ld, st, atom and red on global, shared and parameter space (PTX ISA 9.7.9, 9.7.13)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .faults import OutOfBoundsFault, UnwrittenFault
from .operations import (
    HOME,
    PARAMETER_BASE,
    PARAMETER_STEP,
    PTX_TYPES,
    PtxDecoding,
    PtxOperation,
    effect,
    plain,
    scalar_type,
    unsupported,
)
from .syntax import Instruction, MemoryAddress, Register

if TYPE_CHECKING:
    from .convoy import Convoy
    from .operations import Values

_ORDERS = ("relaxed", "acquire", "release", "acq_rel", "volatile")
_SCOPES = ("cta", "gpu", "sys")
# Hints that change where bytes are kept, not what they are.
_HINTS = ("ca", "cg", "cs", "lu", "wb", "wt", "cv", "weak", "nc")
_HINT_PREFIXES = ("L1::", "L2::")

_ATOMS: dict[str, Callable[[int, int], int]] = {
    "add": lambda old, new: old + new,
    "min": min,
    "max": max,
    "and": lambda old, new: old & new,
    "or": lambda old, new: old | new,
    "xor": lambda old, new: old ^ new,
    "exch": lambda old, new: new,
}


class _Form:
    """The modifiers of a load or store, taken apart. Raises UnsupportedFault for unknown ones."""

    def __init__(self, ins: Instruction) -> None:
        self.space = ""
        self.order = "weak"
        self.count = 1
        self.hinted = False
        self.coherent = False
        for part in ins.parts[1:-1]:
            if part in ("global", "shared", "shared::cta", "param"):
                self.space = part.split("::")[0]
            elif part in ("v2", "v4"):
                self.count = int(part[1])
            elif part in _ORDERS:
                self.order = part
            elif part in _HINTS or part.startswith(_HINT_PREFIXES):
                self.coherent |= part in ("cg", "cv")
                self.hinted |= part.endswith("cache_hint")
            elif part not in _SCOPES:
                raise unsupported(ins)
        if not self.space:
            raise unsupported(ins, "generic addresses")
        self.kind = ins.parts[-1]
        self.type = scalar_type(ins, self.kind)
        self.coherent |= self.order != "weak"


def _positions(c: Convoy, ins: Instruction) -> Any:
    active = c.active(ins)
    return np.arange(len(c.threads)) if active is None else active


def decode_ld(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """ld."""
    form = _Form(ins)
    if form.space == "param":
        return _load_parameter(decoding, ins, form)
    targets = decoding.parts(ins, 0)
    if len(targets) != form.count:
        raise unsupported(ins)
    # Narrower data than the register is extended, with its sign where its type has one.
    slots, homes = [], []
    for target in targets:
        if not isinstance(target, Register) or target.bits < 8 * form.type.itemsize:
            raise unsupported(ins)
        slots.append(target.slot)
        homes.append(HOME[target.bits])
    base, offset = decoding.address(ins, 1)
    unsigned = np.dtype(f"u{form.type.itemsize}")
    read = _shared_reader(decoding, ins, form) if form.space == "shared" else _reader(ins, form)
    signed = form.type.kind == "i"

    def run(c: Convoy) -> None:
        positions = _positions(c, ins)
        if not len(positions):
            return
        address = c.lanes(base)[positions]
        data = read(c, address.astype("i8") + offset, positions)
        whole = len(positions) == len(c.threads)
        for place, (slot, home) in enumerate(zip(slots, homes, strict=True)):
            column = data[:, place]
            if signed and home.itemsize != unsigned.itemsize:
                column = column.view(form.type).astype(f"i{home.itemsize}").view(home)
            column = column.astype(home)
            if not whole:
                old = c.lanes(slot).copy()
                old[positions] = column
                column = old
            c.values[slot] = column

    return effect(ins, (base,), slots, run)


def _reader(ins: Instruction, form: _Form) -> Callable[[Convoy, Any, Any], Any]:
    if form.order in ("release", "acq_rel"):
        raise unsupported(ins)
    size = form.type.itemsize * form.count
    unsigned = np.dtype(f"u{form.type.itemsize}")

    def read(c: Convoy, address: Any, positions: Any) -> Any:
        memory = c.machine.memory
        place = memory.places(c, ins, address.view("u8"), size, positions)
        if form.order == "acquire":
            for slot in np.unique(c.slots[positions]).tolist():
                memory.acquire(slot)
        if c.machine.options.count:
            c.machine.counts.sectors(ins, c, place, size, positions)
        data = memory.load(c, ins, place, size, positions, form.coherent)
        return data.view(unsigned)

    return read


def _shared_reader(
    decoding: PtxDecoding, ins: Instruction, form: _Form
) -> Callable[[Convoy, Any, Any], Any]:
    unsigned = np.dtype(f"u{form.type.itemsize}")
    size = form.type.itemsize * form.count
    decoding.granule = min(decoding.granule, size)

    def read(c: Convoy, address: Any, positions: Any) -> Any:
        if c.machine.options.count:
            c.machine.counts.shared(ins, c, address, size, positions)
        return c.machine.shared.load(c, ins, address, unsigned, form.count, positions)

    return read


def _load_parameter(decoding: PtxDecoding, ins: Instruction, form: _Form) -> PtxOperation:
    operand, target = ins.operands[1], ins.operands[0]
    if (
        not isinstance(operand, MemoryAddress)
        or form.count != 1
        or not isinstance(target, Register)
        or target.bits < 8 * form.type.itemsize
    ):
        raise unsupported(ins)
    unsigned, home, d = np.dtype(f"u{form.type.itemsize}"), HOME[target.bits], target.slot

    def extended(value: Any) -> Any:
        value = value.astype(unsigned)
        if form.type.kind == "i":
            value = value.view(form.type).astype(f"i{home.itemsize}").view(home)
        return value.astype(home)

    names, base = decoding.parameter_names, operand.base
    if isinstance(base, Register):
        return _load_any_parameter(decoding, ins, extended)
    if base.name not in names or operand.offset:
        raise unsupported(ins)
    a = decoding.parameter(names.index(base.name))

    def run(v: Values) -> None:
        v[d] = extended(v[a])

    return plain(ins, (), (d,), run)


def _load_any_parameter(
    decoding: PtxDecoding, ins: Instruction, extended: Callable[[Any], Any]
) -> PtxOperation:
    """ld.param from an address that is computed: the compiler chooses between parameters so."""
    if ins.guard is not None:
        raise unsupported(ins)
    base, offset = decoding.address(ins, 1)
    slots = [decoding.parameter(number) for number in range(len(decoding.parameter_names))]
    target = ins.operands[0]
    assert isinstance(target, Register)

    def run(c: Convoy) -> None:
        address = c.lanes(base).astype("i8") + (offset - PARAMETER_BASE)
        number = address // PARAMETER_STEP
        bad = (number < 0) | (number >= len(slots)) | (address % PARAMETER_STEP != 0)
        if bad.any():
            lane = int(np.flatnonzero(bad)[0])
            raise c.fault(OutOfBoundsFault, ins, lane, "no parameter begins at this address")
        values = np.array([int(c.values[slot]) for slot in slots], "u8")
        c.values[target.slot] = extended(values.take(number))

    return effect(ins, (base,), (target.slot,), run)


def decode_prefetch(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """prefetch.global.L2: nothing but the bounds of the address."""
    if ins.name != "prefetch.global.L2" or ins.guard is not None:
        raise unsupported(ins)
    base, offset = decoding.address(ins, 0)

    def run(c: Convoy) -> None:
        positions = np.arange(len(c.threads))
        address = c.lanes(base).astype("i8") + offset
        c.machine.memory.found(c, ins, address.view("u8"), 1, positions)

    return effect(ins, (base,), (), run)


def decode_st(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """st."""
    form = _Form(ins)
    sources = decoding.parts(ins, 1)
    if len(sources) != form.count or form.space == "param" or form.order in ("acquire", "acq_rel"):
        raise unsupported(ins)
    base, offset = decoding.address(ins, 0)
    width = max(16, 8 * form.type.itemsize)
    slots = []
    for source in sources:
        assert source is not None
        bits = source.bits if isinstance(source, Register) else width
        if bits < width:
            raise unsupported(ins)
        slots.append(decoding.source(ins, source, bits))
    unsigned = np.dtype(f"u{form.type.itemsize}")
    size = form.type.itemsize * form.count
    if form.space == "shared":
        decoding.granule = min(decoding.granule, size)

    def run(c: Convoy) -> None:
        positions = _positions(c, ins)
        if not len(positions):
            return
        address = c.lanes(base)[positions].astype("i8") + offset
        data = np.empty((len(positions), form.count), unsigned)
        for place, slot in enumerate(slots):
            value = c.values[slot]
            data[:, place] = value[positions] if value.ndim else value
        machine = c.machine
        if form.space == "shared":
            if machine.options.count:
                machine.counts.shared(ins, c, address, size, positions)
            machine.shared.store(c, ins, address, data, positions)
            return
        memory = machine.memory
        place = memory.places(c, ins, address.view("u8"), size, positions)
        if machine.options.count:
            machine.counts.sectors(ins, c, place, size, positions)
        data = data.view("u1").reshape(len(positions), size)
        if form.order == "weak":
            memory.store(c, ins, place, data, positions)
            return
        for lane, position in enumerate(positions.tolist()):
            slot = int(c.slots[position])
            if form.order == "release":
                memory.release(c, int(c.threads[position]))
            memory.settle(slot, int(place[lane]), size)
            memory.commit(slot, place[lane : lane + 1], data[lane : lane + 1])

    return effect(ins, (base, *slots), (), run)


def decode_atom(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """atom and red with one operand, on whole words, lane by lane in a random order."""
    red = ins.parts[0] == "red"
    parts = [part for part in ins.parts[1:-1] if part not in _SCOPES]
    order = next((part for part in parts if part in _ORDERS), "relaxed")
    space = next(
        (part.split("::")[0] for part in parts if part.startswith(("global", "shared"))), ""
    )
    work = next((_ATOMS[part] for part in parts if part in _ATOMS), None)
    known = {order, "global", "shared", "shared::cta", *_ATOMS}
    kind = ins.parts[-1]
    if not space or work is None or not known.issuperset(parts) or kind not in PTX_TYPES:
        raise unsupported(ins)
    dtype = PTX_TYPES[kind]
    if dtype.kind == "f" or dtype.itemsize < 4:
        raise unsupported(ins)
    size, bits = dtype.itemsize, 8 * dtype.itemsize
    target, place = (None, 0) if red else (ins.operands[0], 1)
    base, offset = decoding.address(ins, place)
    operand = decoding.source(ins, place + 1, bits)
    d = None if target is None else decoding.target(ins, target, bits)
    if space == "shared":
        decoding.granule = min(decoding.granule, size)
    signed = (lambda x: int(np.array(x, f"u{size}").view(dtype))) if dtype.kind == "i" else int
    change = lambda old, new: work(signed(old), signed(new))  # noqa: E731

    def run(c: Convoy) -> None:
        positions = _positions(c, ins)
        if not len(positions):
            return
        address = c.lanes(base)[positions].astype("i8") + offset
        given = c.lanes(operand)[positions]
        each = _shared_atom if space == "shared" else _global_atom
        result = each(c, ins, address, given, positions, size, order, change)
        if d is not None:
            old = c.lanes(d).copy()
            old[positions] = result
            c.values[d] = old

    writes = () if d is None else (d,)
    return effect(ins, (base, operand, *writes), writes, run)


def _random_order(c: Convoy, count: int) -> list[int]:
    order = list(range(count))
    c.machine.chance.shuffle(order)
    return order


def _global_atom(
    c: Convoy,
    ins: Instruction,
    address: Any,
    given: Any,
    positions: Any,
    size: int,
    order: str,
    change: Any,
) -> Any:
    memory = c.machine.memory
    places = memory.places(c, ins, address.view("u8"), size, positions)
    result = np.empty(len(positions), f"u{size}")
    for lane in _random_order(c, len(positions)):
        position, place = int(positions[lane]), int(places[lane])
        slot = int(c.slots[position])
        if order in ("release", "acq_rel"):
            memory.release(c, int(c.threads[position]))
        memory.settle(slot, place, size)
        if memory.unwritten(place, size):
            what = f"reads {memory.name(place)}, which nothing has written"
            raise c.fault(UnwrittenFault, ins, position, what)
        new = int(given[lane])
        result[lane] = memory.exchange(slot, place, size, lambda old, new=new: change(old, new))
        if order in ("acquire", "acq_rel"):
            memory.acquire(slot)
    return result


def _shared_atom(
    c: Convoy,
    ins: Instruction,
    address: Any,
    given: Any,
    positions: Any,
    size: int,
    order: str,
    change: Any,
) -> Any:
    shared = c.machine.shared
    place, granules = shared.places(c, ins, address, size, positions)
    shared.atomic(c, ins, granules, positions)
    cells = shared.data.view(f"u{size}")
    result = np.empty(len(positions), f"u{size}")
    mask = (1 << 8 * size) - 1
    for lane in _random_order(c, len(positions)):
        index = int(place[lane]) // size
        old = int(cells[index])
        result[lane] = old
        cells[index] = change(old, int(given[lane])) & mask
    return result
