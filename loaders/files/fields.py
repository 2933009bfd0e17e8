"""Typed, bounded access to a mapping that came out of a file: nothing is used unchecked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, overload

from halfbyte.errors import CheckpointError

_REMEDY = "the file is damaged or was edited: download it again"


class Fields:
    """Checked lookups in GGUF metadata or a parsed JSON object.

    Every method takes the key and a default for an absent (or null) value; without a default the
    key is required. All raise CheckpointError naming the file, the key, the value found and what
    was expected.

    Args:
        where: file name for messages.
        values: key -> plain value.
        prefix: put before each key in messages, where ``values`` is a part of something larger.
    """

    def __init__(self, where: str, values: Mapping[str, Any], prefix: str = "") -> None:
        self.where = where
        self.values = values
        self.prefix = prefix

    def present(self, key: str) -> bool:
        """Whether ``key`` has a value other than null."""
        return self.values.get(key) is not None

    def name(self, key: str) -> str:
        """File and full key, for messages."""
        return f"{self.where}: {self.prefix}{key}"

    def error(self, key: str, found: object, expected: str) -> CheckpointError:
        """The error for a value that is not what it must be."""
        return CheckpointError(
            f"{self.name(key)} is {shown(found)}; expected {expected}", hint=_REMEDY
        )

    def _lookup(self, key: str, default: object, expected: str) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            raise CheckpointError(f"{self.name(key)} is missing; expected {expected}", hint=_REMEDY)
        return default

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number in [low, high]; floats and booleans are refused."""
        expected = f"a whole number from {low} to {high}"
        value = self._lookup(key, default, expected)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, value, expected)
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number in [low, high]; booleans are refused."""
        expected = f"a finite number from {low:g} to {high:g}"
        value = self._lookup(key, default, expected)
        if not (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and low <= value <= high
            and math.isfinite(value)
        ):
            raise self.error(key, value, expected)
        return float(value)

    @overload
    def flag(self, key: str, default: bool) -> bool: ...
    @overload
    def flag(self, key: str, default: None) -> bool | None: ...
    def flag(self, key: str, default: bool | None) -> bool | None:
        """True or false, or the default when absent."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._lookup(key, default, "a string")
        if not isinstance(value, str):
            raise self.error(key, value, "a string")
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        """A JSON object; absent or null is an empty one."""
        value = self.values.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.error(key, value, "an object")
        return value


def shown(value: object) -> str:
    """A value from a file, cut and escaped so that it is safe inside a message."""
    text = repr(value) if not isinstance(value, str) or len(value) < 200 else repr(value[:200])
    return text if len(text) <= 80 else text[:77] + "..."


def display_name(text: str) -> str:
    """A model name fit for terminals: printable characters only, at most 120 of them."""
    return "".join(c for c in text[:120] if c.isprintable()).strip()
