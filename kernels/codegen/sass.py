"""Reading assembly: where the main loop is, and what it is made of.

SASS (nvdisasm) and AMDGCN text have the same shape for our purpose: labels, and one instruction a
line, some of them branches to a label. A branch to an earlier label closes a loop.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

_SASS_LABEL = re.compile(r"\s*(\.L_x?_?\w+):")
_SASS_LINE = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(.*?)\s*;")
_SASS_BRANCH = re.compile(r"\bBRA\b.*?(\.L_x?_?\w+)")
_SASS_WORD = re.compile(r"\s*/\* (0x[0-9a-f]{16}) \*/\s*$")
_SASS_GUARD = re.compile(r"^@!?U?P\w+\s+")
_SASS_TENSOR = re.compile(r"[HIQDBUO]\w*MMA$")
_AMD_LABEL = re.compile(r"(\.LBB\d+_\d+):")
_AMD_LINE = re.compile(r"\t([a-z]\w+.*)")
_AMD_BRANCH = re.compile(r"s_c?branch\w* (\.LBB\d+_\d+)")


@dataclass(frozen=True, slots=True)
class Loop:
    """The main loop of a kernel.

    Attributes:
        instructions: instructions in its body.
        mix: opcode (without modifiers) -> count.
        opcodes: opcode with its modifiers -> count.
    """

    instructions: int
    mix: Counter[str]
    opcodes: Counter[str]

    @property
    def tensor_core(self) -> str:
        """Tensor-core opcodes and their counts, e.g. ``HMMA:32``; empty when there is none."""
        return " ".join(f"{op}:{n}" for op, n in sorted(self.mix.items()) if is_tensor_core(op))

    def count(self, *prefixes: str) -> int:
        """Instructions whose opcode, with modifiers, starts with one of ``prefixes``."""
        return sum(n for op, n in self.opcodes.items() if op.startswith(prefixes))


def is_tensor_core(opcode: str) -> bool:
    """Whether a bare opcode is a matrix instruction (HMMA, IGMMA, UTCHMMA, v_mfma...)."""
    return opcode.startswith("v_mfma") or _SASS_TENSOR.match(opcode) is not None


def whole(assembly: str) -> Loop:
    """All instructions of a kernel, counted as those of a loop are."""
    return _loop(_parse(assembly)[0])


def main_loop(assembly: str) -> Loop | None:
    """The loop where the kernel spends its time, or None when it has no loop.

    Loops nest and a pipelined kernel has several, so: among the loops that hold tensor-core
    instructions and no smaller loop that does, the one with the most of them; in a kernel without
    tensor cores, the longest loop that holds no other. Ties go to the longer loop.
    """
    span = main_span(assembly)
    return None if span is None else _loop(_parse(assembly)[0][span.start : span.stop])


def main_span(assembly: str) -> range | None:
    """Numbers of :func:`main_loop`'s instructions, counted from the kernel's first."""
    lines, loops = _parse(assembly)
    if not loops:
        return None
    bodies = [_loop(lines[a : b + 1]) for a, b in loops]
    work = [sum(n for op, n in body.mix.items() if is_tensor_core(op)) for body in bodies]
    matters: Callable[[int], bool] = (lambda i: work[i] > 0) if any(work) else (lambda i: True)
    chosen = [i for i in range(len(loops)) if matters(i)]
    inner = [
        i
        for i in chosen
        if not any(
            j != i and loops[i][0] <= loops[j][0] and loops[j][1] <= loops[i][1] for j in chosen
        )
    ]
    first, last = loops[max(inner, key=lambda i: (work[i], bodies[i].instructions))]
    return range(first, last + 1)


def instructions(assembly: str) -> list[str]:
    """All instructions of a kernel in order, without their guards."""
    return [_SASS_GUARD.sub("", text) for text in _parse(assembly)[0]]


def encodings(assembly: str) -> list[int]:
    """The upper 64 bits of each NVIDIA instruction, which nvdisasm prints with ``-hex``."""
    words: list[int] = []
    waiting = False
    for text in assembly.splitlines():
        if _SASS_LINE.match(text):
            waiting = True
        elif waiting and (word := _SASS_WORD.match(text)):
            words.append(int(word[1], 16))
            waiting = False
    return words


def _parse(assembly: str) -> tuple[list[str], list[tuple[int, int]]]:
    """(instructions, loops as (first, last) instruction, one per first instruction)."""
    amd = "amdgcn" in assembly or "s_endpgm" in assembly
    label_of, line_of, branch_of = (
        (_AMD_LABEL, _AMD_LINE, _AMD_BRANCH) if amd else (_SASS_LABEL, _SASS_LINE, _SASS_BRANCH)
    )
    lines: list[str] = []
    labels: dict[str, int] = {}
    last: dict[int, int] = {}
    for text in assembly.splitlines():
        if label := label_of.match(text):
            labels[label[1]] = len(lines)
        elif line := line_of.match(text):
            if branch := branch_of.search(line[1]):
                start = labels.get(branch[1])
                # A branch to itself is the trap behind the end of every SASS kernel.
                if start is not None and start < len(lines):
                    last[start] = len(lines)
            lines.append(line[1])
    return lines, sorted(last.items())


def _loop(body: list[str]) -> Loop:
    opcodes = Counter(_SASS_GUARD.sub("", text).split()[0].rstrip(",") for text in body)
    mix: Counter[str] = Counter()
    for opcode, count in opcodes.items():
        mix[opcode.split(".")[0]] += count
    return Loop(len(body), mix, opcodes)
