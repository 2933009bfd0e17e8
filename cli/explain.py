"""``halfbyte explain``: which kernel each layer would take on a device, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import clean, note, wrapped

if TYPE_CHECKING:
    from ..engine.explain import Row
    from ..kernels.tables import Device

_FALLBACK = "sm_90"


def explain(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Local file or folder, or a pulled model.")
    ] = "smollm2",
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="NAME",
            help="sm_80 ... sm_120 or a product such as H100; this machine's GPU if not given.",
        ),
    ] = "",
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Activations in float16 instead of bfloat16.")
    ] = False,
    exact: Annotated[bool, typer.Option("--exact", help="As the engine's option.")] = False,
    context: Annotated[
        int, typer.Option("--context", min=1, metavar="TOKENS", help="Context of decode steps.")
    ] = 4096,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the kernel, tile and split of each layer and number of rows; loads no weights."""
    from halfbyte.errors import ConfigError

    from ..loaders import open_checkpoint
    from ..loaders.store import cache_root, resolve_model

    path = resolve_model(model)
    try:
        from ..engine.explain import explain as explain_model
        from ..kernels.tables import find_device, load_tables
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "triton":
            raise
        raise ConfigError("triton is not installed", hint="pip install triton") from None
    place = find_device(device) if device else local_device()
    if place is None:
        place = find_device(_FALLBACK)
        note(f"no GPU here: shown for {_FALLBACK} ({place.name}); choose with --device")
    tables = load_tables(place, cache_root() / "tables")
    checkpoint = open_checkpoint(path)
    try:
        rows = explain_model(
            checkpoint, place, tables=tables, fp16=fp16, exact=exact, context=context
        )
    finally:
        checkpoint.close()
    if as_json:
        import json
        from dataclasses import asdict

        facts = {"model": str(path), "device": asdict(place), "exact": exact}
        facts |= {"rows": [row.facts() for row in rows]}
        print(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        print(render(rows, place))


def local_device() -> Device | None:
    """This machine's first GPU, or None."""
    import torch

    from ..kernels.tables import Device

    if not torch.cuda.is_available() or torch.version.hip is not None:
        return None
    found = torch.cuda.get_device_properties(0)
    return Device(found.name, 10 * found.major + found.minor, found.multi_processor_count)


def render(rows: Sequence[Row], device: Device) -> str:
    """The rows as text; neighbouring M that take the same share lines."""
    about = f"{device.name}: sm_{device.arch}, {device.sms} multiprocessors. "
    about += "M: rows of activations; splits are those of a line's largest M."
    parts = [wrapped("", about, indent=0)]
    for _, same in groupby(rows, key=lambda row: (row.layers, row.module, row.shape, row.format)):
        product = list(same)
        first = product[0]
        size = "" if first.shape is None else f", {first.shape[0]} x {first.shape[1]}"
        family = "" if first.family == "attention" else f", {first.family}"
        head = f"{layer_text(first.layers)}: {first.module}{size}, {first.format}{family}"
        if first.family == "attention":
            head += f", {first.detail}"
        parts.append("\n".join([wrapped("", head, indent=4).lstrip(), *_product_lines(product)]))
    return clean("\n\n".join(parts))


def _product_lines(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each range of M with one configuration, reasons below those they hold for."""
    low = 1
    for reasons, same in groupby(rows, key=_reasons):
        for _, alike in groupby(same, key=lambda r: (r.kernel, r.config, r.source)):
            row = list(alike)[-1]
            source = row.source
            if source in ("table", "neighbour"):
                source += f": {row.detail}"
            text = ", ".join(filter(None, (row.kernel, config_text(row.config))))
            yield wrapped(f"  M {low}-{row.m}", f"{text} [{source}]")
            low = row.m + 1
        for why in dict.fromkeys(reasons.values()):
            names = " or ".join(name for name, other in reasons.items() if other == why)
            yield wrapped("", f"not {names}: {why}")


def _reasons(row: Row) -> dict[str, str]:
    """Why not the others, without the number of rows, which the line's M says."""
    return {name: why.removeprefix(f"{row.m} rows: ") for name, why in row.rejected.items()}


def layer_text(layers: Sequence[int]) -> str:
    """``layers 0-3, 6``, ``layer 7``, or ``head`` for none."""
    if not layers:
        return "head"
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    return ("layer " if len(layers) == 1 else "layers ") + ", ".join(texts)


def config_text(config: dict[str, Any]) -> str:
    """Launch parameters in words."""
    parts = []
    if config.get("bm"):
        parts.append(f"tile {config['bm']} x {config['bn']}")
    elif "rows" in config:
        parts.append(f"{config['rows']} rows a tile" if config["rows"] > 1 else "row by row")
    for name, word in (("warps", "warps"), ("num_warps", "warps"), ("stages", "stages")):
        if name in config:
            parts.append(f"{config[name]} {word if config[name] != 1 else word[:-1]}")
    if "num_stages" in config:
        parts.append(f"{config['num_stages']} stages")
    if "splits" in config:
        parts.append(f"{config['splits']} split{'s' if config['splits'] != 1 else ''}")
    return ", ".join(parts)
