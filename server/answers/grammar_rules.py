"""What grammars of answers are made of."""

from __future__ import annotations

import json
from collections.abc import Callable


class GrammarRules:
    """Rules of a Lark grammar, under way.

    Args:
        special: the id of the special token that is written so, which is no text; or None.
    """

    def __init__(self, special: Callable[[str], int | None]) -> None:
        self._special = special
        self._rules: list[str] = [r"TEXT: /(.|\n)*/"]
        self._lazy: dict[str, str] = {}

    def add(self, name: str, body: str) -> None:
        """Add a rule."""
        self._rules.append(f"{name}: {body}")

    def fresh(self, kind: str, body: str) -> str:
        """Add a rule; returns its name, which begins with ``kind``."""
        name = f"{kind}_{len(self._rules)}"
        self.add(name, body)
        return name

    def text(self, text: str) -> str:
        """What stands for a text or a special token; nothing for the empty text."""
        token = self._special(text) if text else None
        if token is not None:
            return f"<[{token}]>"
        return quoted(text)

    def until(self, marker: str) -> str:
        """Any text up to a marker and the marker; written in letters it counts as well."""
        if marker not in self._lazy:
            name = f"until_{len(self._lazy)}"
            self._rules.append(f"{name}_text[lazy]: TEXT {quoted(marker)}")
            token = self._special(marker)
            either = "" if token is None else f" | TEXT <[{token}]>"
            self.add(name, f"{name}_text{either}")
            self._lazy[marker] = name
        return self._lazy[marker]

    def source(self) -> str:
        """The grammar."""
        return "\n".join(self._rules) + "\n"


def quoted(text: str) -> str:
    """A text in a grammar; nothing for the empty text."""
    return json.dumps(text) if text else ""
