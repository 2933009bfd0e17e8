"""Numbers of a version; needs nothing, so that it can be asked where Triton is missing."""

from __future__ import annotations


def version_numbers(version: str, count: int = 2) -> tuple[int, ...]:
    """Major and minor version, or more numbers; (0,) when the text has none."""
    parts = version.split("+")[0].split(".")[:count]
    return tuple(int(part) for part in parts if part.isdigit()) or (0,)
