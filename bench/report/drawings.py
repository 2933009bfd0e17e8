"""Curves and tables of measurements; what can be compared stands in one of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...quantize.report.charts import MOST_LINES, Line, Point
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
_FORMATS = {
    "bits": "bits",
    "megabytes": "MB",
    "prefill": "prefill",
    "decode": "decode",
    "ppl": "ppl",
    "kl": "KL",
    "top1": "top-1",
}
_ACCURACY = {
    "kl_mean": "KL",
    "kl_p99": "p99",
    "top1": "top-1",
    "ppl": "ppl",
    "ppl_reference": "reference's",
}
_MOST_POINTS = 60


@dataclass(frozen=True, slots=True)
class DrawnCurve:
    """A chart to be drawn.

    Attributes:
        title: above it.
        caption: what it shows.
        lines: of it.
        x_title: of the horizontal axis.
        y_title: of the vertical one.
        joined: whether lines go through the points.
    """

    title: str
    caption: str
    lines: Sequence[Line]
    x_title: str
    y_title: str
    joined: bool = True


def curves(files: Sequence[MeasuredFile]) -> list[DrawnCurve]:
    """What can be seen of all files."""
    found: list[DrawnCurve] = []
    for latency, words in (("tpot", "TPOT"), ("ttft", "TTFT")):
        found += _charts(
            f"{words} by load",
            f"Mean {words} by output tokens a second; a point for each load of a sweep.",
            _lines(files, "sweep", lambda file, of=(latency, words): _sweep(file, *of)),
            "output tokens/s",
            f"{words} ms",
        )
    for latency, words in (("ttft", "TTFT"), ("e2el", "E2EL")):
        found += _charts(
            f"{words} of requests",
            f"Which share of a run's requests had its {words} within a time.",
            _lines(files, "serve", lambda file, of=latency: _shares(file, of)),
            f"{words} ms",
            "% of requests",
        )
    for file in files:
        if file.kind == "formats":
            found += _formats(file)
    return found


def _lines(
    files: Iterable[MeasuredFile], kind: str, points: Callable[[MeasuredFile], list[Point]]
) -> list[Line]:
    """A line for each file of a kind that has points."""
    found = [Line(_stem(file), points(file)) for file in files if file.kind == kind]
    return [line for line in found if line.points]


def _charts(
    title: str, caption: str, lines: Sequence[Line], x_title: str, y_title: str
) -> list[DrawnCurve]:
    """One chart; more where there are too many lines to be told apart."""
    parts = [lines[i : i + MOST_LINES] for i in range(0, len(lines), MOST_LINES)]
    return [
        DrawnCurve(
            f"{title} ({number} of {len(parts)})" if len(parts) > 1 else title,
            caption,
            part,
            x_title,
            y_title,
        )
        for number, part in enumerate(parts, 1)
    ]


def _sweep(file: MeasuredFile, latency: str, words: str) -> list[Point]:
    """Throughput against latency, a point for each load."""
    figures = file.figures
    points = []
    for load in dict.fromkeys(key.rpartition(": ")[0] for key in figures):
        x = figures.get(f"{load}: output_throughput")
        y = figures.get(f"{load}: mean_{latency}_ms")
        if x is not None and y is not None:
            label = f"{_stem(file)}, {visible(load)}: {x:.1f} tokens/s, {words} {y:.1f} ms"
            points.append(Point(x, y, label, visible(load).removesuffix(" at once")))
    return points


def _shares(file: MeasuredFile, latency: str) -> list[Point]:
    """Which share of the requests was answered by when; nothing of a single one."""
    values = sorted(file.values(f"mean_{latency}_ms"))
    if len(values) < 2:
        return []
    shares = np.linspace(0, 100, min(len(values), _MOST_POINTS))
    return [
        Point(float(ms), float(share), f"{_stem(file)}: {share:.0f} % within {ms:.1f} ms")
        for share, ms in zip(shares, np.percentile(values, shares), strict=True)
    ]


def _formats(file: MeasuredFile) -> list[DrawnCurve]:
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
        title, lines = f"{_stem(file)}: {y_title}", [Line("", points)]
        found.append(DrawnCurve(title, caption, lines, "bits a weight", y_title, joined=False))
    return found


def tables(files: Sequence[MeasuredFile], left_out: Sequence[tuple[str, str]]) -> list[PageTable]:
    """All figures, and what is in no figure and why."""
    found = [_formats_table(file) for file in files if file.kind == "formats"]
    found += _joint(files, "accuracy", "Accuracy", ("model", *_ACCURACY.values()), _accuracy_rows)
    found += _joint(files, "engine", "Engine", ("file", "test", "tokens/s", "\u00b1"), _mean_rows)
    found += _joint(files, "serve", "Server", ("file", *_SERVE.values()), _serve_rows)
    found += _joint(files, "sweep", "Sweeps", ("file", "load", *_SERVE.values()), _sweep_rows)
    found += _joint(files, "startup", "Starts", ("file", "phase", "seconds", "\u00b1"), _mean_rows)
    rows = [(f.name, f.kind, f.model, f.machine) for f in files]
    found.append(_table("Files", ("file", "kind", "model", "machine"), rows))
    if left_out:
        found.append(_table("Left out", ("file", "why"), left_out))
    return found


def _joint(
    files: Iterable[MeasuredFile],
    kind: str,
    title: str,
    heads: Sequence[str],
    rows: Callable[[MeasuredFile], list[Sequence[str]]],
) -> list[PageTable]:
    """One table of all files of a kind; none where there are none."""
    lines = [line for file in files if file.kind == kind for line in rows(file)]
    return [_table(title, heads, lines)] if lines else []


def _formats_table(file: MeasuredFile) -> PageTable:
    rows = [(str(row["format"]), *(_number(row[key]) for key in _FORMATS)) for row in file.rows]
    return _table(_stem(file), ("format", *_FORMATS.values()), rows)


def _accuracy_rows(file: MeasuredFile) -> list[Sequence[str]]:
    return [(file.model, *(_number(row[key]) for key in _ACCURACY)) for row in file.rows]


def _mean_rows(file: MeasuredFile) -> list[Sequence[str]]:
    """Each figure's mean and standard deviation."""
    return [
        (file.name, name, _number(mean), _number(statistics.pstdev(file.values(name))))
        for name, mean in file.figures.items()
    ]


def _serve_rows(file: MeasuredFile) -> list[Sequence[str]]:
    return [(file.name, *_served(file.figures, ""))]


def _sweep_rows(file: MeasuredFile) -> list[Sequence[str]]:
    figures = file.figures
    loads = dict.fromkeys(key.rpartition(": ")[0] for key in figures)
    return [(file.name, load, *_served(figures, f"{load}: ")) for load in loads]


def _served(figures: dict[str, float], prefix: str) -> list[str]:
    values = [figures.get(prefix + key) for key in _SERVE]
    return ["" if value is None else _number(value) for value in values]


def _stem(file: MeasuredFile) -> str:
    return visible(file.name.removesuffix(".json"))


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> PageTable:
    """A table without the columns that are empty in every row."""
    kept = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    cells = [[visible(row[i]) for i in kept] for row in rows]
    return PageTable(title, [heads[i] for i in kept], cells, wide=True)


def _number(value: float) -> str:
    """Four digits, without an exponent where the number has more."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
