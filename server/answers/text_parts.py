"""The text of an answer between markers."""

from __future__ import annotations

from collections.abc import Sequence


class TrimmedText:
    """A text whose blanks at the end are held back."""

    def __init__(self) -> None:
        self._blanks = ""
        self._any = False

    def take(self, text: str, *, keep_lead: bool) -> str:
        """What may be shown of what is held and ``text``."""
        body = text.rstrip()
        if not body:
            self._blanks += text
            return ""
        lead = self._blanks if self._any or keep_lead else ""
        body = body if self._any or keep_lead else body.lstrip()
        self._blanks = text[len(text.rstrip()) :]
        self._any = True
        return lead + body

    def part(self) -> None:
        """What follows is a part of its own: an empty line stands before it."""
        self._blanks = "\n\n" if self._any else ""

    def rest(self) -> str:
        """The blanks that are held."""
        out, self._blanks = self._blanks, ""
        return out


def split_at(text: str, markers: Sequence[str], *, last: bool) -> tuple[str, str, str]:
    """A text before the first of some markers, that marker or "", and what comes after.

    Without one, what may become one is in the last part, unless the text is the ``last``.
    """
    found = [(at, marker) for marker in markers if (at := text.find(marker)) >= 0]
    if found:
        at, marker = min(found)
        return text[:at], marker, text[at + len(marker) :]
    held = 0 if last else max(_partial_length(text, marker) for marker in markers)
    return text[: len(text) - held], "", text[len(text) - held :]


def _partial_length(text: str, marker: str) -> int:
    """How many characters at the end of a text a marker may begin with."""
    sizes = range(min(len(marker) - 1, len(text)), 0, -1)
    return next((n for n in sizes if marker.startswith(text[len(text) - n :])), 0)
