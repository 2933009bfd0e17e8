"""Terminal output shared by the commands: errors, notes, sizes and progress bars.

Results go to stdout; everything else goes to stderr. Colour and bars appear only on a terminal,
and colour only when NO_COLOR is not set. Rich is imported where it is needed, because most
of a command's start-up time would otherwise be spent on it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

OnProgress = Callable[[int, int], None]

_RED, _DIM, _YELLOW, _OFF = "\x1b[1;31m", "\x1b[2m", "\x1b[33m", "\x1b[0m"
_KEPT_CONTROLS = "\n\t"
INTERRUPT_EXIT = 130
"""Exit code of a command that ctrl-C ended."""
MIN_WIDTH, MAX_WIDTH = 40, 200
"""Widths in columns that every table fits."""
_PROSE_WIDTH = 100
_LEAST_LABEL, _LEAST_TEXT = 12, 24
_GAP = "  "
_BAR_EVERY_S = 0.1


def is_terminal(stream: IO[str]) -> bool:
    """Whether a stream is an open terminal."""
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def use_color(stream: IO[str]) -> bool:
    """Whether colours may be written to a stream."""
    return can_move(stream) and not os.environ.get("NO_COLOR")


def can_move(stream: IO[str]) -> bool:
    """Whether escape codes may be written to a stream."""
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def clean(text: str) -> str:
    """Text without the control characters that could steer a terminal; line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _KEPT_CONTROLS else "\ufffd" for c in text)


def one_line(text: str) -> str:
    """Text as one printable line."""
    return clean(" ".join(text.split()))


def print_error(message: str, hint: str = "") -> None:
    """One red line that says what is wrong and, if given, one that says what to do."""
    _line("error: ", message, _RED)
    if hint:
        _line("hint: ", hint, _DIM)


def warn(message: str) -> None:
    """One yellow line on stderr."""
    _line("warning: ", message, _YELLOW)


class WarningLines(logging.Handler):
    """Shows what is logged where no handler is set up, warnings and worse, as lines of ours."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """One line on stderr."""
        show = print_error if record.levelno >= logging.ERROR else warn
        show(record.getMessage())


def note(message: str) -> None:
    """One dim line on stderr."""
    _line("", message, _DIM)


def note_block(text: str) -> None:
    """Dim lines on stderr, with the spaces that align them."""
    for line in text.splitlines():
        _print(clean(line).replace("\n", " "), _DIM)


def _line(label: str, message: str, code: str) -> None:
    _print(label + one_line(message), code)


def _print(text: str, code: str) -> None:
    if use_color(sys.stderr):
        text = f"{code}{text}{_OFF}"
    print(text, file=sys.stderr, flush=True)


def terminal_width() -> int:
    """Columns that text may take: the terminal's or COLUMNS', 40 to 200; 80 where unknown."""
    return min(max(shutil.get_terminal_size((80, 24)).columns, MIN_WIDTH), MAX_WIDTH)


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain text table that fits the terminal.

    The first column is flush left, the others flush right. A first cell that is too
    wide stands above the others of its row; where those alone fill the width, every row becomes
    a paragraph.
    """
    limit = terminal_width()
    widths = [max(len(line[i]) for line in (heads, *rows)) for i in range(len(heads))]
    room = limit - sum(width + len(_GAP) for width in widths[1:])
    if room < min(widths[0], max(_LEAST_LABEL, len(heads[0]))):
        return _paragraphs(heads, rows)
    widths[0] = max(len(line[0]) for line in (heads, *rows) if len(line[0]) <= room)
    lines = []
    for first, *others in (heads, *rows):
        if len(first) > room:
            lines += _folded(first, limit)
            first = ""
        padded = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip((first, *others), widths, strict=True))
        ]
        lines.append(_GAP.join(padded).rstrip())
    return "\n".join(lines)


def fit_markdown(text: str) -> str:
    """Text with markdown tables for stdout: a terminal gets those laid out anew that do not fit.

    Elsewhere the text stays as it is, to be pasted.
    """
    if not is_terminal(sys.stdout):
        return text
    limit, out, table = terminal_width(), [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            table.append(line)
            continue
        if table and max(map(len, table)) > limit:
            heads, *rows = ([cell.strip() for cell in row.strip("|").split("|")] for row in table)
            table = columns(heads, rows[1:]).splitlines()
        out += [*table, line if len(line) <= limit else wrapped("", line, indent=0)]
        table = []
    return "\n".join(out).rstrip("\n")


def _paragraphs(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of a table as texts: the first cell, and below it the others with their heads."""
    lines = []
    for cells in rows:
        facts = [f"{head} {cell}" for head, cell in zip(heads[1:], cells[1:], strict=True) if cell]
        lines += [
            *_folded(cells[0] or "-", terminal_width()),
            wrapped("", "; ".join(facts), indent=2),
        ]
    return "\n".join(lines)


def _folded(text: str, width: int) -> list[str]:
    """A label as lines of at most ``width`` characters; further ones are indented as it is."""
    import textwrap

    before = " " * min(len(text) - len(text.lstrip()), width // 2)
    return textwrap.wrap(
        text.strip(),
        width,
        initial_indent=before,
        subsequent_indent=before,
        break_on_hyphens=False,
    ) or [""]


def wrapped(label: str, text: str, *, indent: int = 16) -> str:
    """``label`` and then ``text``, its further lines indented to where it began.

    The lines fit the terminal, and a label that leaves too little room, or none for a word that
    would fit without it, stands above its text.
    """
    import textwrap

    width = min(terminal_width(), _PROSE_WIDTH)
    above: list[str] = []
    room = width - max(indent, len(label))
    longest = max(map(len, text.split()), default=0)
    if room < _LEAST_TEXT or room < longest <= width - 4:
        above = _folded(label, width) if label.strip() else []
        label, indent = "", min(indent, 4)
    lines = textwrap.wrap(
        one_line(text),
        width,
        initial_indent=label.ljust(indent),
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
    )
    return "\n".join([*above, *lines])


@contextlib.contextmanager
def progress_bar(label: str, *, unit: str = "bytes") -> Iterator[OnProgress]:
    """A bar on stderr that vanishes when done; without a terminal, a callback that does nothing.

    ``unit`` is ``bytes`` (shows size, speed and time left; appears with the first call) or
    ``steps`` (appears at once).
    """
    if not can_move(sys.stderr):
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = [TextColumn("{task.description}"), BarColumn(bar_width=24)]
    if unit == "bytes":
        columns += [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    else:
        columns += [TextColumn("{task.fields[count]}")]
    console = Console(stderr=True, no_color=not use_color(sys.stderr))
    bar = RichProgress(*columns, console=console, transient=True)
    task = bar.add_task(one_line(label), total=None, count="")

    def progress(done: int, total: int) -> None:
        bar.start()
        count = f"{done}/{total}" if total else ""
        bar.update(task, completed=done, total=total or None, count=count)

    try:
        if unit == "steps":
            bar.start()
        yield progress
    finally:
        if bar.live.is_started:
            bar.stop()


class BatchBar:
    """How far a batch is: a bar, tokens per second and the time left; see :func:`batch_bar`."""

    def __init__(
        self, bar: Any, total: int, unit: str, before: int = 0, every_s: float = 0
    ) -> None:
        self._bar, self._total, self._unit, self._before = bar, total, unit, before
        self._every_s = _BAR_EVERY_S if bar is not None else every_s
        self._start = self._shown = time.monotonic()
        self._task = bar.add_task("", total=total, facts="") if bar is not None else None

    def update(self, done: int, tokens: int, more: str = "") -> None:
        """Show the number of what is done, of tokens so far, and what else there is to say."""
        now = time.monotonic()
        if not self._every_s or now - self._shown < self._every_s:
            return
        self._shown, seconds, new = now, now - self._start, done - self._before
        left = f"{_duration(seconds / new * (self._total - done))} left" if new else "..."
        facts = f"{done}/{self._total} {self._unit} | {tokens / seconds:.0f} tok/s | {left}{more}"
        if self._bar is None:
            note(facts)
            return
        self._bar.start()
        self._bar.update(self._task, completed=done, facts=facts, refresh=True)

    @contextlib.contextmanager
    def aside(self, stream: IO[str]) -> Iterator[None]:
        """Make room for a block that prints to a stream, if that is a terminal too."""
        if self._bar is not None and is_terminal(stream):
            self._bar.stop()
        yield


def _duration(seconds: float) -> str:
    """A time in its two largest units: ``42 s``, ``3 min 5 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@contextlib.contextmanager
def batch_bar(
    total: int, unit: str = "prompts", *, before: int = 0, every_s: float = 0
) -> Iterator[BatchBar]:
    """A bar for ``total`` things on stderr that vanishes when done.

    ``before`` of them were done when it began. Elsewhere than on a terminal there is no bar, but a
    plain line every ``every_s`` seconds, unless that is 0.
    """
    if not can_move(sys.stderr):
        yield BatchBar(None, total, unit, before, every_s)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("{task.fields[facts]}"),
        BarColumn(bar_width=None),
        console=Console(stderr=True, no_color=not use_color(sys.stderr)),
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    try:
        yield BatchBar(bar, total, unit, before)
    finally:
        bar.stop()


def human_bytes(count: int) -> str:
    """Bytes in binary units: ``93.81 MiB``."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024 or unit == "TiB":
            return f"{value:.2f} {unit}"
    raise AssertionError("the last unit returns")


def human_count(count: int) -> str:
    """A count in decimal units: ``134.52 M``."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= limit:
            return f"{count / limit:.2f} {unit}"
    return str(count)


@contextlib.contextmanager
def loading_bar(label: str) -> Iterator[OnProgress]:
    """A bar in steps that vanishes when the last step is done, not only at the block's end."""
    with contextlib.ExitStack() as stack:
        show = stack.enter_context(progress_bar(label, unit="steps"))

        def progress(done: int, total: int) -> None:
            show(done, total)
            if done >= total:
                stack.close()

        yield progress
