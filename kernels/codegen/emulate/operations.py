"""What decoding makes of an instruction: which registers it reads and writes, and what it does.

A *plain* operation computes registers from registers. It is a function of the list of values that
a convoy works with, an array of all its lanes for each slot, and it never changes an array in
place, so that values may be shared. All others, *effects*, get the convoy itself: they touch
memory, other lanes or the flow of control.

Registers are kept as unsigned integers of their width. Where an instruction sees floats or signed
integers its operands are viewed as such, which costs no copy. Values that are the same in all
lanes may be arrays without a dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .faults import UnsupportedFault
from .syntax import (
    Immediate,
    Instruction,
    MemoryAddress,
    Operand,
    OperandList,
    PtxSyntax,
    Register,
    SymbolName,
)

if TYPE_CHECKING:
    from .convoy import Convoy

Values = list[Any]
Plain = Callable[[Values], None]
Effect = Callable[["Convoy"], int | None]
"""Gives the index of the next instruction, None for the one that follows, or STOP."""

STOP = -1
"""The warps of the convoy stand at different places now, or wait."""

PARAMETER_BASE, PARAMETER_STEP = 1 << 20, 1 << 8
"""Address of the first parameter, and from one to the next."""

HOME = {1: np.dtype(bool), 16: np.dtype("u2"), 32: np.dtype("u4"), 64: np.dtype("u8")}
"""Types of kept registers by their bits."""

PTX_TYPES = {
    "pred": np.dtype(bool),
    **{
        f"{k}{8 * n}": np.dtype(f"{c}{n}")
        for k, c in (("b", "u"), ("u", "u"), ("s", "i"))
        for n in (1, 2, 4, 8)
    },
    **{f"f{8 * n}": np.dtype(f"f{n}") for n in (2, 4, 8)},
}
"""PTX's scalar types that NumPy has."""


@dataclass(frozen=True, slots=True)
class PtxOperation:
    """A decoded instruction.

    Attributes:
        instruction: where it comes from.
        reads: slots whose values it needs.
        writes: slots that it changes.
        plain: what it does, or None.
        effect: what it does where ``plain`` is None.
        products: slots of the accumulators of a wgmma, which others in flight may have, too.
        copies: the register whose value it gives another one unchanged, or None.
    """

    instruction: Instruction
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    plain: Plain | None = None
    effect: Effect | None = None
    products: frozenset[int] = frozenset()
    copies: int | None = None

    def touches(self) -> frozenset[int]:
        """Slots that may not belong to a product in flight."""
        return frozenset((*self.reads, *self.writes)) - self.products

    def with_products(self, products: frozenset[int]) -> PtxOperation:
        """The same, as an operation that leaves a product in flight."""
        return replace(self, products=products)


class PtxDecoding:
    """What decoders share: constants, and the slots behind operands.

    Attributes:
        syntax: the program that is decoded.
        parameter_names: names of its parameters in order.
        template: a value for each slot: arrays without a dimension for constants, None for
            registers. Constants have the slots after those of the registers.
        granule: bytes of the smallest access to shared memory so far.
        parameters: slots of the parameters that are read, by their number.
    """

    def __init__(self, syntax: PtxSyntax) -> None:
        self.syntax = syntax
        self.parameter_names = [parameter.name for parameter in syntax.parameters]
        self.template: Values = [None] * len(syntax.widths)
        self.granule = 16
        self.parameters: dict[int, int] = {}
        self._constants: dict[tuple[int, int], int] = {}

    def constant(self, bits: int, width: int) -> int:
        """The slot of a constant."""
        key = bits, width
        if key not in self._constants:
            self._constants[key] = len(self.template)
            value = bool(bits) if width == 1 else bits
            self.template.append(np.array(value, HOME[width]))
        return self._constants[key]

    def parameter(self, number: int) -> int:
        """The slot of a parameter, whose value a run puts there as 64 bits."""
        if number not in self.parameters:
            self.parameters[number] = len(self.template)
            self.template.append(None)
        return self.parameters[number]

    def source(self, ins: Instruction, place: int | Operand, width: int) -> int:
        """The slot of an operand that is read. Raises UnsupportedFault unless it has that width."""
        operand = ins.operands[place] if isinstance(place, int) else place
        if isinstance(operand, Register):
            if operand.bits != width:
                raise unsupported(ins, f"an operand of {operand.bits} bits")
            return operand.slot
        if isinstance(operand, Immediate):
            return self.constant(operand.bits(width), width)
        if isinstance(operand, SymbolName) and operand.name == "global_smem":
            return self.constant(0, width)
        if isinstance(operand, SymbolName) and operand.name in self.parameter_names:
            place = self.parameter_names.index(operand.name)
            return self.constant(PARAMETER_BASE + PARAMETER_STEP * place, width)
        raise unsupported(ins, f"operand {operand}")

    def target(self, ins: Instruction, place: int | Operand | None, width: int) -> int:
        """The slot of a register that is written."""
        operand = ins.operands[place] if isinstance(place, int) else place
        if isinstance(operand, Register) and operand.bits == width:
            return operand.slot
        raise unsupported(ins, f"target {operand}")

    def address(self, ins: Instruction, place: int) -> tuple[int, int]:
        """(slot of the base, offset in bytes) of an address."""
        operand = ins.operands[place]
        if not isinstance(operand, MemoryAddress):
            raise unsupported(ins, f"address {operand}")
        base = operand.base
        if isinstance(base, Register):
            return base.slot, operand.offset
        if isinstance(base, SymbolName) and base.name == "global_smem":
            return self.constant(0, 32), operand.offset
        raise unsupported(ins, f"address {operand}")

    def parts(self, ins: Instruction, place: int) -> tuple[Operand | None, ...]:
        """The operands of a list, or the one operand that stands there."""
        operand = ins.operands[place]
        return operand.parts if isinstance(operand, OperandList) else (operand,)


def unsupported(ins: Instruction, what: str = "") -> UnsupportedFault:
    """The fault that names an instruction which cannot be emulated."""
    reason = f" ({what})" if what else ""
    return UnsupportedFault(f"line {ins.line}: {ins.text}: not emulated{reason}")


def viewed(dtype: np.dtype[Any]) -> tuple[int, np.dtype[Any]]:
    """(bits of the register, its kept type) for operands of a type."""
    bits = 1 if dtype.kind == "b" else 8 * dtype.itemsize
    return bits, HOME[bits]


def scalar_type(ins: Instruction, name: str) -> np.dtype[Any]:
    """The NumPy type of a PTX type. Raises UnsupportedFault for one without."""
    if name not in PTX_TYPES:
        raise unsupported(ins, f"type {name}")
    return PTX_TYPES[name]


def plain(
    ins: Instruction, reads: Sequence[int], writes: Sequence[int], run: Plain
) -> PtxOperation:
    """An operation on registers alone, with the guard of the instruction around it."""
    if ins.guard is None:
        return PtxOperation(ins, tuple(reads), tuple(writes), run)
    guard, negated, targets = ins.guard, ins.negated, tuple(writes)

    def guarded(v: Values) -> None:
        old = [v[t] for t in targets]
        run(v)
        for t, before in zip(targets, old, strict=True):
            v[t] = np.where(v[guard], before, v[t]) if negated else np.where(v[guard], v[t], before)

    return PtxOperation(ins, (*reads, *writes, guard), targets, guarded)


def effect(
    ins: Instruction, reads: Sequence[int], writes: Sequence[int], run: Effect
) -> PtxOperation:
    """An operation on more than registers. It looks at the guard itself."""
    guard = () if ins.guard is None else (ins.guard, *writes)
    return PtxOperation(ins, (*reads, *guard), tuple(writes), None, run)
