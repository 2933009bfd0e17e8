"""A scatter of points as plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

LEAST_WIDTH = 60
"""Columns below which a plot tells nothing."""
_HEIGHT = 12


def text_plot(
    points: Sequence[tuple[float, float, str]], x_title: str, y_title: str, width: int
) -> str:
    """Points with a label each, both axes from 0; every line has at most ``width`` columns.

    Args:
        points: x, y (both 0 or more) and label.
        x_title: below the horizontal axis.
        y_title: above the vertical one.
        width: columns, at least `LEAST_WIDTH`.
    """
    most_x = max((x for x, _, _ in points), default=0.0) or 1.0
    most_y = max((y for _, y, _ in points), default=0.0) or 1.0
    ticks = [f"{most_y * row / _HEIGHT:.4g}" if row % 4 == 0 else "" for row in range(_HEIGHT + 1)]
    margin = max(map(len, ticks)) + 1
    room = width - margin - 2
    grid = [[" "] * (room + 1) for _ in range(_HEIGHT + 1)]
    for x, y, label in points:
        row, column = round(y / most_y * _HEIGHT), round(x / most_x * (room - 1))
        # The label stands right of its point, or left of it where the line ends.
        start = column + 2 if column + 2 + len(label) <= room else column - 1 - len(label)
        for at, mark in ((column, "o"), *enumerate(label, max(0, start))):
            if at <= room and grid[row][at] == " ":
                grid[row][at] = mark
    lines = [y_title]
    for row in range(_HEIGHT, -1, -1):
        lines.append(f"{ticks[row].rjust(margin)}|{''.join(grid[row])}".rstrip())
    lines.append(" " * margin + "+" + "-" * room)
    end = f"{most_x:.4g}"
    lines.append(f"{' ' * margin} 0{x_title.center(room - 1 - len(end))}{end}".rstrip())
    return "\n".join(lines)
