"""From timings to rows, and from rows to markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...kernels.device.gpus import Gpu
from .cases import OURS, KernelCase
from .floors import floor, markdown
from .measure import LaunchTime, Timer

TimedCase = dict[str, Any]
"""One timed case as JSON types."""


def measure(case: KernelCase, timer: Timer, card: Gpu) -> TimedCase:
    """Time a case; ``card.copy`` should be measured on this very card."""
    timings = timer.time(case.calls, case.copies)
    rate = card.int8 if case.narrow else card.half
    least = floor(case.size, case.operations, card.copy, rate)
    row: TimedCase = {
        "kind": case.kind,
        "name": case.name,
        "m": case.m,
        "floor_us": least.us,
        "bound": least.bound,
        "copies": case.copies,
        "note": case.note,
        "absent": dict(case.absent),
        "peers": {},
        "ratios": {},
    }
    ours = timings[OURS]
    if isinstance(ours, str):
        row["error"] = ours
    else:
        row |= {"us": ours.us, "low": ours.low, "high": ours.high, "graph": ours.graph}
        gbps = case.read / ours.us / 1e3
        row |= {
            "gbps": gbps,
            "copy_share": gbps * 1e9 / card.copy,
            "tflops": case.operations / ours.us / 1e6,
            "gap": ours.us / least.us,
        }
    for name, timing in timings.items():
        if name == OURS:
            continue
        if not isinstance(timing, LaunchTime):
            row["absent"][name] = timing
            continue
        row["peers"][name] = timing.us
        if isinstance(ours, LaunchTime):
            row["ratios"][name] = timing.us / ours.us
    return row


def rows_table(rows: Iterable[TimedCase]) -> str:
    """Rows as a markdown table; ratios are peer / ours, so above 1 ours is faster."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    heads = ("kind", "case", "M", "us", "floor", "gap", "GB/s", "of copy", "TFLOP/s")
    cells: list[tuple[str, ...]] = [(*heads, *(f"x {name}" for name in names), "how")]
    for row in rows:
        head = (row["kind"], row["name"], str(row["m"]))
        ratios = tuple(
            f"{row['ratios'][name]:.2f}" if name in row["ratios"] else "" for name in names
        )
        least = f"{row['floor_us']:.1f} {row['bound']}"
        if "error" in row:
            cells.append((*head, "failed", least, "", "", "", "", *ratios, row["error"][:60]))
            continue
        figures = (
            f"{row['us']:.1f}",
            least,
            f"{row['gap']:.2f}",
            f"{row['gbps']:.0f}",
            f"{row['copy_share']:.0%}",
            f"{row['tflops']:.1f}",
        )
        how = row["note"] + ("" if row["graph"] else " (no graph)")
        cells.append((*head, *figures, *ratios, how))
    return markdown(cells)


def worst(rows: Iterable[TimedCase], count: int = 10) -> list[TimedCase]:
    """The rows farthest above their floors, failures first."""
    return sorted(rows, key=lambda row: -row.get("gap", float("inf")))[:count]


def worst_text(rows: Iterable[TimedCase], count: int = 10) -> str:
    """Those rows as text."""
    lines = []
    for row in worst(rows, count):
        where = f"{row['kind']} {row['name']} M={row['m']}"
        if "gap" in row:
            far = f"{row['gap']:.2f}x its floor"
            lines.append(f"- {where}: {far} ({row['us']:.1f} us, floor {row['floor_us']:.1f})")
        else:
            lines.append(f"- {where}: failed: {row.get('error', '')}")
    return "\n".join([f"The {len(lines)} worst gaps:", *lines])
