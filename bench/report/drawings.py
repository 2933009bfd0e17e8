"""Curves and tables of measurements."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...quantize.report.charts import Point
from ...quantize.report.page import PageTable, visible
from .collect import MeasuredFile

_SERVE = {
    "request_throughput": "requests/s",
    "output_throughput": "tokens/s",
    "request_goodput": "good/s",
    "mean_ttft_ms": "TTFT ms",
    "p95_ttft_ms": "p95",
    "mean_tpot_ms": "TPOT ms",
    "mean_itl_ms": "ITL ms",
    "mean_e2el_ms": "E2EL ms",
}
_MOST_POINTS = 60


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve to be drawn.

    Attributes:
        title: above it.
        caption: what it shows.
        points: of it.
        x_title: of the horizontal axis.
        y_title: of the vertical one.
        joined: whether a line goes through the points.
    """

    title: str
    caption: str
    points: list[Point]
    x_title: str
    y_title: str
    joined: bool = True


def curves(files: Sequence[MeasuredFile]) -> list[Curve]:
    """What can be seen of all files."""
    found: list[Curve] = []
    for file in files:
        name = visible(file.name)
        if file.kind == "sweep":
            found += _sweep(file, name)
        elif file.kind == "serve":
            found += _shares(file, name)
        elif file.kind == "formats":
            found += _formats(file, name)
    return found


def _sweep(file: MeasuredFile, name: str) -> list[Curve]:
    """Throughput against latency, a point for each load."""
    figures = file.figures
    loads = dict.fromkeys(key.rpartition(": ")[0] for key in figures)
    found = []
    for latency, words in (("tpot", "TPOT"), ("ttft", "TTFT")):
        points = []
        for load in loads:
            x = figures.get(f"{load}: output_throughput")
            y = figures.get(f"{load}: mean_{latency}_ms")
            if x is not None and y is not None:
                label = f"{visible(load)}: {x:.1f} tokens/s, {words} {y:.1f} ms"
                points.append(Point(x, y, label, visible(load).removesuffix(" at once")))
        caption = f"Mean {words} by output tokens a second; {visible(file.model)}. A point a load."
        if points:
            found.append(
                Curve(f"{name}: {words}", caption, points, "output tokens/s", f"{words} ms")
            )
    return found


def _shares(file: MeasuredFile, name: str) -> list[Curve]:
    """Which share of the requests was answered by when."""
    found = []
    for latency, words in (("ttft", "TTFT"), ("e2el", "E2EL")):
        values = sorted(file.values(f"mean_{latency}_ms"))
        if len(values) < 2:
            continue
        shares = np.linspace(0, 100, min(len(values), _MOST_POINTS))
        points = [
            Point(float(ms), float(share), f"{share:.0f} % within {ms:.1f} ms")
            for share, ms in zip(shares, np.percentile(values, shares), strict=True)
        ]
        caption = f"Share of {len(values)} requests within a time; {visible(file.model)}."
        found.append(Curve(f"{name}: {words}", caption, points, f"{words} ms", "% of requests"))
    return found


def _formats(file: MeasuredFile, name: str) -> list[Curve]:
    """What fewer bits cost, and what they bring."""
    found = []
    for key, y_title in (("kl", "KL, nats a token"), ("decode", "decode, tokens/s")):
        points = [
            Point(
                float(row["bits"]),
                float(row[key]),
                f"{visible(row['format'])}: {row['bits']:.2f} bits, {row[key]:.4g}",
                visible(row["format"]),
            )
            for row in file.rows
        ]
        caption = "A point for each format, by bits of a weight in the layers."
        found.append(
            Curve(f"{name}: {y_title}", caption, points, "bits a weight", y_title, joined=False)
        )
    return found


def tables(files: Sequence[MeasuredFile], left_out: Sequence[tuple[str, str]]) -> list[PageTable]:
    """All figures, and what is in no figure and why."""
    rows = [(f.name, f.kind, f.model, f.machine) for f in files]
    found = [_table("Files", ("file", "kind", "model", "machine"), rows)]
    if left_out:
        found.append(_table("Left out", ("file", "why"), left_out))
    for file in files:
        if file.kind in ("serve", "sweep"):
            found.append(_serve_table(file))
        elif file.kind in ("startup", "engine"):
            figures = file.figures
            deviations = {k: statistics.pstdev(file.values(k)) for k in figures}
            cells = [(k, f"{v:.4g}", f"{deviations[k]:.2g}") for k, v in figures.items()]
            unit = "seconds" if file.kind == "startup" else "tokens/s"
            found.append(_table(file.name, (file.kind, unit, "standard deviation"), cells))
        elif file.kind == "formats":
            heads = ("format", "bits", "MB", "prefill", "decode", "ppl", "KL", "top-1")
            keys = ("bits", "megabytes", "prefill", "decode", "ppl", "kl", "top1")
            cells = [(str(r["format"]), *(f"{r[k]:.4g}" for k in keys)) for r in file.rows]
            found.append(_table(file.name, heads, cells))
        else:
            heads = ("model", "KL", "p99", "top-1", "ppl", "reference's")
            keys = ("kl_mean", "kl_p99", "top1", "ppl", "ppl_reference")
            cells = [(file.model, *(f"{r[k]:.4g}" for k in keys)) for r in file.rows]
            found.append(_table(file.name, heads, cells))
    return found


def _serve_table(file: MeasuredFile) -> PageTable:
    """A line for each load; one without a name for a single run."""
    figures = file.figures
    loads = dict.fromkeys(key.rpartition(": ")[0] for key in figures)
    several = file.kind == "sweep"
    rows = []
    for load in loads:
        values = [figures.get(f"{load}: {key}" if several else key) for key in _SERVE]
        cells = ("" if value is None else f"{value:.4g}" for value in values)
        rows.append((load if several else "all", *cells))
    return _table(file.name, ("load", *_SERVE.values()), rows)


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> PageTable:
    return PageTable(visible(title), heads, [[visible(cell) for cell in row] for row in rows])
