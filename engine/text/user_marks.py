"""Finds out which characters of a rendered prompt stem from the caller.

A template is rendered a second time with some of the caller's characters between two marks. Where
the two renderings are the same but for the marks, the marks tell whose a character is, and the
plain one is the prompt. Marks change what a template sees when it looks into a text (``split``,
``startswith``, ``in``), so three ways are tried:

1. Every character that could be put together with others to a special token is marked: all that
   is neither letter, digit nor space, and the last one of each word. The template's own string
   literals stay as they are, for it may look for them.
2. Only special tokens, and what begins, continues or ends one at the ends of a text, by one mark.
3. If these change the rendering too, the plain one is right only if no text has a whole special
   token and the same special tokens stand in both. Otherwise the marked one is the prompt: a
   template does not recognize a special token that a user wrote.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from halfbyte.errors import RequestError, TemplateError, TokenizerError

from .special_text import Span, UserText, bounded, longest_first_pattern, own_spans, windows

Render = Callable[[Callable[[str], str]], str]

# The first way costs several times the text, so it is left out beyond this many characters.
MAX_MARKED = 1 << 20
# Private use, never assigned, no letter, digit or space in any regular expression.
_MARKS = [chr(code) for code in range(0x10FFFD, 0x10FFFF - 0x1000, -1)]
_JOINTS = re.compile(r"[^\w\s]|_|\w(?!\w)")
_LITERAL = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""", re.DOTALL)
_BLOCK = re.compile(r"\{[{%](.*?)[%}]\}", re.DOTALL)
_ESCAPES = re.compile(r"\\(.)", re.DOTALL)
_BEFORE, _AFTER = 1, 2  # sides of a character
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r"}
# What such a field says is one of a few words that templates compare.
_WORD_FIELDS = ("role", "type")


class Finder(Protocol):
    """The part of a vocabulary that is needed here.

    Attributes:
        special: text -> id of the special tokens.
        normalizes: texts other than their own may become special tokens.
        blank: a character that is part of no special token.
    """

    special: dict[str, int]
    normalizes: bool
    blank: str

    def find(self, text: str) -> list[Span]:
        """The special tokens of a text."""
        ...


class UserMarks:
    """Marks for the prompts of one model.

    Args:
        finder: finds special tokens.
        templates: sources of the chat templates.

    Raises:
        TokenizerError: the special tokens are too many or too long.
    """

    def __init__(self, finder: Finder, templates: Iterable[str]) -> None:
        self._finder = finder
        texts = bounded(finder.special)
        self._reach = max(map(len, texts), default=1)
        self._whole = _starts(texts)
        low = {text.lower() for text in texts}
        self._heads = {s[i:] for s in low for i in range(1, len(s))} | low
        self._tails = {s[:i] for s in low for i in range(1, len(s))} | low
        self._middles = {part for s in texts for part in _middles(s)}
        literals = {text for source in templates for text in _literals(source)}
        self._literals = longest_first_pattern(literals)

    def users(
        self, plain: str, seen: Iterable[str], keys: frozenset[str], render: Render
    ) -> tuple[str, UserText]:
        """The prompt, and which of its characters are the caller's.

        Args:
            plain: the prompt as rendered without marks.
            seen: all texts of the caller that went into it.
            keys: those among them that only name fields; templates look them up.
            render: renders the prompt with a function applied to each text of the caller.

        Raises:
            RequestError: the texts hold every character that could be a mark.
            TemplateError, TokenizerError: the template fails with marks, and nothing else decides.
        """
        texts = list(dict.fromkeys(seen))
        needed = {text: self._needed(text, text in keys) for text in texts}
        if sum(map(len, texts)) <= MAX_MARKED:
            every = {
                t: dict.fromkeys((*needed[t], *self._joints(t)), _BEFORE | _AFTER)
                for t in texts
                if t not in keys
            }
            marked = self._marked(plain, {**needed, **every}, render)
            if isinstance(marked, tuple) and marked[0] == plain:
                return marked
        if not any(needed.values()):
            return plain, UserText()
        marked = self._marked(plain, needed, render)
        if not isinstance(marked, tuple):
            raise marked
        if marked[0] == plain or any(self._has_whole(text) for text in texts):
            return marked
        own, _ = own_spans(*marked, self._finder.blank, self._finder.find)
        same = [s.token_id for s in own] == [s.token_id for s in self._finder.find(plain)]
        return (plain, UserText()) if same else marked

    def _marked(
        self, plain: str, places: Mapping[str, Mapping[int, int]], render: Render
    ) -> tuple[str, UserText] | TemplateError | TokenizerError:
        """The prompt rendered with marks around characters, and where these are in it."""
        held = {char for text in (plain, *places) for char in text if char >= "\U00100000"}
        free = [mark for mark in _MARKS if mark not in held] if held else _MARKS
        if len(free) < 2:
            raise RequestError("the messages hold every private-use character", param="messages")
        before, after = free[:2]
        try:
            text = render(lambda t: _put(t, places.get(t, {}), before, after))
        except (TemplateError, TokenizerError) as error:  # or its process was ended
            return error
        positions: set[int] = set()
        for marks, match in enumerate(re.finditer(f"[{before}{after}]", text)):
            at = match.start() + (1 if match[0] == before else -1)
            # A character that the template took out leaves two marks side by side.
            if 0 <= at < len(text) and text[at] not in (before, after):
                positions.add(at - marks - (match[0] == before))
        clean = text.replace(before, "").replace(after, "")
        return clean, UserText(sorted(positions))

    def _needed(self, text: str, is_key: bool) -> dict[int, int]:
        """Characters that must be marked whatever the template does, and on which sides.

        One mark, on the inner side: a template may ask what a text begins or ends with.
        """
        found = {match.start(): _AFTER for match in self._starts_in(text)}
        if self._finder.normalizes:
            spans = self._finder.find(text)
            found |= {i: _AFTER for span in spans for i in range(span.start, span.stop)}
        core = text.strip()
        start = text.find(core)
        for part, at in ((text, 0), (core, start)):
            if not part or is_key:
                continue
            is_name = len(part) <= self._reach and part.lower() in self._middles
            reach = range(1, min(self._reach, len(part)) + 1)
            if is_name or any(part[:i].lower() in self._heads for i in reach):
                found[at] = found.get(at, 0) | _AFTER
            if is_name or any(part[-i:].lower() in self._tails for i in reach):
                last = at + len(part) - 1
                found.setdefault(last, _BEFORE if len(part) > 1 else _AFTER)
        return found

    def _joints(self, text: str) -> list[int]:
        """Characters that could be put together to something else, but for literals."""
        kept: set[int] = set()
        for match in self._literals.finditer(text) if self._literals else ():
            kept.update(range(*match.span()))
        return [m.start() for m in _JOINTS.finditer(text) if m.start() not in kept]

    def _has_whole(self, text: str) -> bool:
        """Whether a special token stands in the text, in its own or another spelling."""
        if next(self._starts_in(text), None) is not None:
            return True
        return self._finder.normalizes and bool(self._finder.find(text))

    def _starts_in(self, text: str) -> Iterator[re.Match[str]]:
        return iter(()) if self._whole is None else windows(self._whole, text, self._reach)


def field_names(data: Any) -> frozenset[str]:
    """Texts of the caller's data that only name fields, or are words such as a type."""
    keys: set[str] = set()
    values: set[str] = set()
    todo: list[Any] = [data]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            values.add(item)
        elif isinstance(item, Mapping):
            for key, value in item.items():
                keys.add(key)
                if key in _WORD_FIELDS and isinstance(value, str):
                    keys.add(value)
                else:
                    todo.append(value)
        elif isinstance(item, Sequence):
            todo += item
    return frozenset(keys - values)


def _put(text: str, places: Mapping[int, int], before: str, after: str) -> str:
    parts: list[str] = []
    done = 0
    for at, sides in sorted(places.items()):
        parts.append(text[done:at])
        parts.append(before * (sides & _BEFORE) + text[at] + (after if sides & _AFTER else ""))
        done = at + 1
    return "".join((*parts, text[done:])) if parts else text


def _starts(texts: set[str]) -> re.Pattern[str] | None:
    """A pattern of the first characters of all occurrences, overlapping ones and any case."""
    rests: dict[str, list[str]] = {}
    for text in sorted(texts, key=len, reverse=True):
        rests.setdefault(text[0], []).append(re.escape(text[1:]))
    parts = [f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items()]
    return re.compile("|".join(parts), re.IGNORECASE) if parts else None


def _middles(text: str) -> set[str]:
    """What is left of a special token when signs are taken off its ends: a name, in lower case.

    A template that writes ``<|`` and ``|>`` around a name makes the token out of it.
    """
    low = text.lower()
    first = next((i for i, c in enumerate(low) if c.isalnum()), 0)
    last = next((i for i in range(len(low), 0, -1) if low[i - 1].isalnum()), len(low))
    return {low[i:j] for i in range(first + 1) for j in range(last, len(low) + 1)}


def _literals(source: str) -> set[str]:
    """String literals of a template that have two characters or more."""
    found = {a or b for code in _BLOCK.findall(source) for a, b in _LITERAL.findall(code)}
    plain = {_ESCAPES.sub(lambda m: _CONTROLS.get(m[1], m[1]), text) for text in found}
    return {text for text in plain if len(text) > 1 and not text.isspace()}
