"""Running the parts within a time limit, and what is written about them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..kernels.floors import markdown, usual_kinds
from ..kernels.report import rows_table, worst_text
from .correctness import FAMILIES
from .part import read

TIMED = usual_kinds()


@dataclass(frozen=True, slots=True)
class Stage:
    """One turn of the suite.

    Attributes:
        parts: run at the same time.
        seconds: the most that they may take together.
    """

    parts: tuple[str, ...]
    seconds: float


# Checks share the card, for nothing is timed while they run, and fill the kernel cache meanwhile.
STAGES = (
    Stage(("probe",), 45),
    Stage(tuple(f"check-{name}" for name in FAMILIES), 110),
    # The first kind is the one that most models take.
    *(Stage((kind,), 60 if index else 120) for index, kind in enumerate(TIMED)),
    Stage(("attention",), 60),
    Stage(("step",), 70),
    Stage(("large",), 70),
    Stage(("cold",), 60),
    Stage(("sanitizer",), 90),
    Stage(("tune",), 200),
)
SUITE_PARTS = tuple(name for stage in STAGES for name in stage.parts)


def run_suite(
    out: Path,
    script: Path,
    *,
    limit: float = 525.0,
    smoke: bool = False,
    only: Iterable[str] = (),
) -> dict[str, Any]:
    """Run the stages in order, each part in a separate process, and write the results.

    Args:
        out: folder of ``results.json``, ``results.md`` and ``parts/``.
        script: the suite's own file, which the processes run.
        limit: seconds for everything; parts that find none left are not started.
        smoke: tiny shapes on the CPU.
        only: names of parts; empty = all.

    Returns:
        What ``results.json`` holds.
    """  # fmt: skip
    folder = out / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    wanted, end = set(only), time.monotonic() + limit
    for path in folder.glob("*.json"):
        path.unlink()
    notes: dict[str, str] = {}
    for stage in STAGES:
        parts = [name for name in stage.parts if not wanted or name in wanted]
        seconds = min(stage.seconds, end - time.monotonic())
        if not parts:
            continue
        if seconds < 12 and not smoke:
            notes |= dict.fromkeys(parts, "not started: out of time")
        else:
            print(f"{', '.join(parts)}: up to {seconds:.0f} s", file=sys.stderr, flush=True)
            notes |= _run(parts, folder, script, seconds, smoke)
        results = collect(folder, notes)
        _write(out, results)
    return collect(folder, notes)


def _run(
    parts: list[str], folder: Path, script: Path, seconds: float, smoke: bool
) -> dict[str, str]:
    """Run parts side by side until ``seconds`` are over; how each of them failed, if it did."""
    environment = dict(os.environ)
    if smoke:
        environment["TRITON_INTERPRET"] = "1"
    else:
        environment.pop("TRITON_INTERPRET", None)
    end = time.monotonic() + seconds
    running: dict[str, subprocess.Popen[bytes]] = {}
    for name in parts:
        words = [sys.executable, str(script), "--part", name, "--out", str(folder)]
        # The process stops by itself a little before it is stopped.
        words += ["--seconds", str(max(1.0, seconds - 8))]
        with (folder / f"{name}.log").open("wb") as log:
            running[name] = subprocess.Popen(
                words + (["--smoke"] if smoke else []),
                env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
    notes = {}
    for name, process in running.items():
        try:
            code = process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            _kill(process)
            notes[name] = f"stopped after {seconds:.0f} s"
            continue
        if code:
            log = (folder / f"{name}.log").read_text("utf-8", "replace").strip()
            notes[name] = f"exit code {code}: {log[-300:]}"
    return notes


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a part and what it started: its session is its own."""
    try:
        os.killpg(process.pid, 9)
    except (AttributeError, ProcessLookupError):
        process.kill()
    process.wait()


def collect(folder: Path, notes: dict[str, str]) -> dict[str, Any]:
    """All that the parts have written, with notes about those that failed."""
    parts = {name: found for name in SUITE_PARTS if (found := read(folder, name))}
    for name, note in notes.items():
        parts.setdefault(name, {"part": name, "rows": [], "facts": {}, "seconds": 0})
        parts[name] |= {"state": "failed", "note": note}
    return {"parts": parts}


def _write(out: Path, results: dict[str, Any]) -> None:
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "results.md").write_text(text(results) + "\n", encoding="utf-8")


def timed_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows that have a floor: layers, attention and steps."""
    names = (*TIMED, "attention", "step", "large")
    every = [row for name in names for row in results["parts"].get(name, {}).get("rows", ())]
    return [row for row in every if "floor_us" in row]


def text(results: dict[str, Any]) -> str:
    """Everything as markdown, the ten worst gaps last."""
    parts = results["parts"]
    lines = ["# Kernels on this GPU", ""]
    facts = parts.get("probe", {}).get("facts", {})
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    cells: list[tuple[str, ...]] = [("part", "state", "seconds", "results", "note")]
    for name, part in parts.items():
        size = str(len(part["rows"]))
        note = " ".join(str(part.get("note", part["facts"].get("skipped", ""))).split())
        cells.append((name, part["state"], f"{part['seconds']:.0f}", size, note[-120:]))
    lines += ["", "## Parts", "", markdown(cells)]
    checks = [row for name in parts if name.startswith("check-") for row in parts[name]["rows"]]
    bad = [row for row in checks if not row["ok"]]
    lines += ["", "## Checks", "", f"{len(checks) - len(bad)} of {len(checks)} passed."]
    for row in bad:
        far = row.get("failure") or f"error {row['error']:.3g}, limit {row['limit']:.3g}"
        lines.append(f"- {row['check']}: {far}")
    for name in (*TIMED, "attention", "large"):
        rows = [row for row in parts.get(name, {}).get("rows", ()) if "floor_us" in row]
        if rows:
            lines += ["", f"## {name}", "", rows_table(rows)]
    steps = parts.get("step", {}).get("rows", ())
    if steps:
        head = ("batch", "ms", "floor ms", "gap", "tok/s", "GB/s", "eager ms")
        cells = [head]
        for row in steps:
            if "us" not in row:
                cells.append((str(row["m"]), "failed", *[""] * 4, row.get("failure", "")[:80]))
                continue
            figures = (row["us"] / 1e3, row["floor_us"] / 1e3, row["gap"], row["tokens_per_s"])
            rest = (row["gbps"], row.get("eager_us", 0.0) / 1e3)
            cells.append((str(row["m"]), *(f"{value:.2f}" for value in (*figures, *rest))))
        lines += ["", "## 8B decode step", "", markdown(cells)]
    for name in ("cold", "sanitizer", "tune"):
        rows = parts.get(name, {}).get("rows", ())
        if rows:
            lines += ["", f"## {name}", "", *(f"- {json.dumps(row)[:400]}" for row in rows)]
    failed = [
        (name, row) for name, part in parts.items() for row in part["rows"]
        if "failure" in row and "check" not in row and "start" not in row
    ]  # fmt: skip
    if failed:
        lines += ["", "## Not measured", ""]
        lines += [
            f"- {name} {row.get('name', '')} M={row.get('m', '')}: {row['failure']}"
            for name, row in failed
        ]
    return "\n".join([*lines, "", "## Worst gaps", "", worst_text(timed_rows(results))])
