"""The page and the plots of a folder of measurements."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halfbyte.errors import ConfigError

from ...quantize.report.charts import line_chart
from ...quantize.report.page import PageChart, fill_page, visible
from .collect import MeasuredFile
from .drawings import DrawnCurve, curves, tables


def report_page(
    title: str, files: Sequence[MeasuredFile], left_out: Sequence[tuple[str, str]]
) -> str:
    """One HTML file that needs no other, with every curve and every figure.

    Args:
        title: of the page.
        files: measurements.
        left_out: files that could not be used, and why.
    """
    charts = [
        PageChart(c.title, line_chart(c.lines, c.x_title, c.y_title, c.joined), c.caption)
        for c in curves(files)
    ]
    subtitle = f"{len(files)} files of measurements"
    if left_out:
        subtitle += f", {len(left_out)} left out"
    return fill_page(visible(title), subtitle, charts=charts, tables=tables(files, left_out))


def save_plots(folder: Path, files: Sequence[MeasuredFile]) -> list[Path]:
    """Every chart as an SVG and a PNG file in a folder -> the files.

    Raises:
        ConfigError: matplotlib is not installed, or a file cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            "--plots needs matplotlib, which is not installed", hint="pip install 'halfbyte[plots]'"
        ) from error
    written: list[Path] = []
    names: set[str] = set()
    for curve in curves(files):
        figure = Figure(figsize=(7, 4), layout="constrained")
        _draw(figure, curve)
        name = _file_name(curve.title, names)
        for suffix in ("svg", "png"):
            path = folder / f"{name}.{suffix}"
            try:
                figure.savefig(path, dpi=150)
            except OSError as error:
                raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error
            written.append(path)
    return written


def _draw(figure: Any, curve: DrawnCurve) -> None:
    """One chart on an empty figure of matplotlib; texts stand as they are, dollars among them."""
    axes = figure.add_subplot()
    for line in curve.lines:
        xs, ys = [p.x for p in line.points], [p.y for p in line.points]
        axes.plot(xs, ys, "o-" if curve.joined else "o", markersize=4, label=line.name)
    points = [point for line in curve.lines for point in line.points]
    for point in points:
        if point.name:
            axes.annotate(
                point.name,
                (point.x, point.y),
                textcoords="offset points",
                xytext=(5, 5),
                fontsize=8,
                parse_math=False,
            )
    axes.set_title(curve.title, fontsize=10, parse_math=False)
    axes.set_xlabel(curve.x_title)
    axes.set_ylabel(curve.y_title)
    # Room for the names of the highest points.
    axes.set_ylim(0, 1.1 * max(point.y for point in points) or 1)
    if any(line.name for line in curve.lines):
        for text in axes.legend(fontsize=8).get_texts():
            text.set_parse_math(False)
    axes.grid(alpha=0.3)


def _file_name(title: str, taken: set[str]) -> str:
    """A name made of a title, unlike those before it."""
    base = re.sub(r"[^A-Za-z0-9.]+", "-", title.replace(".json", "")).strip("-.") or "plot"
    name, number = base, 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    taken.add(name)
    return name
