"""GBNF, the grammars of llama.cpp: source to rules (https://github.com/ggml-org/llama.cpp)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from halfbyte.errors import RequestError

_MAX_DEPTH = 64
_MAX_NODES = 20_000
_MAX_REPEATS = 10_000

Ranges = tuple[tuple[int, int], ...]
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_BLANK_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_REPEATS = re.compile(r"\{\s*(\d{1,9})\s*(?:(,)\s*(\d{1,9})?\s*)?\}")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_PLAIN = {"t": "\t", "r": "\r", "n": "\n", **{c: c for c in '\\"[]-^'}}


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of some; ``ranges`` are code points in order, both ends included."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class RuleRef:
    """What the rule of this ``name`` stands for."""

    name: str


@dataclass(frozen=True, slots=True)
class Row:
    """One of the ``items`` after the other; none is the empty text."""

    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One out of several ``items``."""

    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """An ``item`` from ``least`` to ``most`` times; None is any number."""

    item: Expression
    least: int
    most: int | None


Expression = Chars | RuleRef | Row | Either | Repeat


def parse_gbnf(source: str, param: str) -> dict[str, Expression]:
    """The rules of a source by name, ``root`` among them.

    Args:
        source: the grammar.
        param: the field that an error names.

    Raises:
        RequestError: the source is malformed, lacks a rule or has one twice, nests deeper than
            64 groups, or has over 20000 parts; says the line and column.
    """
    return _Parser(source, param).rules()


def joined(*parts: Ranges) -> Ranges:
    """All characters of some sets."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(pair for ranges in parts for pair in ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(high, out[-1][1]))
        else:
            out.append((low, high))
    return tuple(out)


def inverted(ranges: Ranges) -> Ranges:
    """All characters of Unicode that are not in a set."""
    out, start = [], 0
    # Code points of surrogates are no characters.
    for low, high in (*joined(ranges, ((0xD800, 0xDFFF),)), (0x110000, 0x110000)):
        if start < low:
            out.append((start, low - 1))
        start = high + 1
    return tuple(out)


class _Parser:
    def __init__(self, source: str, param: str) -> None:
        self._text, self._param = source, param
        self._at = self._nodes = self._depth = 0
        self._references: dict[str, int] = {}

    def rules(self) -> dict[str, Expression]:
        found: dict[str, Expression] = {}
        self._skip(_BLANK_LINES)
        while self._at < len(self._text):
            start, name = self._at, self._name("the name of a rule")
            if name in found:
                self._fail(f"the rule {name!r:.40} is there twice", start)
            self._skip(_BLANK)
            if not self._text.startswith("::=", self._at):
                self._fail(f"expected '::=' after {name!r:.40}")
            self._at += 3
            self._skip(_BLANK_LINES)
            found[name] = self._either(nested=False)
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                self._fail("expected the end of the rule")
            self._skip(_BLANK_LINES)
        if "root" not in found:
            self._fail("there is no rule 'root'")
        for name, start in self._references.items():
            if name not in found:
                self._fail(f"there is no rule {name!r:.40}", start)
        return found

    def _either(self, nested: bool) -> Expression:
        items = [self._row(nested)]
        while self._text.startswith("|", self._at):
            self._at += 1
            self._skip(_BLANK_LINES)
            items.append(self._row(nested))
        return items[0] if len(items) == 1 else Either(tuple(items))

    def _row(self, nested: bool) -> Expression:
        blank = _BLANK_LINES if nested else _BLANK
        items: list[Expression] = []
        while self._at < len(self._text):
            item = self._item()
            if item is None:
                break
            self._skip(blank)
            items.append(self._repeated(item))
            self._skip(blank)
        return items[0] if len(items) == 1 else Row(tuple(items))

    def _item(self) -> Expression | None:
        self._count()
        match self._text[self._at]:
            case '"':
                return self._literal()
            case "[":
                return self._set()
            case ".":
                self._at += 1
                return Chars(inverted(()))
            case "(":
                return self._group()
            case c if _NAME.match(c):
                start, name = self._at, self._name("a name")
                self._references.setdefault(name, start)
                return RuleRef(name)
        return None

    def _group(self) -> Expression:
        start = self._at
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self._fail(f"groups are nested over {_MAX_DEPTH} levels deep")
        self._at += 1
        self._skip(_BLANK_LINES)
        inner = self._either(nested=True)
        if not self._text.startswith(")", self._at):
            self._fail("the group has no end", start)
        self._at += 1
        self._depth -= 1
        return inner

    def _repeated(self, item: Expression) -> Expression:
        self._count()
        sign = self._text[self._at : self._at + 1]
        if sign and sign in "*+?":
            self._at += 1
            return Repeat(item, int(sign == "+"), 1 if sign == "?" else None)
        if sign != "{":
            return item
        found = _REPEATS.match(self._text, self._at)
        if found is None:
            self._fail("expected {m}, {m,} or {m,n}")
        least = int(found[1])
        most = (int(found[3]) if found[3] else None) if found[2] else least
        if max(least, most or 0) > _MAX_REPEATS or (most is not None and most < least):
            self._fail(f"expected numbers of repeats in order, up to {_MAX_REPEATS}")
        self._at = found.end()
        return Repeat(item, least, most)

    def _literal(self) -> Expression:
        start = self._at
        self._at += 1
        items: list[Expression] = []
        while not self._text.startswith('"', self._at):
            self._count()
            code = self._character("the text in quotes", start)
            items.append(Chars(((code, code),)))
        self._at += 1
        return items[0] if len(items) == 1 else Row(tuple(items))

    def _set(self) -> Chars:
        start = self._at
        self._at += 1
        negated = self._text.startswith("^", self._at)
        self._at += negated
        ranges: list[tuple[int, int]] = []
        while not self._text.startswith("]", self._at):
            self._count()
            low = high = self._character("the set", start)
            if (
                self._text.startswith("-", self._at)
                and self._text[self._at + 1 : self._at + 2] != "]"
            ):
                self._at += 1
                high = self._character("the set", start)
            if high < low:
                self._fail("a range of characters runs backwards", start)
            ranges.append((low, high))
        self._at += 1
        found = inverted(tuple(ranges)) if negated else inverted(inverted(tuple(ranges)))
        if not found:
            self._fail("the set has no characters", start)
        return Chars(found)

    def _character(self, where: str, start: int) -> int:
        text = self._text[self._at : self._at + 1]
        if not text or text in "\r\n":
            self._fail(f"{where} has no end", start)
        if text != "\\":
            self._at += 1
            return ord(text)
        escape = _ESCAPE.match(self._text, self._at)
        digits = escape and (escape[1] or escape[2] or escape[3])
        code = (
            int(digits, 16) if digits else ord(_PLAIN.get(escape[4] or "", "\0")) if escape else 0
        )
        known = escape is not None and (digits or escape[4] in _PLAIN)
        if escape is None or not known or code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            self._fail("the escape is unknown")
        self._at = escape.end()
        return code

    def _name(self, what: str) -> str:
        found = _NAME.match(self._text, self._at)
        if found is None:
            self._fail(f"expected {what}")
        self._at = found.end()
        return found[0]

    def _skip(self, blank: re.Pattern[str]) -> None:
        found = blank.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _count(self) -> None:
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            self._fail(f"the grammar has over {_MAX_NODES} parts")

    def _fail(self, problem: str, at: int | None = None) -> NoReturn:
        at = self._at if at is None else at
        line = self._text.count("\n", 0, at) + 1
        column = at - (self._text.rfind("\n", 0, at) + 1) + 1
        raise RequestError(
            f"{self._param}: line {line}, column {column}: {problem}",
            param=self._param,
            code="invalid_grammar",
        )
