"""``halfbyte bench formats``: size, speed and loss of a model's formats in one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .bench import JsonFile, names, writable, write
from .console import fit_markdown, note
from .loading import fetch_model


def formats(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A dense model: file, folder or pulled name.")
    ],
    text: Annotated[Path, typer.Option("--text", metavar="FILE", help="What all are judged on.")],
    chosen: Annotated[
        str,
        typer.Option(
            "--formats",
            metavar="NAME,..",
            help="Schemes of --quantize, and quantized files or folders; empty = all schemes.",
        ),
    ] = "",
    windows: Annotated[
        int, typer.Option("--windows", min=1, metavar="N", help="Most windows of the text.")
    ] = 8,
    length: Annotated[
        int, typer.Option("--length", metavar="TOKENS", help="Tokens of a window.")
    ] = 512,
    prompt: Annotated[
        int, typer.Option("--prompt", "-p", min=1, metavar="N", help="Prompt length.")
    ] = 512,
    generate: Annotated[
        int, typer.Option("--generate", "-n", min=1, metavar="N", help="Answer length.")
    ] = 64,
    repetitions: Annotated[
        int, typer.Option("--repetitions", "-r", min=1, metavar="N", help="Samples of each speed.")
    ] = 3,
    threads: Annotated[
        int, typer.Option("--threads", "-t", min=0, help="0 = one for each core.")
    ] = 0,
    json_file: JsonFile = None,
) -> None:
    """Compare formats of a model: real bits a weight, MB, tokens/s, perplexity, KL, top-1.

    Bits are those of the layers' matrices. KL and top-1 are relative to the dense model.
    """
    target = writable(json_file)
    fetch_model(model)
    from ..bench.engine import BenchPlan
    from ..bench.formats import SCHEME_NAMES, formats_facts, formats_table, run_formats
    from ..quantize.windows import read_text

    plan = BenchPlan((prompt,), (generate,), repetitions=repetitions)
    some = names(chosen) or SCHEME_NAMES
    rows = run_formats(model, some, read_text(text), length, windows, plan, threads, note)
    facts = json.dumps(formats_facts(rows), indent=1, ensure_ascii=False) + "\n"
    print(facts if json_file == "-" else fit_markdown(formats_table(rows)) + "\n", end="")
    if target is not None:
        write(target, facts)
