"""Instructions that carry values between the lanes of a warp (PTX ISA 9.7.9.6, 9.7.13.17)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .operations import HOME, PtxDecoding, PtxOperation, effect, scalar_type, unsupported
from .syntax import Instruction, Register

if TYPE_CHECKING:
    from .convoy import Convoy

_REDUCTIONS: dict[str, Any] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def _mask(decoding: PtxDecoding, ins: Instruction, place: int) -> int:
    """The slot of the mask of lanes. Guards are refused: UnsupportedFault."""
    if ins.guard is not None:
        raise unsupported(ins, "under a guard")
    return decoding.source(ins, place, 32)


def _need_all(c: Convoy, ins: Instruction, mask: int) -> None:
    """Raises UnsupportedFault where an instruction does not want all lanes of a warp."""
    c.need_whole(ins)
    if not (c.values[mask] == 0xFFFFFFFF).all():
        raise unsupported(ins, "not all lanes")


def shuffled_lanes(mode: str, amount: Any, clamp: Any) -> tuple[Any, Any]:
    """[..., 32] source lanes and whether they are in range, as the PTX ISA's pseudocode has it."""
    lane = np.arange(32)
    segment, last = (clamp >> 8) & 31, clamp & 31
    bound = (lane & segment) | (last & ~segment)
    if mode == "up":
        source = lane - amount
        inside = source >= bound
    elif mode == "down":
        source = lane + amount
        inside = source <= bound
    elif mode == "bfly":
        source = lane ^ amount
        inside = source <= bound
    else:
        source = (lane & segment) | (amount & ~segment)
        inside = source <= bound
    return np.where(inside, source, lane), inside


def decode_shfl(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """shfl.sync of all lanes."""
    if ins.parts[1] != "sync" or ins.parts[-1] != "b32":
        raise unsupported(ins)
    lanes = _mask(decoding, ins, 4)
    mode = ins.parts[2]
    both = decoding.parts(ins, 0)
    d = decoding.target(ins, both[0], 32)
    p = decoding.target(ins, both[1], 1) if len(both) > 1 and both[1] is not None else None
    a, amount, clamp = (decoding.source(ins, place, 32) for place in (1, 2, 3))
    fixed = not any(isinstance(ins.operands[place], Register) for place in (2, 3))
    known = None
    if fixed:
        template = decoding.template
        known = shuffled_lanes(mode, int(template[amount]) & 31, int(template[clamp]))

    def run(c: Convoy) -> None:
        _need_all(c, ins, lanes)
        value = c.rows(a)
        if known is not None:
            source, inside = known
            result = value[:, source]
            inside = np.broadcast_to(inside, value.shape)
        else:
            amounts = c.rows(amount).astype("i8") & 31
            source, inside = shuffled_lanes(mode, amounts, c.rows(clamp).astype("i8"))
            result = np.take_along_axis(value, source, 1)
        c.values[d] = result.reshape(-1)
        if p is not None:
            c.values[p] = inside.reshape(-1)

    return effect(ins, (a, amount, clamp, lanes), (d,) if p is None else (d, p), run)


def decode_redux(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """redux.sync of all lanes."""
    if ins.parts[1] != "sync" or ins.parts[2] not in _REDUCTIONS:
        raise unsupported(ins)
    lanes = _mask(decoding, ins, 2)
    dtype = scalar_type(ins, ins.parts[3])
    a, d = decoding.source(ins, 1, 32), decoding.target(ins, 0, 32)
    work = _REDUCTIONS[ins.parts[2]]

    def run(c: Convoy) -> None:
        _need_all(c, ins, lanes)
        total = work.reduce(c.rows(a).view(dtype), axis=1, dtype=dtype).view("u4")
        c.values[d] = np.repeat(total, 32)

    return effect(ins, (a, lanes), (d,), run)


def decode_vote(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """vote.sync.ballot, any, all of all lanes."""
    if ins.parts[1] != "sync" or ins.parts[2] not in ("ballot", "any", "all"):
        raise unsupported(ins)
    lanes = _mask(decoding, ins, 2)
    a = decoding.source(ins, 1, 1)
    ballot = ins.parts[2] == "ballot"
    d = decoding.target(ins, 0, 32 if ballot else 1)

    def run(c: Convoy) -> None:
        _need_all(c, ins, lanes)
        rows = c.rows(a)
        if ballot:
            result = (rows.astype("u4") << np.arange(32, dtype="u4")).sum(1, dtype=HOME[32])
        else:
            result = rows.any(1) if ins.parts[2] == "any" else rows.all(1)
        c.values[d] = np.repeat(result, 32)

    return effect(ins, (a, lanes), (d,), run)


def decode_warp_barrier(decoding: PtxDecoding, ins: Instruction) -> PtxOperation:
    """bar.warp.sync: lanes of one warp run in step here, so only their number matters."""
    if ins.parts[1:] != ("warp", "sync"):
        raise unsupported(ins)
    lanes = _mask(decoding, ins, 0)
    return effect(ins, (lanes,), (), lambda c: _need_all(c, ins, lanes))
