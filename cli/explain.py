"""``halfbyte explain``: which kernel each layer would take on a device, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfbyte.choices import ActivationsName

from .console import clean, note, wrapped
from .density import density_table

if TYPE_CHECKING:
    from ..engine.advise.density import Density
    from ..engine.advise.explain import ExplainedRow
    from ..engine.config import EngineConfig
    from ..kernels.device.gpus import Device
    from ..loaders.base import Checkpoint


def explain(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Local file or folder, or a pulled model.")
    ] = "smollm2",
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="NAME",
            help="cpu, sm_80 ... sm_120 or a product such as H100; default: what is here.",
        ),
    ] = "",
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Activations in float16 instead of bfloat16.")
    ] = False,
    exact: Annotated[bool, typer.Option("--exact", help="As the engine's option.")] = False,
    activations: Annotated[
        ActivationsName, typer.Option("--activations", help="As the engine's option.")
    ] = "auto",
    context: Annotated[
        int, typer.Option("--context", min=1, metavar="TOKENS", help="Context of decode steps.")
    ] = 4096,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the kernel, tile and split of each layer and number of rows; loads no weights."""
    from ..engine.advise.density import density_facts
    from ..engine.backends.activations import check_activations
    from ..engine.config import EngineConfig
    from ..kernels.device.gpus import gpu
    from ..loaders import open_checkpoint
    from ..loaders.store.model_store import resolve_model

    path = resolve_model(model)
    on_cpu = device.lower() == "cpu"
    place = None if on_cpu else gpu(device) if device else local_device()
    config = EngineConfig(exact=exact, activations=activations)
    checkpoint = open_checkpoint(path)
    try:
        check_activations(activations, checkpoint)
        if place is None:
            if not on_cpu:
                note("no GPU here: the CPU's kernels; for others --device, such as sm_90")
            facts, about, rows, bits = _on_cpu(checkpoint, fp16, config)
        else:
            facts, about, rows, bits = _on_gpu(checkpoint, place, fp16, config, context)
    finally:
        checkpoint.close()
    if as_json:
        import json

        shown = {"model": str(path), "device": facts, "exact": exact}
        shown |= {"rows": [row.facts() for row in rows], "bits_per_weight": density_facts(bits)}
        print(json.dumps(shown, indent=1, ensure_ascii=False))
    else:
        print(render(rows, about) + "\n\n" + density_table(density_facts(bits)))


_Explained = tuple[dict[str, Any], str, "list[ExplainedRow]", "list[Density]"]


def _on_cpu(checkpoint: Checkpoint, fp16: bool, config: EngineConfig) -> _Explained:
    """The device as JSON, in words, its rows, and bits of weights. Raises ConfigError."""
    from halfbyte.errors import ConfigError

    from ..bench.machine import cpu_model
    from ..engine.advise.density import densities
    from ..engine.advise.explain import explain_cpu, packed_for
    from ..engine.backends.cpu import make_cpu_ops

    if fp16:
        raise ConfigError("--fp16 is for GPUs; the CPU's kernels compute in float32")
    ops = make_cpu_ops(config)
    about = f"{cpu_model()}: {ops.detail}. M: rows of activations."
    bits = densities(checkpoint, lambda one: packed_for(one, ops))
    return {"name": cpu_model(), "kernels": ops.detail}, about, explain_cpu(checkpoint, ops), bits


def _on_gpu(
    checkpoint: Checkpoint, place: Device, fp16: bool, config: EngineConfig, context: int
) -> _Explained:
    """As :func:`_on_cpu`. Raises ConfigError without triton."""
    from halfbyte.errors import ConfigError

    from ..engine.backends.activations import chosen_rule, refuse_rules
    from ..kernels.tables import load_tables
    from ..loaders.store.model_store import cache_root

    try:
        from ..engine.advise.capacity import packed
        from ..engine.advise.density import densities
        from ..engine.advise.explain_triton import explain as explain_model
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "triton":
            raise
        raise ConfigError("triton is not installed", hint="pip install triton") from None
    refuse_rules(config, "cuda_triton", "int8-block32")
    tables = load_tables(place, cache_root() / "tables")
    rows = explain_model(
        checkpoint,
        place,
        tables=tables,
        fp16=fp16,
        exact=config.exact,
        context=context,
        rule=chosen_rule(config) or "float",
    )
    facts = {"name": place.name, "arch": place.arch, "sms": place.sms}
    bits = densities(checkpoint, lambda one: packed(one, "triton", place.arch)[1])
    return facts, gpu_text(place), rows, bits


def gpu_text(device: Device) -> str:
    """A GPU, and how to read its rows."""
    return (
        f"{device.name}: sm_{device.arch}, {device.sms} multiprocessors. "
        "M: rows of activations; splits are those of a line's largest M."
    )


def local_device() -> Device | None:
    """This machine's first GPU, or None."""
    import torch

    from ..kernels.device.gpus import Device

    if not torch.cuda.is_available() or torch.version.hip is not None:
        return None
    found = torch.cuda.get_device_properties(0)
    return Device(found.name, 10 * found.major + found.minor, found.multi_processor_count)


def render(rows: Sequence[ExplainedRow], about: str) -> str:
    """The rows as text; neighbouring M that take the same share lines."""
    parts = [wrapped("", about, indent=0)]
    for _, same in groupby(rows, key=lambda row: (row.layers, row.module, row.shape, row.format)):
        product = list(same)
        first = product[0]
        size = "" if first.shape is None else f", {first.shape[0]} x {first.shape[1]}"
        family = "" if first.family == "attention" else _held(first)
        head = f"{layer_text(first.layers)}: {first.module}{size}, {first.format}{family}"
        if first.family == "attention":
            head += f", {first.detail}"
        parts.append("\n".join([wrapped("", head, indent=4).lstrip(), *_product_lines(product)]))
    return clean("\n\n".join(parts))


def _held(row: ExplainedRow) -> str:
    return f", {row.family}, {row.activations} inputs"


def _product_lines(rows: Sequence[ExplainedRow]) -> Iterator[str]:
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


def _reasons(row: ExplainedRow) -> dict[str, str]:
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
    if "inputs" in config:
        parts.append(f"{config['inputs']} inputs")
    if "lanes" in config:
        parts.append(f"{config['lanes']} rows of the weight side by side")
    if "keys" in config:
        parts.append(f"{config['keys']} keys at a time")
    if "tokens" in config:
        parts.append(f"{config['tokens']} tokens together")
    return ", ".join(parts)
