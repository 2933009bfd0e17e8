"""``halfbyte plan``: what a model needs on a device, what fits, and how fast it could decode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfbyte.choices import KVDtype
from halfbyte.errors import ConfigError

from .console import clean, columns, human_bytes, wrapped
from .density import density_table

if TYPE_CHECKING:
    from ..engine.advise.capacity import Capacity, DeviceMemory, PlanTarget


def plan(
    path: Annotated[
        str, typer.Argument(metavar="MODEL", help="Local file or folder, or a pulled model.")
    ] = "smollm2",
    gpu: Annotated[
        str, typer.Option("--gpu", metavar="NAME", help="Such as H100; cpu is this machine.")
    ] = "cpu",
    ctx: Annotated[
        int, typer.Option("--ctx", metavar="N", help="Tokens a request; 0 = the model's length.")
    ] = 0,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="Requests at once.")] = 1,
    kv_dtype: Annotated[
        KVDtype, typer.Option("--kv-dtype", help="Type of kept keys and values.")
    ] = "auto",
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure this machine's bandwidth again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show memory need, what fits and the decode-speed ceiling; reads headers, loads no weights."""
    from ..engine.advise.capacity import PLANNED_KV, capacity, packed
    from ..engine.advise.density import densities, density_facts
    from ..loaders import open_checkpoint
    from ..loaders.store.model_store import resolve_model

    target: PlanTarget = "cpu" if gpu.lower() == "cpu" else "triton"
    kind = PLANNED_KV[target][0] if kv_dtype == "auto" else kv_dtype
    memory = device_memory(gpu, measure)
    checkpoint = open_checkpoint(resolve_model(path))
    try:
        found = capacity(checkpoint, memory, ctx, batch, kind, target)
        bits = densities(checkpoint, lambda one: packed(one, target, memory.arch)[1])
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "triton":
            raise
        raise ConfigError("triton is not installed", hint="pip install triton") from None
    finally:
        checkpoint.close()
    facts = describe(path, kind, found) | {"bits_per_weight": density_facts(bits)}
    if as_json:
        import json

        print(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        print(render(facts))


def device_memory(name: str, measure: bool = False) -> DeviceMemory:
    """A card by name, or ``cpu``: this machine's free memory and its bandwidth, measured once.

    Raises ConfigError for a card that is not listed, or with ``measure`` for any.
    """
    from ..engine.advise.capacity import CPU_RESERVE, GPU_RESERVE, DeviceMemory

    if name.lower() != "cpu":
        from ..kernels.device.gpus import gpu

        if measure:
            raise ConfigError("--measure is for this machine's CPU; a card's rate is in a table")
        card = gpu(name)
        return DeviceMemory(card.name, card.memory, GPU_RESERVE, card.copy, card.arch)
    from ..bench.machine import cpu_model, known_bandwidth
    from ..engine.backends.cpu_cores import physical_cores
    from ..engine.run.memory import free_memory
    from ..loaders.store.model_store import cache_root

    free = free_memory()
    bandwidth = known_bandwidth(cache_root(), physical_cores(), again=measure)
    return DeviceMemory(cpu_model(), free, CPU_RESERVE, bandwidth)


def describe(name: str, kv: str, found: Capacity) -> dict[str, Any]:
    """The plan as plain JSON types; sizes in bytes."""
    need, memory = found.need, found.memory
    return {
        "model": name,
        "device": memory.name,
        "context": found.context,
        "batch": found.batch,
        "kv_dtype": kv,
        "memory": memory.total,
        "bandwidth": memory.bandwidth,
        "weights": dict(need.by_family),
        "kv": found.batch * need.kv_held(found.context),
        "states": found.batch * need.state,
        "kv_per_token": need.kv_token,
        "kv_tokens": found.kv_tokens,
        "workspace": need.fixed + found.batch * need.row,
        "reserve": memory.reserve,
        "total": found.total,
        "fits": found.fits,
        "max_context": found.max_context,
        "max_batch": found.max_batch,
        "weights_read_per_step": need.read,
        "decode": [
            {
                "batch": rows,
                "tokens_per_s": round(full, 1),
                "tokens_per_s_empty_context": round(empty, 1),
            }
            for rows, full, empty in found.decode
        ],
    }


def render(facts: dict[str, Any]) -> str:
    """The plan as text that fits the terminal."""
    context, batch = facts["context"], facts["batch"]
    head = (
        f"{facts['model']} on {facts['device']}: {human_bytes(facts['memory'])}, "
        f"{facts['bandwidth'] / 1e9:.0f} GB/s"
    )
    rows = [(f"weights, {kind}", size) for kind, size in facts["weights"].items() if size]
    rows.append((f"KV of {batch} x {context} tokens, {facts['kv_dtype']}", facts["kv"]))
    if facts["states"]:
        rows.append((f"states of {batch} texts", facts["states"]))
    rows.append(("workspace, activations, logits", facts["workspace"]))
    rows.append(("reserve: driver, program, fragments", facts["reserve"]))
    total = facts["total"]
    left = facts["memory"] - total
    verdict = f"fits, {human_bytes(left)} to spare" if left >= 0 else "does not fit"
    if left < 0:
        verdict += f", {human_bytes(-left)} too much"
    rows.append(("all", total))
    sizes = columns(("memory", "size"), [(label, human_bytes(size)) for label, size in rows])
    limits = [
        wrapped("verdict", verdict),
        wrapped("longest context", f"{facts['max_context'] or 'none'} (batch {batch})"),
        wrapped("largest batch", f"{facts['max_batch'] or 'none'} (context {context})"),
    ]
    speeds = [
        (
            str(row["batch"]),
            f"{row['tokens_per_s']:.0f}",
            f"{row['tokens_per_s_empty_context']:.0f}",
        )
        for row in facts["decode"]
    ]
    heads = ("decode ceiling, tokens/s", f"at {context} tokens", "at 0 tokens")
    table = columns(heads, [(f"batch {b}", full, empty) for b, full, empty in speeds])
    why = "from memory bandwidth alone: weights and KV read once a step"
    if facts["kv_tokens"]:
        text = f"kv_tokens={facts['kv_tokens']}: without it the KV cache takes half of the memory"
        limits.append(wrapped("engine option", text))
    table += "\n" + wrapped("", why, indent=0)
    bits = density_table(facts["bits_per_weight"])
    parts = [wrapped("", head, indent=0), sizes, bits, "\n".join(limits), table]
    return clean("\n\n".join(parts))
