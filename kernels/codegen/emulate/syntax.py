"""PTX text to instructions: statements, registers, labels and parameters.

Nothing here knows what an instruction does. Registers get a number each, a *slot*, local names of
scopes in inline assembly included, so that later steps index lists instead of looking up names.
The source of the syntax is chapter 4 of the PTX ISA.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass

from .faults import UnsupportedFault

SPECIAL_REGISTERS = tuple(
    f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"
)
"""Read-only registers that the hardware fills, each of 32 bits."""

_WIDTHS = {"pred": 1, "8": 8, "16": 16, "32": 32, "64": 64}
_ADDRESS = re.compile(r"^\[\s*([%$A-Za-z_][%$\w]*)\s*(?:\+\s*(-?\w+)\s*)?\]$")
_BLANK = re.compile(r"[\s;]*")
_LABEL = re.compile(r"\s*([$%\w]+)\s*:(?!:)")
_GUARD = re.compile(r"^@(!?)\s*([%$\w]+)\s+")


@dataclass(frozen=True, slots=True)
class Register:
    """A register.

    Attributes:
        slot: its number, over all classes of registers.
        bits: how many it has; 1 for a predicate.
    """

    slot: int
    bits: int


@dataclass(frozen=True, slots=True)
class Immediate:
    """A number in the text; ``bits`` gives its pattern in a register of some width."""

    text: str

    def bits(self, width: int) -> int:
        """The pattern of ``width`` bits. Raises ValueError for what is no number."""
        text = self.text
        if text[:2] in ("0f", "0F", "0d", "0D"):
            return int(text[2:], 16)
        return int(text.rstrip("U"), 0) & ((1 << width) - 1)


@dataclass(frozen=True, slots=True)
class SymbolName:
    """The name of a parameter, a label or a variable."""

    name: str


@dataclass(frozen=True, slots=True)
class MemoryAddress:
    """``[base + offset]``, the offset in bytes."""

    base: Register | SymbolName
    offset: int


@dataclass(frozen=True, slots=True)
class OperandList:
    """``{a, b, ...}``, or both targets of ``a|b``.

    Attributes:
        parts: the operands in it; None stands for ``_``.
    """

    parts: tuple[Operand | None, ...]


Operand = Register | Immediate | SymbolName | MemoryAddress | OperandList


@dataclass(frozen=True, slots=True)
class Instruction:
    """One statement.

    Attributes:
        index: its place among the instructions.
        line: its line in the PTX text, counted from 1.
        text: what stands there, blanks made one.
        name: the opcode with all modifiers.
        parts: the same, split at the dots.
        operands: in the order of the text.
        guard: slot of the predicate that it depends on, or None.
        negated: whether it runs where that predicate is false.
    """

    index: int
    line: int
    text: str
    name: str
    parts: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: int | None
    negated: bool

    def has(self, modifier: str) -> bool:
        """Whether the opcode carries this modifier."""
        return modifier in self.parts[1:]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the kernel: its name and its type, such as ``u64`` or ``f32``."""

    name: str
    type: str


class PtxSyntax:
    """A kernel's statements, names resolved. Raises UnsupportedFault for what it cannot read.

    Attributes:
        kernel: name of the entry.
        parameters: in order, with the two that Triton adds.
        threads: threads of one CTA.
        instructions: all statements in order.
        labels: label to the index of the instruction after it.
        widths: bits of each register, by slot (1 for a predicate).
        special: slots of the special registers that the text reads, by name.
    """

    def __init__(self, text: str) -> None:
        found = re.search(r"\.entry\s+(\w+)", text)
        if found is None:
            raise UnsupportedFault("the PTX text has no .entry")
        self.kernel = found[1]
        begin = text.index("{", found.end())
        head = text[found.end() : begin]
        self.parameters = tuple(
            Parameter(m[2], m[1])
            for m in re.finditer(r"\.param\s+\.(\w+)[^,)]*?(\w+)\s*[,)]", head)
        )
        asked = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", head)
        if asked is None:
            raise UnsupportedFault(f"{self.kernel}: the number of threads is not fixed")
        self.threads = int(asked[1])
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.widths: list[int] = []
        self.special: dict[str, int] = {}
        self._scopes: list[dict[str, Register]] = [{}]
        self._line_ends = [found.start() for found in re.finditer("\n", text)]
        self._read(_without_comments(text), begin + 1)

    def _read(self, text: str, at: int) -> None:
        while True:
            found = _BLANK.match(text, at)
            at = found.end() if found else at
            if at >= len(text):
                raise UnsupportedFault(f"{self.kernel}: the PTX text has no end")
            if text[at] == "{":
                self._scopes.append({})
                at += 1
            elif text[at] == "}":
                self._scopes.pop()
                at += 1
                if not self._scopes:
                    return
            elif label := _LABEL.match(text, at):
                self.labels[label[1]] = len(self.instructions)
                at = label.end()
            else:
                end = text.index(";", at)
                self._statement(text[at:end], bisect_left(self._line_ends, at) + 1)
                at = end + 1

    def _statement(self, text: str, line: int) -> None:
        text = " ".join(text.split())
        if text.startswith(".reg"):
            self._declare(text)
        if text.startswith("."):
            return
        guard, rest = None, text
        negated = False
        if found := _GUARD.match(text):
            guard, negated, rest = (
                self._register(found[2]).slot,
                bool(found[1]),
                text[found.end() :],
            )
        name, _, tail = rest.partition(" ")
        operands = tuple(self._operand(part, line) for part in _split(tail))
        instruction = Instruction(
            len(self.instructions),
            line,
            text,
            name,
            tuple(name.split(".")),
            operands,
            guard,
            negated,
        )
        self.instructions.append(instruction)

    def _declare(self, text: str) -> None:
        kind, _, names = text.removeprefix(".reg").strip().partition(" ")
        width = _WIDTHS[kind.strip(".bsuf") if kind != ".pred" else "pred"]
        for name in names.split(","):
            if many := re.fullmatch(r"\s*([%$\w]+)<(\d+)>\s*", name):
                for number in range(int(many[2])):
                    self._new(f"{many[1]}{number}", width)
            else:
                self._new(name.strip(), width)

    def _new(self, name: str, width: int) -> Register:
        register = Register(len(self.widths), width)
        self.widths.append(width)
        self._scopes[-1][name] = register
        return register

    def _register(self, name: str) -> Register:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        if name in SPECIAL_REGISTERS:
            register = Register(len(self.widths), 32)
            self.widths.append(32)
            self._scopes[0][name] = register
            self.special[name] = register.slot
            return register
        raise UnsupportedFault(f"{self.kernel}: register {name} is not declared")

    def _operand(self, text: str, line: int) -> Operand:
        if text[0] == "{":
            inside = _split(text[1:-1])
            return OperandList(tuple(None if p == "_" else self._operand(p, line) for p in inside))
        if found := _ADDRESS.match(text):
            base = self._operand(found[1], line)
            assert isinstance(base, (Register, SymbolName))
            return MemoryAddress(base, int(found[2] or "0", 0))
        if "|" in text:
            both = [p.strip() for p in text.split("|")]
            return OperandList(tuple(None if p == "_" else self._operand(p, line) for p in both))
        if text[0] in "-0123456789":
            return Immediate(text)
        if text[0] == "%" or any(text in scope for scope in self._scopes):
            return self._register(text)
        if re.fullmatch(r"[$\w]+", text):
            return SymbolName(text)
        raise UnsupportedFault(f"{self.kernel}: line {line} has an unknown operand {text!r}")


def _without_comments(text: str) -> str:
    """The text with blanks where comments and notes for debuggers are, all places kept."""
    blank = lambda found: re.sub(r"[^\n]", " ", found[0])  # noqa: E731
    text = re.sub(r"//[^\n]*|/\*.*?\*/", blank, text, flags=re.S)
    return re.sub(r"^[ \t]*\.(?:loc|file)\b[^\n]*", blank, text, flags=re.M)


def _split(text: str) -> list[str]:
    """Operands at the commas outside of braces and brackets."""
    parts, depth, begin = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and depth == 0:
            parts.append(text[begin:place])
            begin = place + 1
    parts.append(text[begin:])
    return [part.strip() for part in parts if part.strip()]
