"""A bar on the terminal for a batch of prompts in the library."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BatchProgress = Callable[[int, int, int], None]
"""Called with the prompts answered, those there are, and the tokens drawn so far."""


@contextmanager
def reporting(wanted: bool | BatchProgress) -> Iterator[BatchProgress]:
    """What to call as a batch goes on: nothing, the caller's own, or a bar on the terminal.

    The bar needs a terminal at stderr; elsewhere nothing is shown.
    """
    if not isinstance(wanted, bool):
        yield wanted
    elif not wanted or not sys.stderr.isatty():
        yield lambda done, total, tokens: None
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}")
        began = time.monotonic()
        with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=None, speed="")

            def show(done: int, total: int, tokens: int) -> None:
                speed = tokens / max(time.monotonic() - began, 1e-9)
                bar.update(task, completed=done, total=total, speed=f"{speed:.0f} tok/s")

            yield show
