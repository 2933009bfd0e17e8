"""The committed budget of accesses to memory: ``bench/codegen/triton-3.9/accesses.json``.

It belongs to the codegen gate, which counts instructions: these figures need the kernel to run.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

from ..codegen_budget import FOLDER, minor
from .run import PtxRow

ACCESS_FIELDS = ("conflicts", "worst_conflicts", "sector_use")
"""What the budget records of a :class:`~halfbyte.bench.ptx.run.PtxRow`."""

_SLACK = 0.02
"""Share by which figures may be worse: the data decides where some kernels branch."""

_Key = tuple[str, str, str]


def over_accesses(row: PtxRow) -> list[str]:
    """How a row is worse than its budget; nothing where there is none for that Triton version."""
    budgets = _budgets(_file(row.triton))
    if not budgets:
        return []
    budget = budgets.get((row.kernel, row.config, row.arch))
    if budget is None:
        return ["no budget of accesses; write it with: python -m halfbyte.bench.ptx --update"]
    problems = [
        f"{name} {getattr(row, name)}, budget {budget[name]}"
        for name in ("conflicts", "worst_conflicts")
        if getattr(row, name) > budget[name] * (1 + _SLACK) + 1e-9
    ]
    if row.sector_use < budget["sector_use"] * (1 - _SLACK) - 1e-9:
        problems.append(f"sector_use {row.sector_use}, budget {budget['sector_use']}")
    return problems


def save_accesses(rows: Sequence[PtxRow]) -> list[Path]:
    """Write the budget of rows of one version of Triton; other entries stay. The files written."""
    paths = []
    for version in sorted({row.triton for row in rows}):
        path = _file(version)
        mine = [row for row in rows if row.triton == version]
        entries = dict(_budgets(path))
        for row in mine:
            entries[row.kernel, row.config, row.arch] = {
                name: getattr(row, name) for name in ACCESS_FIELDS
            }
        lines = [
            json.dumps({"kernel": key[0], "config": key[1], "arch": key[2], **value})
            for key, value in sorted(entries.items())
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"rows": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")
        paths.append(path)
    _budgets.cache_clear()
    return paths


def _file(version: str) -> Path:
    return FOLDER / f"triton-{minor(version)}" / "accesses.json"


@functools.cache
def _budgets(path: Path) -> dict[_Key, dict[str, float]]:
    if not path.exists():
        return {}
    entries = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {(e.pop("kernel"), e.pop("config"), e.pop("arch")): e for e in entries}
