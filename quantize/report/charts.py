"""Charts as inline SVG, coloured by the page's style sheet; every text in them is escaped.

Drawings are some 480 units wide, so that their letters stay readable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

_WIDTH, _HEIGHT = 480, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 14, 30, 40
_CELL = 17
_KEY, _KEY_LETTERS = 18, 50  # a line of the key: its height, and its most letters
MOST_LINES = 8  # of one chart: so many colours the style sheet has


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a chart.

    Attributes:
        x: its place.
        y: its value.
        label: what is told when it is pointed at.
        name: written beside it; "" for none.
    """

    x: float
    y: float
    label: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """Points that belong together.

    Attributes:
        name: in the key; "" where there is only one line.
        points: of it, in the order in which they are joined.
    """

    name: str
    points: Sequence[Point]


def line_chart(lines: Sequence[Line], x_title: str, y_title: str, joined: bool = True) -> Markup:
    """Points, joined by lines or not, over axes that begin at 0 (y) and at the least x.

    Args:
        lines: at most ``MOST_LINES``, each in a colour of its own; a key below tells their names.
        x_title: of the horizontal axis.
        y_title: of the vertical one.
        joined: whether lines go through the points.
    """
    frame = _Frame.around([p for line in lines for p in line.points])
    body = [frame.axes(x_title, y_title)]
    height = _HEIGHT
    for colour, line in enumerate(lines):
        body += _line(frame, line.points, colour, joined)
        if line.name:
            height += _KEY
            body.append(_key(line.name, colour, height - 6))
    return _svg(_WIDTH, height, f"{y_title} by {x_title}", body)


def _line(frame: _Frame, points: Sequence[Point], colour: int, joined: bool) -> list[Markup]:
    parts = []
    if joined and len(points) > 1:
        path = " ".join(f"{frame.x(p.x):.1f},{frame.y(p.y):.1f}" for p in points)
        parts.append(Markup('<polyline class="line c{}" points="{}"/>').format(colour, path))
    for p in points:
        x, y = frame.x(p.x), frame.y(p.y)
        parts.append(
            Markup(
                '<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>'
            ).format(colour, x, y, p.label)
        )
        if p.name:
            right = x > _WIDTH * 0.7
            place, anchor = (x - 6, "end") if right else (x + 6, "start")
            parts.append(_text(place, y - 6, p.name, anchor))
    return parts


def _key(name: str, colour: int, y: float) -> Markup:
    """The name of a line beside a piece of it."""
    short = name if len(name) <= _KEY_LETTERS else f"{name[: _KEY_LETTERS - 1]}\u2026"
    piece = Markup('<polyline class="line c{}" points="{},{:.1f} {},{:.1f}"/>').format(
        colour, _LEFT, y - 4, _LEFT + 24, y - 4
    )
    return piece + _text(_LEFT + 32, y, short, "start")


def bar_chart(values: Sequence[float], labels: Sequence[str], x_title: str, y_title: str) -> Markup:
    """A bar for each value, and a line at their mean."""
    points = [Point(i, v, label) for i, (v, label) in enumerate(zip(values, labels, strict=True))]
    # Bars stand between whole numbers; their numbers stand below the middle.
    frame = replace(_Frame.around([*points, Point(len(values), 0, "")]), shift=0.5)
    body = [frame.axes(x_title, y_title)]
    step = frame.x(1) - frame.x(0)
    for p in points:
        top = frame.y(p.y)
        body.append(
            Markup(
                '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                "<title>{}</title></rect>"
            ).format(frame.x(p.x) + step * 0.1, top, step * 0.8, frame.y(0) - top, p.label)
        )
    mean = sum(values) / len(values)
    y = frame.y(mean)
    body.append(
        Markup('<line class="mean" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
            _LEFT, _WIDTH - _RIGHT, y, y
        )
    )
    body.append(_text(_WIDTH - _RIGHT, y - 5, f"mean {_short(mean)}", "end"))
    return _svg(_WIDTH, _HEIGHT, f"{y_title} by {x_title}", body)


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    title: str,
) -> Markup:
    """Cells that are the stronger coloured the larger their values are, on a scale of logarithms.

    Args:
        rows: their names, from the top.
        columns: their names.
        values: of each row; None leaves a cell empty.
        title: for those who cannot see it.
    """
    known = [v for line in values for v in line if v is not None and v > 0]
    low, high = (math.log(f(known)) for f in (min, max)) if known else (0.0, 1.0)
    left, top = 34, 24
    width = (_WIDTH - left) / max(1, len(columns))
    body = [
        _text(left + (i + 0.5) * width, top - 8, name, "middle") for i, name in enumerate(columns)
    ]
    for r, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = top + r * _CELL
        body.append(_text(left - 6, y + _CELL - 5, name, "end"))
        for c, value in enumerate(line):
            if value is None:
                continue
            share = (math.log(value) - low) / (high - low or 1) if value > 0 else 0.0
            x = left + c * width
            body.append(
                Markup(
                    '<rect class="heat" x="{:.1f}" y="{}" width="{:.1f}" height="{}" '
                    'fill-opacity="{:.2f}"><title>{}</title></rect>'
                ).format(
                    x,
                    y,
                    width - 1.5,
                    _CELL - 1.5,
                    0.04 + 0.81 * share,
                    f"{name}, {columns[c]}: {value:.4g}",
                )
            )
            shown = _text(x + width / 2 - 1, y + _CELL - 5, _short(value), "middle", "cell")
            body.append(shown)
    return _svg(_WIDTH, top + len(rows) * _CELL + 4, title, body)


@dataclass(frozen=True, slots=True)
class _Frame:
    """Places in a drawing of the numbers that axes show.

    Attributes:
        low: number at the left end.
        high: number at the right end.
        top: largest number upwards; the lowest is 0.
        shift: how far right of its place the name of a whole number stands; 0 for a continuum.
    """

    low: float
    high: float
    top: float
    shift: float = 0.0

    @staticmethod
    def around(points: Sequence[Point]) -> _Frame:
        xs = [p.x for p in points] or [0.0]
        top = max([p.y for p in points] or [0.0])
        return _Frame(min(xs), max(xs), top or 1.0)

    def x(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low or 1)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - value / (self.top * 1.08) * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self, x_title: str, y_title: str) -> Markup:
        parts = []
        for value in _ticks(0, self.top):
            y = self.y(value)
            parts.append(
                Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                    _LEFT, _WIDTH - _RIGHT, y, y
                )
            )
            parts.append(_text(_LEFT - 6, y + 4, _short(value), "end"))
        for value in _ticks(self.low, self.high - self.shift, whole=self.shift > 0):
            x = self.x(value + self.shift)
            parts.append(_text(x, _HEIGHT - _BOTTOM + 16, _short(value), "middle"))
        parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - 6, x_title, "end", "title"))
        parts.append(_text(0, 14, y_title, "start", "title"))
        return Markup("").join(parts)


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Some four round numbers from ``low`` to ``high``."""
    if high <= low:
        return [low]
    rough = max((high - low) / 4, 1.0 if whole else 0.0)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * f for f in (1, 2, 2.5, 5, 10) if unit * f >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    """Two or three digits."""
    if value == 0:
        return "0"
    if 10_000 <= abs(value) < 1e6:
        return f"{value / 1000:.4g}k"
    if abs(value) < 0.001 or abs(value) >= 1e6:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    digits = max(0, 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.removeprefix("0") if text.startswith("0.") else text


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, text
    )


def _svg(width: float, height: float, title: str, body: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, title, Markup("").join(body)
    )
