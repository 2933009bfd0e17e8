"""``halfbyte bench report``: all measurements of a folder as plots and one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from halfbyte.errors import ResultFileError

from .bench import writable, write
from .console import note, warn


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of JSON files.")],
    html: Annotated[
        str | None,
        typer.Option("--html", metavar="FILE", help="The page; DIR/report.html by default."),
    ] = None,
    plots: Annotated[
        bool, typer.Option("--plots", help="SVG and PNG files, too; needs matplotlib.")
    ] = False,
) -> None:
    """Show the results of a folder as one self-contained HTML file, and as plots.

    It takes what serve, sweep, startup, engine and formats of `bench` wrote with
    --json, and `accuracy`. Files that cannot be read are named and left out.
    """
    target = writable(html or str(folder / "report.html"), "--html")
    from ..bench.report.collect import collect
    from ..bench.report.write import report_page, save_plots

    files, left_out = collect(folder)
    for name, why in left_out:
        warn(f"{name} is left out: {why}")
    _check_some(folder, len(files))
    if plots:
        for path in save_plots(folder, files):
            note(f"wrote {path}")
    assert target is not None
    write(target, report_page(folder.absolute().name, files, left_out), "--html")
    note(f"wrote {target}")


def _check_some(folder: Path, count: int) -> None:
    """Raises ResultFileError where there is nothing to show."""
    if not count:
        raise ResultFileError(
            f"{folder} has no results of `halfbyte bench`",
            hint="write some there with --json, such as `halfbyte bench serve ... --json FILE`",
        )
