"""Terminal output shared by the commands: errors, notes, sizes and progress bars.

Results go to stdout; everything else goes to stderr. Colour and bars appear only on a terminal,
and colour only when NO_COLOR is not set. Rich is imported where it is needed, because most
of a command's start-up time would otherwise be spent on it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import IO

Progress = Callable[[int, int], None]

_RED, _DIM, _YELLOW, _OFF = "\x1b[1;31m", "\x1b[2m", "\x1b[33m", "\x1b[0m"
_KEPT_CONTROLS = "\n\t"


def is_terminal(stream: IO[str]) -> bool:
    """Whether a stream is an open terminal."""
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def use_color(stream: IO[str]) -> bool:
    """Whether colours may be written to a stream."""
    return _can_move(stream) and not os.environ.get("NO_COLOR")


def _can_move(stream: IO[str]) -> bool:
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


def _line(label: str, message: str, code: str) -> None:
    text = label + one_line(message)
    if use_color(sys.stderr):
        text = f"{code}{text}{_OFF}"
    print(text, file=sys.stderr, flush=True)


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A plain text table; the first ``left`` columns are flush left, the others flush right."""
    widths = [max(len(line[i]) for line in (heads, *rows)) for i in range(len(heads))]
    lines = []
    for cells in (heads, *rows):
        padded = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def wrapped(label: str, text: str, *, width: int = 80, indent: int = 16) -> str:
    """``label`` and then ``text``, its further lines indented to where it began."""
    import textwrap

    return textwrap.fill(
        one_line(text),
        width,
        initial_indent=label.ljust(indent),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


@contextlib.contextmanager
def progress_bar(label: str, *, unit: str = "bytes") -> Iterator[Progress]:
    """A bar on stderr that vanishes when done; without a terminal, a callback that does nothing.

    ``unit`` is ``bytes`` (shows size, speed and time left; appears with the first call) or
    ``steps`` (appears at once).
    """
    if not _can_move(sys.stderr):
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = [TextColumn("{task.description}"), BarColumn(bar_width=24)]
    if unit == "bytes":
        columns += [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    else:
        columns += [MofNCompleteColumn()]
    console = Console(stderr=True, no_color=not use_color(sys.stderr))
    bar = RichProgress(*columns, console=console, transient=True)
    task = bar.add_task(one_line(label), total=None)

    def progress(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total or None)

    try:
        if unit == "steps":
            bar.start()
        yield progress
    finally:
        if bar.live.is_started:
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
def loading_bar(label: str) -> Iterator[Progress]:
    """A bar in steps that vanishes when the last step is done, not only at the block's end."""
    with contextlib.ExitStack() as stack:
        show = stack.enter_context(progress_bar(label, unit="steps"))

        def progress(done: int, total: int) -> None:
            show(done, total)
            if done >= total:
                stack.close()

        yield progress
