"""Regular expressions from strangers, matched in bounded time.

Python's ``re`` backtracks, so ``(a*)*b`` in a config file could hang the loader. Only the question
whether a name matches is asked here, and it has an answer without backtracking: follow the *set*
of positions that each part of the pattern can reach. ``re``'s own parser reads the pattern, so the
syntax is Python's; groups capture nothing, and back references are refused. A pattern that can
match in few ways, as nearly all do, is left to ``re``, which is a hundred times as fast.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from halfbyte.errors import CheckpointError, UnsupportedModelError

from .fields import shown

MAX_PATTERN = 1000
MAX_PATTERNS = 1 << 14
MAX_LETTERS = 1 << 19  # of all patterns together: reading them takes a second for every 400 000
MAX_TOTAL_STEPS = 2_000_000
MAX_STEPS = 5_000
_MAX_DEPTH = 20
# Backtracking over names of this length tries 50 ways a microsecond.
QUICK_NAME = 80
QUICK_WAYS = 100_000
STEPS_PER_SECOND = 2_000_000
_PARSER = import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
_WORD = re.compile(r"\w")
_CATEGORIES = {
    "CATEGORY_DIGIT": re.compile(r"\d"),
    "CATEGORY_NOT_DIGIT": re.compile(r"\D"),
    "CATEGORY_SPACE": re.compile(r"\s"),
    "CATEGORY_NOT_SPACE": re.compile(r"\S"),
    "CATEGORY_WORD": _WORD,
    "CATEGORY_NOT_WORD": re.compile(r"\W"),
}


class NamePattern:
    """A pattern that answers whether ``re.match`` or ``re.search`` would find it in a name.

    Args:
        text: the pattern.
        where: file and key, for messages.
        anchored: it must match from the start of a name (not to its end), not anywhere in it.

    Attributes:
        text: the pattern.
        spent: steps taken over all names so far; 2 million take about a second.

    Raises:
        CheckpointError: not a regular expression, longer than 1000 characters, or nested deeply.
        UnsupportedModelError: a construct other than characters, sets, groups, alternatives,
            repeats, anchors and look-ahead.
    """

    def __init__(self, text: str, where: str, anchored: bool = True) -> None:
        self.text, self._anywhere = text, not anchored
        self._name = f"{where}: pattern {shown(text)}"
        if len(text) > MAX_PATTERN:
            raise CheckpointError(
                f"{self._name} has {len(text)} characters; expected at most {MAX_PATTERN}"
            )
        try:
            parsed = _PARSER.parse(text)
        except (re.error, OverflowError, RecursionError, ValueError) as error:
            raise CheckpointError(
                f"{self._name} is not a regular expression: {str(error)[:100]}"
            ) from error
        if parsed.state.flags & ~re.UNICODE:
            raise UnsupportedModelError(f"{self._name} sets flags; expected a plain pattern")
        self._parts: list[Any] = list(parsed)
        self.spent = 0
        self._text, self._steps = "", 0
        self._find = None
        if _is_quick(self._parts):
            compiled = re.compile(text)
            self._find = compiled.match if anchored else compiled.search
        self._check(self._parts, 0)

    def _check(self, parts: Iterable[Any], depth: int) -> None:
        """Refuse constructs that :meth:`_step` does not know, and deep nesting."""
        if depth > _MAX_DEPTH:
            raise CheckpointError(f"{self._name} nests groups over {_MAX_DEPTH} levels deep")
        for code, value in parts:
            op = str(code)
            if op == "BRANCH":
                for branch in value[1]:
                    self._check(branch, depth + 1)
            elif op in ("SUBPATTERN", "MAX_REPEAT", "MIN_REPEAT"):
                self._check(value[-1], depth + 1)
            elif op in ("ASSERT", "ASSERT_NOT") and (value[0] == 1 or self._find):
                self._check(value[1], depth + 1)
            elif op not in ("LITERAL", "NOT_LITERAL", "ANY", "IN", "AT"):
                raise UnsupportedModelError(
                    f"{self._name} uses {op.lower()}, which is not supported in module names"
                )
            if op == "SUBPATTERN" and (value[1] or value[2]):
                raise UnsupportedModelError(f"{self._name} sets flags; expected a plain pattern")

    def matches(self, name: str) -> bool:
        """Whether the pattern matches at the start of ``name``, or anywhere in it.

        Raises CheckpointError when that takes more than 5000 steps.
        """
        begin = time.thread_time()
        if self._find is not None and len(name) <= QUICK_NAME:
            found = self._find(name) is not None
        else:
            self._text, self._steps = name, 0
            starts = set(range(len(name) + 1)) if self._anywhere else {0}
            found = bool(self._follow(self._parts, starts))
        self.spent += 1 + int((time.thread_time() - begin) * STEPS_PER_SECOND)
        return found

    def _follow(self, parts: Iterable[Any], at: set[int]) -> set[int]:
        """Positions after ``parts`` one after another, from any of ``at``."""
        for op, value in parts:
            self._steps += 1
            if self._steps > MAX_STEPS:
                raise CheckpointError(
                    f"{self._name} takes over {MAX_STEPS} steps on {shown(self._text)}",
                    hint="no quantization tool writes such patterns: the config is crafted",
                )
            at = self._step(str(op), value, at)
        return at

    def _step(self, op: str, value: Any, at: set[int]) -> set[int]:
        if op in ("ASSERT", "ASSERT_NOT") and value[0] != 1:
            raise UnsupportedModelError(
                f"{self._name} looks behind, which is supported in names of up to {QUICK_NAME} "
                f"characters, not in {shown(self._text)}"
            )
        if op == "BRANCH":
            reached = [self._follow(branch, at) for branch in value[1]]
            return {i for ends in reached for i in ends}
        if op == "SUBPATTERN":
            return self._follow(value[-1], at)
        if op in ("MAX_REPEAT", "MIN_REPEAT"):
            return self._repeat(value[0], value[1], value[2], at)
        if op == "AT":
            return {i for i in at if self._anchored(str(value), i)}
        if op in ("ASSERT", "ASSERT_NOT"):
            ahead = op == "ASSERT"
            return {i for i in at if bool(self._follow(value[1], {i})) == ahead}
        text = self._text
        return {i + 1 for i in at if i < len(text) and _is(op, value, text[i])}

    def _repeat(self, low: int, high: int, parts: Sequence[Any], at: set[int]) -> set[int]:
        for _ in range(low):
            after = self._follow(parts, at)
            if after == at or not after:  # one more round would change nothing
                at = after
                break
            at = after
        reached, fresh = set(at), at
        for _ in range(low, high):
            fresh = self._follow(parts, fresh) - reached
            if not fresh:
                break
            reached |= fresh
        return reached

    def _anchored(self, where: str, i: int) -> bool:
        text, end = self._text, len(self._text)
        if where in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return i == 0
        if where == "AT_END_STRING":
            return i == end
        if where == "AT_END":
            return i == end or (i == end - 1 and text[i] == "\n")
        before = i > 0 and _WORD.match(text[i - 1]) is not None
        after = i < end and _WORD.match(text[i]) is not None
        return (before != after) == (where == "AT_BOUNDARY")


class Patterns:
    """Some patterns, tried in order.

    Args:
        where: file and key, for messages.
        patterns: the expressions.
        anchored: see :class:`NamePattern`.

    Raises:
        CheckpointError: a pattern is no regular expression or too long, or there are too many.
        UnsupportedModelError: a construct that :class:`NamePattern` does not know.
    """

    def __init__(self, where: str, patterns: Sequence[str], anchored: bool = True) -> None:
        letters = sum(map(len, patterns))
        if len(patterns) > MAX_PATTERNS or letters > MAX_LETTERS:
            raise CheckpointError(
                f"{where}: {len(patterns)} patterns of {letters} characters; expected at most "
                f"{MAX_PATTERNS} and {MAX_LETTERS}"
            )
        self._where, self._spent = where, 0
        self._patterns = [NamePattern(text, where, anchored) for text in patterns]

    def first(self, name: str) -> int | None:
        """Index of the first pattern that matches the name, or None.

        Raises CheckpointError when all calls together have taken too many steps.
        """
        for index, pattern in enumerate(self._patterns):
            before = pattern.spent
            found = pattern.matches(name)
            self._spent += pattern.spent - before
            if self._spent > MAX_TOTAL_STEPS:
                raise CheckpointError(
                    f"{self._where}: the patterns take over {MAX_TOTAL_STEPS} steps in all",
                    hint="name the modules in fewer or simpler patterns",
                )
            if found:
                return index
        return None


def _is_quick(parts: Iterable[Any]) -> bool:
    """Whether backtracking over a name of ``QUICK_NAME`` letters is over soon."""
    counted = _ways(parts)
    if counted is None:
        return False
    ways, loops = counted
    # Loops one after another share the name's letters among them.
    return ways * math.comb(QUICK_NAME + loops, loops) <= QUICK_WAYS


def _ways(parts: Iterable[Any]) -> tuple[int, int] | None:
    """(ways to match apart from loops, number of loops); None where loops are nested."""
    total, loops = 1, 0
    for code, value in parts:
        op, found = str(code), (1, 0)
        if op == "BRANCH":
            branches = [_ways(branch) for branch in value[1]]
            known = [branch for branch in branches if branch is not None]
            if len(known) < len(branches):
                return None
            found = sum(ways for ways, _ in known), max(inner for _, inner in known)
        elif op in ("SUBPATTERN", "ASSERT", "ASSERT_NOT"):
            found = _ways(value[-1])
        elif op in ("MAX_REPEAT", "MIN_REPEAT"):
            found = _repeated(*value)
        elif op not in ("LITERAL", "NOT_LITERAL", "ANY", "IN", "AT"):
            return None
        if found is None:
            return None
        total, loops = min(total * found[0], QUICK_WAYS + 1), loops + found[1]
    return total, loops


def _repeated(low: int, high: int, body: Any) -> tuple[int, int] | None:
    """:func:`_ways` of a repeat; None unless it is optional, or its body matches in one way."""
    found = _ways(body)
    if found is None:
        return None
    if high <= 1:
        return found[0] + 1, found[1]
    if found == (1, 0) and body.getwidth()[0] > 0:
        return 1, 0 if low == high else 1
    return None


def _is(op: str, value: Any, char: str) -> bool:
    """Whether one character fits a literal, a set or a part of a set."""
    if op == "ANY":
        return char != "\n"
    if op == "LITERAL":
        return ord(char) == value
    if op == "NOT_LITERAL":
        return ord(char) != value
    if op == "RANGE":
        return value[0] <= ord(char) <= value[1]
    if op == "CATEGORY":
        return _CATEGORIES[str(value)].match(char) is not None
    items = [(str(kind), item) for kind, item in value]
    negated = items[0][0] == "NEGATE"
    return any(_is(kind, item, char) for kind, item in items[negated:]) != negated
