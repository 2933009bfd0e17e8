"""Regular expressions from model folders, matched in bounded time.

Python's ``re`` backtracks: a pattern such as ``(a+)+b`` takes forever on a name of 40 letters.
So the parsed pattern is looked at first, the ways in which it can match a name are counted, and
one with too many is refused. What is left runs on ``re`` as it is.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable
from typing import Any, NoReturn

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ..fields import shown

MAX_LENGTH = 1000
MAX_PATTERNS = 1 << 14
MAX_LETTERS = 1 << 19  # of all patterns together
MAX_SECONDS = 2.0
# Module names of the model families here stay below 80 characters.
NAME_LENGTH = 80
# Four ".*" in a row; sre tries some 50 million ways a second.
MAX_WAYS = 2_000_000

# The parser behind ``re``; it moved in Python 3.11.
_parser: Any = getattr(re, "_parser", None) or getattr(re, "sre_parse")  # noqa: B009

_SINGLE = {"LITERAL", "NOT_LITERAL", "ANY", "IN", "AT"}
_ASSERTIONS = {"ASSERT", "ASSERT_NOT"}
_REPEATS = {"MAX_REPEAT", "MIN_REPEAT"}


class Patterns:
    """Some patterns, tried in order.

    Args:
        where: file and key, for messages.
        patterns: the expressions.
        anchored: they match from the start of a name, as ``re.match`` does, not anywhere in it.

    Raises:
        CheckpointError: a pattern is no regular expression, or is too long, or there are too many.
        UnsupportedModelError: a pattern could take too long, or looks back at what it matched.
    """

    def __init__(self, where: str, patterns: Iterable[str], anchored: bool = True) -> None:
        self._where = where
        patterns = list(patterns)
        letters = sum(map(len, patterns))  # reading them takes a second for every 400 000
        if len(patterns) > MAX_PATTERNS or letters > MAX_LETTERS:
            raise CheckpointError(
                f"{where}: {len(patterns)} patterns of {letters} characters; expected at most "
                f"{MAX_PATTERNS} and {MAX_LETTERS}"
            )
        self._compiled = [_compile(where, pattern) for pattern in patterns]
        self._anchored = anchored
        self._seconds = 0.0

    def first(self, name: str) -> int | None:
        """Index of the first pattern that matches the name, or None.

        Raises CheckpointError when the name is longer than NAME_LENGTH, or when all calls
        together have taken longer than MAX_SECONDS.
        """
        if len(name) > NAME_LENGTH:
            raise CheckpointError(
                f"{self._where}: a module name of {len(name)} characters; expected at most "
                f"{NAME_LENGTH}"
            )
        begin = time.monotonic()
        found = None
        for i, pattern in enumerate(self._compiled):
            if pattern.match(name) if self._anchored else pattern.search(name):
                found = i
                break
            if time.monotonic() - begin > MAX_SECONDS:
                break
        self._seconds += time.monotonic() - begin
        if self._seconds > MAX_SECONDS:
            raise CheckpointError(
                f"{self._where}: matching {len(self._compiled)} patterns took over "
                f"{MAX_SECONDS:g} s",
                hint="name the modules in fewer or simpler patterns",
            )
        return found


def _compile(where: str, pattern: str) -> re.Pattern[str]:
    if len(pattern) > MAX_LENGTH:
        raise CheckpointError(
            f"{where}: the pattern {shown(pattern)} has {len(pattern)} characters; expected at "
            f"most {MAX_LENGTH}"
        )
    try:
        tree = _parser.parse(pattern)
        if tree.state.flags & ~re.UNICODE:
            _refuse(where, pattern, "sets flags")
        ways, loops = _ways(tree, where, pattern)
        # Loops one after another share the name's letters among them.
        ways *= math.comb(NAME_LENGTH + loops, loops)
        if ways > MAX_WAYS:
            _refuse(where, pattern, "could take too long to match")
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"{where}: {shown(pattern)} is not a regular expression: {error}"
        ) from error


def _ways(tree: Any, where: str, pattern: str) -> tuple[int, int]:
    """(ways to match apart from loops, number of loops) of a parsed pattern."""
    total, loops = 1, 0
    for kind, value in tree:
        ways, inner = 1, 0
        if str(kind) in _SINGLE:
            continue
        if str(kind) == "BRANCH":
            branches = [_ways(branch, where, pattern) for branch in value[1]]
            ways, inner = sum(w for w, _ in branches), max(n for _, n in branches)
        elif str(kind) == "SUBPATTERN":
            ways, inner = _ways(value[-1], where, pattern)
        elif str(kind) in _ASSERTIONS:
            ways, inner = _ways(value[1], where, pattern)
        elif str(kind) in _REPEATS:
            low, high, body = value
            ways, inner = _ways(body, where, pattern)
            if high <= 1:
                ways += 1
            elif ways == 1 and inner == 0 and body.getwidth()[0] > 0:
                inner = 0 if low == high else 1
            else:
                _refuse(where, pattern, "repeats what may match in several ways")
        else:
            _refuse(where, pattern, f"uses {str(kind).lower()}")
        total, loops = total * ways, loops + inner
    return min(total, MAX_WAYS + 1), loops


def _refuse(where: str, pattern: str, why: str) -> NoReturn:
    raise UnsupportedModelError(
        f"{where}: the pattern {shown(pattern)} {why}",
        hint="write it without nested repetition, back references and flags",
    )
