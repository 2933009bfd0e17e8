"""Bits of a weight as a table, for ``plan`` and ``explain``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .console import clean, columns, human_count, one_line


def density_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each format, and one for all: see ``density_facts`` of the engine's advice."""
    cells = [
        (
            one_line(row["format"]),
            human_count(row["weights"]),
            f"{row['stored_bits']:.2f}",
            f"{row['packed_bits']:.2f}",
        )
        for row in rows
    ]
    return clean(columns(("bits of a weight", "weights", "in the file", "packed"), cells))
