"""The committed budget of ``bench codegen``: ``bench/codegen/triton-3.9/fused.json`` and so on.

One file a Triton minor version and kernel family (the first part of the kernel's name); one line
a variant and target, so that a change reads well in a diff.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..kernels.codegen.report import VariantRow, over_budget

FOLDER = Path(__file__).parent / "codegen"
UPDATE = "write the budget with: python -m halfbyte.bench.codegen --update --kernel "
_Key = tuple[str, str, str]


def minor(version: str) -> str:
    """``3.9`` of ``3.9.0``."""
    return ".".join(version.split(".")[:2])


def has_budget(row: VariantRow) -> bool:
    """Whether any budget is committed for a row's version of Triton, family and target."""
    return any(arch == row.arch for _, _, arch in _load(_path(_family(row), row.triton)))


def granted_spills(row: VariantRow) -> int:
    """Bytes of spills that the budget knows of; the newest version's budget grants none."""
    return _entry(row).get("spill_bytes", 0)


def check(row: VariantRow) -> list[str]:
    """How a row fails its budget; nothing when it meets it.

    A version of Triton, family and target for which nothing at all is committed has no budget to
    fail.
    """
    if not has_budget(row):
        return []
    budget = _entry(row)
    if not budget:
        return [f"no budget for triton {minor(row.triton)}; {UPDATE}{_family(row)}"]
    return over_budget(row, budget)


def save(rows: Sequence[VariantRow], kernels: Sequence[str], archs: Sequence[str]) -> list[Path]:
    """Write the budget of ``rows``, which are all variants of ``kernels`` on ``archs``.

    Older entries of those kernels and targets go (empty = of all); others stay. The files written.
    """
    paths = []
    for family in sorted({_family(row) for row in rows}):
        mine = [row for row in rows if _family(row) == family]
        path = _path(family, mine[0].triton)
        entries = {
            key: value
            for key, value in _load(path).items()
            if (archs and key[2] not in archs)
            or (kernels and not any(key[0] == k or key[0].startswith(k + ".") for k in kernels))
        }
        entries.update({(r.kernel, r.config, r.arch): r.budget() for r in mine})
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_text(entries), encoding="utf-8")
        paths.append(path)
    _load.cache_clear()
    return paths


def _family(row: VariantRow) -> str:
    return row.kernel.split(".")[0]


def _entry(row: VariantRow) -> dict[str, Any]:
    budgets = _load(_path(_family(row), row.triton))
    return budgets.get((row.kernel, row.config, row.arch), {})


def _path(family: str, version: str) -> Path:
    return FOLDER / f"triton-{minor(version)}" / f"{family}.json"


@functools.cache
def _load(path: Path) -> dict[_Key, dict[str, Any]]:
    if not path.exists():
        return {}
    entries = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {(e.pop("kernel"), e.pop("config"), e.pop("arch")): e for e in entries}


def _text(entries: dict[_Key, dict[str, Any]]) -> str:
    lines: Iterable[str] = (
        json.dumps({"kernel": k[0], "config": k[1], "arch": k[2], **value})
        for k, value in sorted(entries.items(), key=lambda e: e[0])
    )
    return '{"rows": [\n' + ",\n".join(lines) + "\n]}\n"
