"""Regular expressions from strangers, matched in bounded time.

Python's ``re`` backtracks, so ``(a*)*b`` in a config file could hang the loader. Only the question
whether a name matches is asked here, and it has an answer without backtracking: follow the *set*
of positions that each part of the pattern can reach. ``re``'s own parser reads the pattern, so the
syntax is Python's; groups capture nothing, and back references are refused.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from halfbyte.errors import CheckpointError, UnsupportedModelError

from .fields import shown

MAX_PATTERN = 512
MAX_STEPS = 5_000
MAX_DEPTH = 20
# Names are short: so few repeats, none inside another, cannot hold ``re`` itself up.
MAX_PLAIN_REPEATS, MAX_PLAIN_BRANCHES = 2, 3
STEPS_A_SECOND = 2_000_000
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
    """A pattern that answers whether ``re.match`` (start anchored, not full) would match.

    Args:
        text: the pattern.
        where: file and key, for messages.

    Attributes:
        text: the pattern.
        spent: time taken over all names so far, in steps of half a microsecond.

    Raises:
        CheckpointError: not a regular expression, longer than 512 characters, or nested deeply.
        UnsupportedModelError: a construct other than characters, sets, groups, alternatives,
            repeats, anchors and look-ahead.
    """

    def __init__(self, text: str, where: str) -> None:
        self.text = text
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
        self._check(self._parts, 0)
        self._plain = re.compile(text) if _is_plain(self._parts) else None

    def _check(self, parts: Iterable[Any], depth: int) -> None:
        """Refuse constructs that :meth:`_step` does not know, and deep nesting."""
        if depth > MAX_DEPTH:
            raise CheckpointError(f"{self._name} nests groups over {MAX_DEPTH} levels deep")
        for code, value in parts:
            op = str(code)
            if op == "BRANCH":
                for branch in value[1]:
                    self._check(branch, depth + 1)
            elif op in ("SUBPATTERN", "MAX_REPEAT", "MIN_REPEAT"):
                self._check(value[-1], depth + 1)
            elif op in ("ASSERT", "ASSERT_NOT") and value[0] == 1:
                self._check(value[1], depth + 1)
            elif op not in ("LITERAL", "NOT_LITERAL", "ANY", "IN", "AT"):
                raise UnsupportedModelError(
                    f"{self._name} uses {op.lower()}, which is not supported in module names"
                )
            if op == "SUBPATTERN" and (value[1] or value[2]):
                raise UnsupportedModelError(f"{self._name} sets flags; expected a plain pattern")

    def matches(self, name: str) -> bool:
        """Whether the pattern matches at the start of ``name``.

        Raises CheckpointError when that takes more than 5000 steps.
        """
        begin = time.perf_counter()
        if self._plain is not None:
            found = self._plain.match(name) is not None
        else:
            self._text, self._steps = name, 0
            found = bool(self._follow(self._parts, {0}))
        self.spent += 1 + int(STEPS_A_SECOND * (time.perf_counter() - begin))
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


def _is_plain(parts: Iterable[Any]) -> bool:
    """Whether backtracking has few ways: few repeats and branches, none inside a repeat."""
    repeats, branches = _choices(parts)
    return repeats <= MAX_PLAIN_REPEATS and branches <= MAX_PLAIN_BRANCHES


def _choices(parts: Iterable[Any]) -> tuple[int, int]:
    """Repeats and further branches in a pattern; many for any inside a repeat."""
    repeats = branches = 0
    for code, value in parts:
        inner: list[Any] = []
        if str(code) == "BRANCH":
            branches += len(value[1]) - 1
            inner = value[1]
        elif str(code) in ("SUBPATTERN", "ASSERT", "ASSERT_NOT"):
            inner = [value[-1]]
        elif str(code) in ("MAX_REPEAT", "MIN_REPEAT"):
            repeats += 1 + (_choices(value[-1]) != (0, 0)) * MAX_PATTERN
        for part in inner:
            more = _choices(part)
            repeats, branches = repeats + more[0], branches + more[1]
    return repeats, branches


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
