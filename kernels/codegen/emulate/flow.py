"""Branches, barriers, fences and the end (PTX ISA 9.7.12, 9.7.13)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .crosslane import decode_warp_barrier
from .operations import STOP, PtxDecoding, PtxOperation, Values, effect, plain, unsupported
from .syntax import Immediate, Instruction, SymbolName
from .warpgroup import decode_proxy_fence

if TYPE_CHECKING:
    from .convoy import Convoy


def decode_bra(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """bra, with lanes of a warp going apart where the guard says so."""
    label = ins.operands[0]
    if not isinstance(label, SymbolName) or label.name not in decoding.syntax.labels:
        raise unsupported(ins)
    target, following = decoding.syntax.labels[label.name], ins.index + 1
    guard = ins.guard
    if guard is None:
        return effect(ins, (), (), lambda c: target)

    def run(c: Convoy) -> int | None:
        taken = c.values[guard]
        if ins.negated:
            taken = ~taken
        if taken.all():
            return target
        if not taken.any():
            return None
        c.machine.branch(c, taken, target, following)
        return STOP

    return effect(ins, (), (), run)


def decode_ret(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """ret and exit."""
    if ins.guard is not None or len(ins.parts) > 1:
        raise unsupported(ins)

    def run(c: Convoy) -> int:
        c.machine.leave(c)
        return STOP

    return effect(ins, (), (), run)


def decode_bar(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """bar.sync 0 of the whole CTA, and bar.warp.sync."""
    if ins.parts[1] == "warp":
        return decode_warp_barrier(decoding, ins)
    number = ins.operands[0]
    if (
        ins.parts[1:] != ("sync",)
        or len(ins.operands) != 1
        or not isinstance(number, Immediate)
        or number.bits(32) != 0
        or ins.guard is not None
    ):
        raise unsupported(ins)
    following = ins.index + 1

    def run(c: Convoy) -> int | None:
        c.need_whole(ins)
        if c.complete:
            c.machine.epochs[np.unique(c.slots)] += 1
            c.refresh()
            return None
        c.machine.arrive(c, following)
        return STOP

    return effect(ins, (), (), run)


def decode_fence(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """fence and membar on global memory: publishes the thread's stores, and acquires."""
    if ins.name in ("fence.proxy.async", "fence.proxy.async.shared::cta"):
        return decode_proxy_fence(decoding, ins)
    weak = ins.name in ("membar.cta", "fence.acq_rel.cta", "fence.sc.cta")
    known = ins.name in ("membar.gl", "membar.sys") or (
        ins.parts[0] == "fence"
        and ins.parts[1:-1] in (("acq_rel",), ("sc",))
        and ins.parts[-1] in ("gpu", "sys")
    )
    if not (weak or known) or ins.guard is not None:
        raise unsupported(ins)

    def run(c: Convoy) -> None:
        if not weak:
            for thread in c.threads.tolist():
                c.machine.memory.release(c, thread)
            for slot in np.unique(c.slots).tolist():
                c.machine.memory.acquire(slot)

    return effect(ins, (), (), run)


def decode_griddepcontrol(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """griddepcontrol.wait, before which no global memory may be touched, and the hint."""
    if ins.guard is not None or ins.parts[1:] not in (("wait",), ("launch_dependents",)):
        raise unsupported(ins)
    if ins.parts[1] != "wait":
        return effect(ins, (), (), lambda c: None)

    def run(c: Convoy) -> None:
        c.machine.awaited[c.threads] = True

    return effect(ins, (), (), run)


def decode_createpolicy(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """createpolicy: a hint, of which nothing but its register is kept."""
    d, zero = decoding.target(ins, 0, 64), decoding.constant(0, 64)

    def run(v: Values) -> None:
        v[d] = v[zero]

    return plain(ins, (zero,), (d,), run)
