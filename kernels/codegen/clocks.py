"""Clocks of SASS on one quarter of a multiprocessor, from what its encoding says: no timing.

Each instruction of an NVIDIA GPU since Volta carries its own schedule in its upper word: clocks
until the next one may issue, one of six barriers that is set when its result is there or its
operands are read, and a mask of barriers that it waits for (Jia et al. 2018, arXiv 1804.06826,
section 2.1). One scheduler issues an instruction a clock, each pipe takes one every few clocks.
Playing that for some warps gives what a loop takes when memory answers in time. Latencies of
memory are those of Luo et al. 2024 (arXiv 2402.13499) for an H100; caches, bank conflicts and
what other quarters do to the shared pipes are not in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .sass import encodings, instructions, main_span

SHARED_CLOCKS = 29
"""Until a load from shared memory is there."""
L2_CLOCKS = 263
"""Until a load that hits in the second cache is there."""
FAR_CLOCKS = 479
"""Until a load from device memory is there, the memory being idle."""

_BARRIER_CLOCKS = 25
_TENSOR_CLOCKS = 33
_READ_CLOCKS = 20
_SLOW_CLOCKS = 30

_ALU = ("LOP3", "PRMT", "SHF", "IADD3", "VIADD", "SEL", "FSEL", "ISETP", "FSETP", "HSETP2")
_ALU += ("PLOP3", "LEA", "IABS", "FMNMX", "IMNMX", "VIMNMX", "HMNMX2", "VABSDIFF", "BMSK", "SGXT")
_FMA = ("FFMA", "FMUL", "FADD", "HADD2", "HFMA2", "HMUL2")
_SLOW = ("MUFU", "F2F", "F2FP", "I2F", "I2FP", "F2I", "POPC", "FLO", "BREV", "SHFL")
_NEAR, _COPIES, _FAR = ("LDS", "LDSM", "STS"), ("LDGSTS",), ("LDG", "LD", "ATOMG", "STG")
_PRODUCT_WIDTH = re.compile(r"HGMMA\.64x(\d+)x16")
_PENDING = re.compile(r"gsb0, (0x[0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class Issue:
    """One instruction as its quarter sees it.

    Attributes:
        pipe: which unit takes it.
        interval: clocks until that unit takes another.
        stall: clocks until its own warp may go on.
        latency: clocks until the barrier of its result is set back.
        sets: number of that barrier, or -1.
        reads: number of the barrier of its operands, or -1.
        waits: numbers of the barriers that must be set back first.
        closes: it ends a group of warp-group products.
        pending: groups that may be left when it goes on, or -1 when it waits for none.
    """

    pipe: str
    interval: int
    stall: int
    latency: int
    sets: int
    reads: int
    waits: tuple[int, ...]
    closes: bool = False
    pending: int = -1


def loop_clocks(assembly: str, warps: int, passes: int = 12) -> int:
    """Clocks in which each of ``warps`` warps of a quarter goes through the main loop once.

    Args:
        assembly: SASS with its encoding.
        warps: of one quarter, all in the loop.
        passes: played; the first three are not counted.

    Raises:
        ValueError: there is no loop.
    """
    span = main_span(assembly)
    if span is None:
        raise ValueError("the kernel has no loop")
    body = _issues(assembly)[span.start : span.stop]
    ends = _play(body, warps, passes)
    return round((ends[-1] - ends[2]) / (passes - 3))


def whole_clocks(assembly: str) -> int:
    """Clocks of one warp from the first instruction to the last, each taken once.

    That is a kernel without loops; with loops it is one pass of each.
    """
    texts = instructions(assembly)
    end = next((i for i, text in enumerate(texts) if text == "EXIT" and i > len(texts) // 2), None)
    return _play(_issues(assembly)[: None if end is None else end + 1], 1, 1)[-1]


def _issues(assembly: str) -> list[Issue]:
    texts, words = instructions(assembly), encodings(assembly)
    if len(texts) != len(words):
        raise ValueError(f"{len(texts)} instructions have {len(words)} encodings")
    return [_issue(text, word) for text, word in zip(texts, words, strict=True)]


def _issue(text: str, word: int) -> Issue:
    pipe, interval, latency = _costs(text)
    field = lambda start, bits: word >> start & (1 << bits) - 1  # noqa: E731
    stall = max(1, field(41, 4)) + (_BARRIER_CLOCKS if text.startswith("BAR") else 0)
    sets, reads = (n if n < 6 else -1 for n in (field(46, 3), field(49, 3)))
    waits = tuple(i for i in range(6) if field(52, 6) >> i & 1)
    left = _PENDING.search(text) if text.startswith("WARPGROUP.DEPBAR") else None
    closes = text.startswith("HGMMA") and "gsb0" in text
    pending = int(left[1], 16) if left else -1
    return Issue(pipe, interval, stall, latency, sets, reads, waits, closes, pending)


def _costs(text: str) -> tuple[str, int, int]:
    """(pipe, clocks between two, clocks until the result is there)."""
    opcode = text.split()[0]
    name = opcode.split(".")[0]
    if name == "HMMA":
        # 16 x 8 x 16 products at 256 a clock; Hopper's older instruction has half of its rate.
        return "tensor", 8, _TENSOR_CLOCKS
    if wide := _PRODUCT_WIDTH.match(opcode):
        spent = int(wide[1]) // 2
        return "tensor", spent, spent + _TENSOR_CLOCKS
    if name in _ALU:
        return "alu", 2, 0
    if name == "IMAD":
        return "imad", 2, 0
    if name in _FMA:
        return "fma", 1, 0
    if name in _SLOW:
        return "slow", 8 if name == "MUFU" else 2, _SLOW_CLOCKS
    # A warp moves 128 bytes a clock to or from shared memory.
    pieces = 4 if ".128" in opcode or opcode.endswith(".4") else 2 if ".64" in opcode else 1
    if name in _NEAR:
        return "memory", pieces, SHARED_CLOCKS + pieces
    if name in _COPIES:
        return "memory", pieces, SHARED_CLOCKS
    if name in _FAR:
        return "memory", pieces, FAR_CLOCKS
    return name, 1, _SLOW_CLOCKS


def _play(body: Sequence[Issue], warps: int, passes: int) -> list[int]:
    """When the last of the warps ends each of its passes; those ahead go on meanwhile."""
    at = [0] * warps
    done = [0] * warps
    ready = [37 * w for w in range(warps)]
    barriers = [[0] * 6 for _ in range(warps)]
    groups: list[list[int]] = [[] for _ in range(warps)]
    pipes: dict[str, int] = {}
    ends = [0] * passes
    order = list(range(warps))
    now = 0
    while min(done) < passes:
        starts = []
        for turn, w in enumerate(order):
            one = body[at[w]]
            start = max(now, ready[w], pipes.get(one.pipe, 0), *(barriers[w][b] for b in one.waits))
            if 0 <= one.pending < len(groups[w]):
                start = max(start, groups[w][-1 - one.pending])
            starts.append((start, turn, w))
        start, _, w = min(starts)
        one = body[at[w]]
        now = start + 1
        pipes[one.pipe] = start + one.interval
        ready[w] = start + one.stall
        if one.closes:
            groups[w].append(start + one.latency)
        if one.sets >= 0:
            barriers[w][one.sets] = max(barriers[w][one.sets], start + one.latency)
        if one.reads >= 0:
            barriers[w][one.reads] = max(barriers[w][one.reads], start + _READ_CLOCKS)
        order.remove(w)
        order.append(w)
        at[w] += 1
        if at[w] == len(body):
            if done[w] < passes:
                ends[done[w]] = max(ends[done[w]], ready[w])
            at[w], done[w] = 0, done[w] + 1
    return ends
