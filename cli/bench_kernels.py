"""``halfbyte bench kernels``: kernels against floors and peers, floors alone, or predictions."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .bench import JsonFile, names, numbers, writable, write
from .console import fit_markdown, note


def kernels(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the floors; needs no GPU.")
    ] = False,
    predict: Annotated[
        bool, typer.Option("--predict", help="Print predicted times; needs no GPU.")
    ] = False,
    gpu: Annotated[
        str, typer.Option("--gpu", metavar="NAME", help="Such as H100 or 'RTX 4090'.")
    ] = "",
    kernel: Annotated[
        str,
        typer.Option("--kernel", metavar="NAME,..", help="Kinds of weight; empty = usual ones."),
    ] = "",
    layer: Annotated[
        str, typer.Option("--layer", metavar="NAME,..", help="Such as 8B or 'down'; all if empty.")
    ] = "",
    rows: Annotated[
        str, typer.Option("--rows", metavar="N,..", help="Rows of activations (M); usual if empty.")
    ] = "",
    json_file: JsonFile = None,
) -> None:
    """Time the kernels of Llama-3-8B and 70B layers against their floors and their peers."""
    from ..bench.kernels import floors
    from ..kernels.device.gpus import gpu as find_gpu

    if dry_run and predict:
        raise typer.BadParameter("--dry-run and --predict are two things; expected one of them")
    counts = numbers(rows, "--rows") if rows else floors.SHOWN_ROWS
    if min(counts) == 0:
        raise typer.BadParameter(f"{rows!r} has a 0; expected 1 or more", param_hint="--rows")
    target = writable(json_file)
    if predict:
        from ..bench.kernels.predict_table import prediction, prediction_text

        if kernel:
            raise typer.BadParameter(
                f"{kernel!r} with --predict, which takes layers of 4 bits; expected none",
                param_hint="--kernel",
            )
        chosen = counts if rows else None
        told = prediction(find_gpu(gpu or "H100"), names(layer), chosen)
        text, shown = json.dumps(told, indent=1) + "\n", prediction_text(told)
    elif dry_run:
        card = find_gpu(gpu or "H100")
        heads, *lines = floors.floor_table(card, names(kernel), counts)
        text = json.dumps([dict(zip(heads, line, strict=True)) for line in lines], indent=1) + "\n"
        shown = floors.floor_text(card, names(kernel), counts)
    else:
        from ..bench.kernels.report import rows_table, worst_text
        from ..bench.kernels.run import KernelPlan, run_kernels

        found = run_kernels(KernelPlan(names(kernel), names(layer), counts, gpu), note)
        text = json.dumps(found, indent=1) + "\n"
        shown = rows_table(found) + "\n\n" + worst_text(found)
    print(text if json_file == "-" else fit_markdown(shown) + "\n", end="")
    if target is not None:
        write(target, text)
