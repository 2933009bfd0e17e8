"""``halfbyte bench kernels``: kernels against their floors and peers, or the floors alone."""

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
        str, typer.Option("--rows", metavar="N,..", help="Rows of activations (M).")
    ] = "1,2,4,8,16,32,64,128,256,512,2048",
    json_file: JsonFile = None,
) -> None:
    """Time the kernels of Llama-3-8B and 70B layers against their floors and their peers."""
    counts = numbers(rows, "--rows")
    if min(counts) == 0:
        raise typer.BadParameter(f"{rows!r} has a 0; expected 1 or more", param_hint="--rows")
    target = writable(json_file)
    from ..bench.kernels import floors
    from ..kernels.device.gpus import gpu as find_gpu

    if dry_run:
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
