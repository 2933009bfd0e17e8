"""A kernel that can be run: operations in segments, and which registers each of them needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import access, conversion, copies, crosslane, floating, flow, integer, matrix, warpgroup
from .operations import Effect, Plain, PtxDecoding, PtxOperation, Values, unsupported
from .syntax import Instruction, PtxSyntax, SymbolName

InstructionDecoder = Callable[[PtxDecoding, Instruction], PtxOperation]

_FLOATS = {"f16", "bf16", "f16x2", "bf16x2", "f32", "f64"}

_DECODERS: dict[str, InstructionDecoder] = {
    "and": integer.decode_logic,
    "or": integer.decode_logic,
    "xor": integer.decode_logic,
    "not": integer.decode_not,
    "rem": integer.decode_rem,
    "mad": integer.decode_mad,
    "shl": integer.decode_shift,
    "shr": integer.decode_shift,
    "bfe": integer.decode_bfe,
    "popc": integer.decode_popc,
    "lop3": integer.decode_lop3,
    "prmt": integer.decode_prmt,
    "selp": integer.decode_selp,
    "mov": integer.decode_mov,
    "fma": floating.decode_fma,
    "sqrt": floating.decode_sqrt,
    "ex2": floating.decode_ex2,
    "setp": floating.decode_setp,
    "cvt": conversion.decode_cvt,
    "shfl": crosslane.decode_shfl,
    "redux": crosslane.decode_redux,
    "vote": crosslane.decode_vote,
    "ld": access.decode_ld,
    "st": access.decode_st,
    "atom": access.decode_atom,
    "red": access.decode_atom,
    "cp": copies.decode_cp,
    "ldmatrix": matrix.decode_ldmatrix,
    "stmatrix": matrix.decode_stmatrix,
    "mma": matrix.decode_mma,
    "bra": flow.decode_bra,
    "ret": flow.decode_ret,
    "exit": flow.decode_ret,
    "bar": flow.decode_bar,
    "fence": flow.decode_fence,
    "membar": flow.decode_fence,
    "wgmma": warpgroup.decode_wgmma,
    "createpolicy": flow.decode_createpolicy,
    "griddepcontrol": flow.decode_griddepcontrol,
    "prefetch": access.decode_prefetch,
}

_FLOAT_DECODERS: dict[str, InstructionDecoder] = {
    "add": floating.decode_add,
    "sub": floating.decode_sub,
    "mul": floating.decode_mul,
    "min": floating.decode_min,
    "max": floating.decode_max,
    "div": floating.decode_div,
    "neg": floating.decode_neg,
    "abs": floating.decode_abs,
}

_INTEGER_DECODERS: dict[str, InstructionDecoder] = {
    "add": integer.decode_sum,
    "sub": integer.decode_sum,
    "mul": integer.decode_mul,
    "min": integer.decode_sum,
    "max": integer.decode_sum,
    "div": integer.decode_div,
    "neg": integer.decode_neg,
    "abs": integer.decode_abs,
}


@dataclass(frozen=True, slots=True)
class Segment:
    """Instructions that run in one go: plain ones, and at most one effect at their end.

    Attributes:
        needs: slots of registers that it reads before it writes them.
        plain: the plain operations.
        effect: the last operation, None where a label ends the segment.
        writes: slots of the registers that it changes.
        live: slots of the registers that somebody may still read after it.
        end: index of the instruction that follows.
        operations: what it consists of.
        touches: slots that may not belong to a product in flight.
        changes: slots of the registers that it changes at once, neither by a product nor by a copy.
        copied: slot to the slot whose value, from before the segment, it is given by copies.
    """

    needs: tuple[int, ...]
    plain: tuple[Plain, ...]
    effect: Effect | None
    writes: frozenset[int]
    live: frozenset[int]
    end: int
    operations: tuple[PtxOperation, ...]
    touches: frozenset[int]
    changes: frozenset[int]
    copied: dict[int, int]


class PtxProgram:
    """A kernel's PTX, decoded once; any number of runs may share it.

    Attributes:
        kernel: name of the entry.
        parameters: in order, with the two that Triton adds.
        threads: threads of one CTA.
        widths: bits of each register, by slot.
        special: slots of special registers, by name.
        operations: all instructions in order.
        template: values of constants by slot, None for registers and parameters.
        parameter_slots: slots of the parameters that are read, by their number.
        granule: bytes of the smallest access to shared memory.
        has_products: whether it uses wgmma.
        awaits: whether it waits for the kernels before it, which may still run when it starts.
        segments: by the index of their first instruction, None where not made yet.
    """

    def __init__(self, syntax: PtxSyntax) -> None:
        self.kernel, self.parameters = syntax.kernel, syntax.parameters
        self.threads, self.widths, self.special = syntax.threads, syntax.widths, syntax.special
        decoding = PtxDecoding(syntax)
        self.operations = [_decode(decoding, ins) for ins in syntax.instructions]
        self.template: Values = decoding.template
        self.parameter_slots = decoding.parameters
        self.granule = decoding.granule
        self.has_products = any(op.products for op in self.operations)
        self.awaits = any(ins.name == "griddepcontrol.wait" for ins in syntax.instructions)
        self.segments: list[Segment | None] = [None] * len(self.operations)
        self._leaders = set(syntax.labels.values())
        self._live = _live_after(self.operations, syntax)

    @classmethod
    def parse(cls, text: str) -> PtxProgram:
        """The kernel of a PTX text with one entry.

        Raises:
            UnsupportedFault: for syntax and instructions that the emulator does not know.
        """
        return cls(PtxSyntax(text))

    def segment(self, at: int) -> Segment:
        """The segment that begins at an instruction."""
        needs: dict[int, None] = {}
        writes: set[int] = set()
        plain: list[Plain] = []
        last = None
        end = at
        while last is None:
            operation = self.operations[end]
            for slot in operation.reads:
                if slot < len(self.widths) and slot not in writes:
                    needs[slot] = None
            writes.update(operation.writes)
            if operation.plain is not None:
                plain.append(operation.plain)
            last = operation.effect
            end += 1
            if end in self._leaders:
                break
        operations = tuple(self.operations[at:end])
        touches = frozenset().union(*(operation.touches() for operation in operations))
        changes, copied = _changes(operations)
        live = _slots(self._live[end - 1])
        made = Segment(
            tuple(needs),
            tuple(plain),
            last,
            frozenset(writes),
            live,
            end,
            operations,
            touches,
            changes,
            copied,
        )
        self.segments[at] = made
        return made


def _changes(operations: tuple[PtxOperation, ...]) -> tuple[frozenset[int], dict[int, int]]:
    """(slots that a segment changes, slots that it copies and from where): see Segment."""
    changes: set[int] = set()
    copied: dict[int, int] = {}
    for operation in operations:
        if operation.copies is not None:
            (target,) = operation.writes
            source = copied.get(operation.copies, operation.copies)
            if operation.copies not in changes:
                changes.discard(target)
                copied[target] = source
                continue
        for slot in operation.writes:
            if slot not in operation.products:
                changes.add(slot)
                copied.pop(slot, None)
    return frozenset(changes), copied


def _decode(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    name = ins.parts[0]
    decoder = _DECODERS.get(name)
    if decoder is None:
        table = _FLOAT_DECODERS if ins.parts[-1] in _FLOATS else _INTEGER_DECODERS
        decoder = table.get(name)
    if decoder is None:
        raise unsupported(ins)
    return decoder(decoding, ins)


def _live_after(operations: list[PtxOperation], syntax: PtxSyntax) -> list[int]:
    """For each instruction the registers that may be read after it, as a mask of their slots."""
    count = len(syntax.widths)
    reads = [sum({1 << s for s in op.reads if s < count}) for op in operations]
    writes = [sum({1 << s for s in op.writes}) for op in operations]
    before = [0] * (len(operations) + 1)
    after = [0] * len(operations)
    targets = [_branch_target(op.instruction, syntax) for op in operations]
    falls = [_falls_through(op.instruction) for op in operations]
    changed = True
    while changed:
        changed = False
        for place in range(len(operations) - 1, -1, -1):
            live = before[place + 1] if falls[place] else 0
            target = targets[place]
            if target is not None:
                live |= before[target]
            after[place] = live
            now = reads[place] | (live & ~writes[place])
            if now != before[place]:
                before[place] = now
                changed = True
    return after


def _branch_target(ins: Instruction, syntax: PtxSyntax) -> int | None:
    label = ins.operands[0] if ins.parts[0] == "bra" else None
    return syntax.labels[label.name] if isinstance(label, SymbolName) else None


def _falls_through(ins: Instruction) -> bool:
    return ins.parts[0] not in ("bra", "ret", "exit") or ins.guard is not None


def _slots(mask: int) -> frozenset[int]:
    found = []
    while mask:
        lowest = mask & -mask
        found.append(lowest.bit_length() - 1)
        mask ^= lowest
    return frozenset(found)
