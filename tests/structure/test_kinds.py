"""Kinds of weights are named by their own folders and by the list of them, and nowhere else."""

from __future__ import annotations

import re

from source_tree import ROOT

from halfbyte.kernels.kinds import KINDS

# What loops over the kinds; the rest of the engine has its own tests.
ROOMS = (
    "bench",
    "cli/bench.py",
    "cli/bench_kernels.py",
    "cli/tune.py",
    "engine/advise",
    "kernels/codegen",
    "kernels/random_weights.py",
    "kernels/tables",
)


def test_what_loops_over_kinds_names_none():
    # "dense" is a word for other things, too; that kind has no cases.
    names = "|".join(kind.name for kind in KINDS if kind.cases)
    found = []
    for room in ROOMS:
        path = ROOT / room
        for file in [path] if path.suffix else sorted(path.rglob("*.py")):
            for number, line in enumerate(file.read_text().splitlines(), 1):
                if re.search(rf"\b({names})\b", line, re.IGNORECASE):
                    found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)
