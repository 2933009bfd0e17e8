"""``halfbyte bench compare``: two results, and whether the second one is worse."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .bench import JsonFile, writable, write
from .console import fit_markdown, note, print_error


def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="The first result.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="What is compared with it.")],
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance", metavar="PERCENT", min=0, help="What may get worse beyond noise."
        ),
    ] = 0.0,
    across_machines: Annotated[
        bool, typer.Option("--across-machines", help="Compare different machines, too.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Compare two results of `bench`: ratios, and bands of noise by bootstrap.

    The exit status is 1 when a figure got worse beyond noise. The noise is that within
    the two runs; take --tolerance for what differs from run to run.
    """
    target = writable(json_file)
    from ..bench.compare import compare_results, comparison_table

    found = compare_results(
        before, after, tolerance=tolerance / 100, across_machines=across_machines
    )
    facts = {**asdict(found), "regressions": found.regressions}
    text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    print(text if json_file == "-" else fit_markdown(comparison_table(found)) + "\n", end="")
    if target is not None:
        write(target, text)
    for line in found.differs:
        note(f"differs: {line}")
    if found.missing:
        note(f"only one has: {', '.join(found.missing)}")
    if found.paired:
        note("both sent the same requests, which are compared one by one")
    if found.regressions:
        print_error(f"worse beyond noise: {', '.join(found.regressions)}")
        raise typer.Exit(1)
