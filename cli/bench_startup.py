"""``halfbyte bench startup``: from nothing to a first token, phase by phase."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import options as opt
from .bench import JsonFile, writable
from .console import INTERRUPT_EXIT, batch_bar, fit_markdown, note, progress_bar
from .loading import fetch_model


@opt.flat
def startup(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name, local file or folder.")
    ] = "smollm2",
    runs: Annotated[int, typer.Option("--runs", metavar="N", min=1, help="Starts.")] = 5,
    cold_files: Annotated[
        bool,
        typer.Option("--cold-files", help="Ask the system to drop the weights from its cache."),
    ] = False,
    json_file: JsonFile = None,
    *,
    made_with: opt.EngineFlags,
) -> None:
    """Measure cold starts: process, import, load, first token.

    Every run is a process of its own. Ctrl-C keeps the runs that were done.
    """
    options, target = made_with.fields(), writable(json_file)
    fetch_model(model)
    from ..bench import startup as bench
    from ..bench.result import model_identity, new_result, result_text, weight_files, write_result
    from ..loaders.store.model_store import resolve_model

    path = resolve_model(model)
    files: tuple[Path, ...] = tuple(weight_files(path)) if cold_files else ()
    with batch_bar(runs, "starts") as bar:
        found = bench.measure_startup(path, options, runs, files, lambda n: bar.update(n, n))
    if found.runs:
        with progress_bar(f"hashing {model}") as progress:
            identity = model_identity(path, options["quantize"], progress)
        result = new_result(
            "startup",
            model=identity,
            flags={"runs": runs, "cold_files": cold_files, "engine": options},
            seed=0,
            figures=asdict(found),
        )
        table = fit_markdown(bench.startup_table(found)) + "\n"
        print(result_text(result) if json_file == "-" else table, end="")
        if target is not None:
            write_result(target, result)
            note(f"wrote {target}")
    if found.interrupted:
        raise typer.Exit(INTERRUPT_EXIT)
