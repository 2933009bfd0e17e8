"""GBNF as Lark, for the same texts.

A GBNF grammar knows characters only. llguidance cuts a text into lexemes first, takes the longest
each time, and needs lexemes of more than a character to be fast. So what is regular in a grammar
becomes lexemes, unless a longer match could take what belongs to the next one: that is found with
the automaton of all lexemes (positions after Glushkov 1961, subsets after Rabin and Scott 1959),
and what may clash is taken apart into smaller ones, characters in the end. A grammar that is
regular as a whole is one lexeme.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from halfbyte.errors import RequestError

from .gbnf import Chars, Either, Expression, Ranges, Repeat, Row, RuleRef, parse_gbnf

# Work on one grammar, in steps of a few microseconds, and levels of rules within rules.
_MAX_STEPS = 200_000
_MAX_LEVELS = 100


def gbnf_grammar(source: str, param: str) -> dict[str, Any]:
    """The grammar of a GBNF source in llguidance's format.

    Args:
        source: the rules.
        param: the field that an error names.

    Raises:
        RequestError: the source is malformed, or too large to be converted.
    """
    rules = parse_gbnf(source, param)
    try:
        return {"lark_grammar": _Converter(rules).lark()}
    except _TooLargeError as error:
        raise RequestError(
            f"{param}: the GBNF grammar is too large to be converted",
            param=param,
            code="invalid_grammar",
        ) from error


class _TooLargeError(Exception):
    pass


@dataclass(slots=True)
class _Automaton:
    """Positions of characters in all lexemes; sets of positions and of letters are bits.

    Attributes:
        letters: of each position, what may stand there.
        follow: of each position, the positions that may come next.
        owner: of each position, its lexeme.
        first: the positions that a lexeme may begin with.
        last: of each lexeme, the positions that it may end with.
    """

    letters: list[int] = field(default_factory=list)
    follow: list[int] = field(default_factory=list)
    owner: list[Expression] = field(default_factory=list)
    first: int = 0
    last: dict[Expression, int] = field(default_factory=dict)


class _Converter:
    """One grammar. Characters that none of its sets tell apart are one letter."""

    def __init__(self, rules: dict[str, Expression]) -> None:
        self._rules = rules
        self._steps = 0
        self._number = {name: index for index, name in enumerate(rules)}
        found = [node for rule in rules.values() for node in _nodes(rule)]
        sets = [node.ranges for node in found if isinstance(node, Chars)]
        self._borders = sorted({end for pairs in sets for a, b in pairs for end in (a, b + 1)})
        # Rules that are rules in Lark, too; the others are lexemes or parts of such.
        self._split = set(rules) - self._regular_rules()
        self._broken: set[Expression] = set()
        self._named: dict[Expression, str] = {}
        self._lexemes: set[str] = set()
        self._waiting: list[str] = []

    def lark(self) -> str:
        """The grammar in Lark's form."""
        if "root" not in self._split:
            top = [f"start: {self._lexeme('root')}"]
        else:
            while clashes := self._clashes():
                self._split |= {unit.name for unit in clashes if isinstance(unit, RuleRef)}
                self._broken |= {unit for unit in clashes if not isinstance(unit, RuleRef)}
            top = [
                f"{self._rule(name)}: {self._written(self._rules[name], in_lexeme=False)}"
                for name in self._rules
                if name in self._split
            ]
        named = [
            f"{name}: {self._written(unit, in_lexeme=True)}" for unit, name in self._named.items()
        ]
        lexemes: list[str] = []
        while self._waiting:
            name = self._waiting.pop()
            written = self._written(self._rules[name], in_lexeme=True)
            lexemes.append(f"{self._lexeme(name)}: {written}")
        return "\n".join([*top, *lexemes, *named, ""])

    def _rule(self, name: str) -> str:
        return "start" if name == "root" else f"r{self._number[name]}"

    def _lexeme(self, name: str) -> str:
        """What a rule is called as a lexeme or a part of one, be it a rule as well."""
        if name not in self._lexemes:
            self._lexemes.add(name)
            self._waiting.append(name)
        return f"T{self._number[name]}"

    def _written(self, node: Expression, *, in_lexeme: bool) -> str:
        literal = _literal(node)
        if literal is not None and (in_lexeme or node not in self._broken):
            return json.dumps(literal)
        if not in_lexeme and self._is_unit(node) and not isinstance(node, (Chars, RuleRef)):
            return self._named.setdefault(node, f"X{len(self._named)}")
        match node:
            case Chars(ranges):
                return _set(ranges)
            case RuleRef(name):
                return (
                    self._lexeme(name) if in_lexeme or name not in self._split else self._rule(name)
                )
            case Repeat(item, least, most):
                written = self._written(item, in_lexeme=in_lexeme)
                return f"({written}){_repeats(least, most)}" if most != 0 else '""'
            case Either(items):
                return f"({' | '.join(self._written(i, in_lexeme=in_lexeme) for i in items)})"
            case Row(items):
                return f"({' '.join(self._written(i, in_lexeme=in_lexeme) for i in items)})"

    def _regular_rules(self) -> set[str]:
        """Rules that do not lead to themselves, nor to one that does."""
        uses = {
            name: {node.name for node in _nodes(rule) if isinstance(node, RuleRef)}
            for name, rule in self._rules.items()
        }
        users: dict[str, list[str]] = {name: [] for name in uses}
        for name, used in uses.items():
            for other in used:
                users[other].append(name)
        left = {name: len(used) for name, used in uses.items()}
        ready = [name for name, count in left.items() if not count]
        for name in ready:
            for user in users[name]:
                left[user] -= 1
                if not left[user]:
                    ready.append(user)
        return set(ready)

    def _is_unit(self, node: Expression) -> bool:
        """Whether an expression of a rule is a lexeme."""
        self._count()
        if node in self._broken:
            return False
        return all(n.name not in self._split for n in _nodes(node) if isinstance(n, RuleRef))

    def _clashes(self) -> set[Expression]:
        """Lexemes of which one may be taken for a longer one, or for more than there is of it."""
        after = self._after()
        machine = _Automaton()
        for unit in after:
            _, first, last = self._built(unit, unit, machine, 0)
            machine.first |= first
            machine.last[unit] = last
        clashes: set[Expression] = set()
        waiting = self._next(machine.first, machine)
        seen = set(waiting)
        while waiting:
            state = waiting.pop()
            reach = 0
            for position in _bits(state):
                self._count()
                reach |= machine.follow[position]
            for unit in {machine.owner[position] for position in _bits(state)}:
                self._count()
                if state & machine.last[unit]:
                    longer = [p for p in _bits(reach) if machine.letters[p] & after[unit]]
                    if longer:
                        clashes |= {unit, *(machine.owner[p] for p in longer)}
            new = self._next(reach, machine) - seen
            seen |= new
            waiting |= new
        return {unit for unit in clashes if not isinstance(unit, Chars)}

    def _next(self, reach: int, machine: _Automaton) -> set[int]:
        """The states that letters lead to, out of the positions that may come next."""
        by_letter: dict[int, int] = {}
        for position in _bits(reach):
            for letter in _bits(machine.letters[position]):
                self._count()
                by_letter[letter] = by_letter.get(letter, 0) | 1 << position
        return set(by_letter.values())

    def _built(
        self, node: Expression, unit: Expression, machine: _Automaton, level: int
    ) -> tuple[bool, int, int]:
        """Whether it may be empty, and the positions that it may begin and end with."""
        self._count()
        if level > _MAX_LEVELS:
            raise _TooLargeError
        match node:
            case Chars(ranges):
                bit = 1 << len(machine.letters)
                machine.letters.append(self._letters(ranges))
                machine.follow.append(0)
                machine.owner.append(unit)
                return False, bit, bit
            case RuleRef(name):
                return self._built(self._rules[name], unit, machine, level + 1)
            case Repeat(item, least, most):
                if most == 0:
                    return True, 0, 0
                empty, first, last = self._built(item, unit, machine, level)
                if most is None or most > 1:
                    self._join(last, first, machine)
                return empty or not least, first, last
            case Either(items):
                parts = [self._built(item, unit, machine, level) for item in items]
                first = last = 0
                for _, a, b in parts:
                    first, last = first | a, last | b
                return any(empty for empty, _, _ in parts), first, last
            case Row(items):
                empty, first, last = True, 0, 0
                for item in items:
                    none, a, b = self._built(item, unit, machine, level)
                    self._join(last, a, machine)
                    first = first | a if empty else first
                    last = last | b if none else b
                    empty = empty and none
                return empty, first, last

    def _join(self, last: int, first: int, machine: _Automaton) -> None:
        for position in _bits(last):
            self._count()
            machine.follow[position] |= first

    def _after(self) -> dict[Expression, int]:
        """The lexemes, and the letters that may follow each."""
        firsts = self._firsts()
        units: dict[Expression, int] = {}
        rules = dict.fromkeys(self._split, 0)

        def first(node: Expression) -> tuple[bool, int]:
            return self._first(node, firsts)

        def walk(node: Expression, after: int) -> None:
            self._count()
            if self._is_unit(node):
                units[node] = units.get(node, 0) | after
                return
            match node:
                case RuleRef(name):
                    rules[name] |= after
                case Repeat(item, _, most):
                    walk(item, after | (first(item)[1] if most is None or most > 1 else 0))
                case Either(items):
                    for item in items:
                        walk(item, after)
                case Row(items):
                    for item in reversed(items):
                        walk(item, after)
                        empty, letters = first(item)
                        after = letters | (after if empty else 0)

        before: dict[str, int] = {}
        while before != rules:
            before = dict(rules)
            for name in self._rules:
                if name in rules:
                    walk(self._rules[name], rules[name])
        return units

    def _firsts(self) -> dict[str, tuple[bool, int]]:
        """Of each rule, whether it may be empty, and the letters that it may begin with."""
        firsts: dict[str, tuple[bool, int]] = {name: (False, 0) for name in self._rules}
        before: dict[str, tuple[bool, int]] = {}
        while before != firsts:
            before = dict(firsts)
            for name in reversed(self._rules):
                firsts[name] = self._first(self._rules[name], firsts)
        return firsts

    def _first(self, node: Expression, firsts: dict[str, tuple[bool, int]]) -> tuple[bool, int]:
        self._count()
        match node:
            case Chars(ranges):
                return False, self._letters(ranges)
            case RuleRef(name):
                return firsts[name]
            case Repeat(item, least, most):
                empty, letters = self._first(item, firsts)
                return empty or not least, letters if most != 0 else 0
            case Either(items):
                parts = [self._first(item, firsts) for item in items]
                letters = 0
                for _, more in parts:
                    letters |= more
                return any(empty for empty, _ in parts), letters
            case Row(items):
                letters = 0
                for item in items:
                    empty, more = self._first(item, firsts)
                    letters |= more
                    if not empty:
                        return False, letters
                return True, letters

    def _letters(self, ranges: Ranges) -> int:
        letters = 0
        for low, high in ranges:
            start = bisect_left(self._borders, low)
            letters |= (1 << bisect_left(self._borders, high + 1)) - (1 << start)
        return letters

    def _count(self) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise _TooLargeError


def _nodes(node: Expression) -> Iterator[Expression]:
    """An expression and all that it consists of."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, (Row, Either)):
            stack.extend(node.items)
        elif isinstance(node, Repeat):
            stack.append(node.item)


def _bits(number: int) -> Iterator[int]:
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low


def _literal(node: Expression) -> str | None:
    """The text of an expression that is one text."""
    items = node.items if isinstance(node, Row) else (node,)
    single = [i for i in items if isinstance(i, Chars) and len(i.ranges) == 1]
    texts = [i.ranges[0] for i in single if i.ranges[0][0] == i.ranges[0][1]]
    return "".join(chr(low) for low, _ in texts) if len(texts) == len(items) else None


def _set(ranges: Ranges) -> str:
    pairs = "".join(f"\\x{{{low:x}}}-\\x{{{high:x}}}" for low, high in ranges)
    return f"/[{pairs}]/"


def _repeats(least: int, most: int | None) -> str:
    signs = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    return signs.get((least, most)) or f"{{{least},{'' if most is None else most}}}"
