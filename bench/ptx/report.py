"""The table of a run, and what it covers."""

from __future__ import annotations

from collections.abc import Sequence

from .run import PtxRow

_HEADS = ("kernel", "config", "arch", "result", "error", "s", "wavefronts", "worst", "sectors")


def ptx_table(rows: Sequence[PtxRow]) -> str:
    """One line a variant, as markdown.

    ``error``: the largest one, in terms of what is allowed. ``wavefronts``: of shared memory, in
    terms of those without conflicts of banks; ``worst``: the same of the worst access. ``sectors``:
    the share of the bytes of global memory that were moved and asked for.
    """
    cells = [_HEADS, tuple("---" for _ in _HEADS)]
    for r in rows:
        result = r.problem or "right"
        figures = (f"{r.worst:.2f}", f"{r.seconds:.1f}", f"{r.conflicts:.2f}")
        accesses = (f"{r.worst_conflicts:.1f}", f"{r.sector_use:.2f}")
        cells.append((r.kernel, r.config, r.arch, result, *figures, *accesses))
    widths = [max(len(row[i]) for row in cells) for i in range(len(_HEADS))]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    )


def summary(rows: Sequence[PtxRow]) -> str:
    """How many variants ran, were right, and were the ones that ship."""
    covered, right = sum(r.covered for r in rows), sum(not r.problem for r in rows)
    seconds = sum(r.seconds for r in rows)
    return (
        f"{len(rows)} variants: {covered} launched as they ship, {right} right; "
        f"{seconds:.0f} s of processor time"
    )
