"""``halfbyte inspect``: what a checkpoint holds, from its headers alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import clean, columns, human_bytes, human_count, one_line, wrapped

if TYPE_CHECKING:
    from ..loaders.base import Checkpoint, TensorInfo


def inspect(
    path: Annotated[
        str, typer.Argument(metavar="MODEL", help="Local file or folder, or a pulled model.")
    ] = "smollm2",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List every tensor.")] = False,
) -> None:
    """Show architecture, formats, sizes and memory need; reads headers, loads no weights."""
    from ..loaders import open_checkpoint
    from ..loaders.store.model_store import resolve_model

    checkpoint = open_checkpoint(resolve_model(path))
    try:
        facts = describe(checkpoint, path)
    finally:
        checkpoint.close()
    if as_json:
        import json

        print(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        print(render(facts, verbose=verbose))


def describe(checkpoint: Checkpoint, model: str = "") -> dict[str, Any]:
    """Facts about a checkpoint as plain JSON types; sizes in bytes, from headers only.

    ``model`` is the name that the user gave it.
    """
    from halfbyte.errors import TokenizerError

    config, report = checkpoint.config, checkpoint.report()
    tensors = []
    for info in checkpoint.tensors():
        params = math.prod(info.shape)
        tensors.append(
            {
                "name": info.name,
                "shape": list(info.shape),
                "format": info.label,
                "claim": info.claim or None,
                "checks": list(report.tensors[info.name].checks),
                "activations": _activations(info),
                "bytes": info.nbytes,
                "params": params,
                "bits_per_weight": _bits(info.nbytes, params),
            }
        )
    try:
        source = checkpoint.tokenizer()
        tokenizer: dict[str, Any] = {
            "kind": source.kind,
            "pre": source.pre or None,
            "chat_template": source.chat_template is not None or "default" in source.chat_templates,
            "named_templates": sorted(source.chat_templates.keys() - {"default"}),
            "bos_id": source.bos_id,
            "eos_ids": list(source.eos_ids),
        }
    except TokenizerError as error:
        tokenizer = {"kind": None, "problem": error.message, "chat_template": False}
    size = sum(tensor["bytes"] for tensor in tensors)
    params = sum(tensor["params"] for tensor in tensors)
    # As the engine counts them, which this command must not load; a test compares.
    vectors = 2 * config.num_layers * config.num_kv_heads
    kv = vectors * config.head_dim
    return {
        "model": model or checkpoint.path.name,
        "path": str(checkpoint.path),
        "name": config.name,
        "kind": checkpoint.kind,
        "architecture": config.architecture,
        "config": asdict(config),
        "files": dict(report.files),
        "size": size,
        "params": params,
        "bits_per_weight": _bits(size, params),
        "formats": _tally(tensors, lambda tensor: tensor["format"]),
        "modules": _by_module(tensors),
        "kv_bytes_per_token": {"float32": 4 * kv, "float16": 2 * kv, "int8": kv + 4 * vectors},
        "tokenizer": tokenizer,
        "decisions": list(report.decisions),
        "warnings": list(report.warnings),
        "tensors": tensors,
    }


def _activations(info: TensorInfo) -> str | None:
    """How the C kernels round a matrix's inputs by default; None for what is no matrix."""
    from ..kernels.cpu.inputs import default_rule
    from ..kernels.formats.weight_format import input_rounding

    if len(info.shape) != 2:
        return None
    return input_rounding(info.format, default_rule(info.format) if info.format else "float")


def _by_module(tensors: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Format -> module (``q_proj``) -> the figures of its tensors over all layers."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for label in dict.fromkeys(tensor["format"] for tensor in tensors):
        alike = [tensor for tensor in tensors if tensor["format"] == label]
        out[label] = _tally(alike, lambda tensor: _module(tensor["name"]))
    return out


def _module(name: str) -> str:
    """``q_proj`` of ``model.layers.7.self_attn.q_proj.weight``; a bias keeps its ending."""
    owner, _, kind = name.rpartition(".")
    module = owner.rpartition(".")[2] or name
    return module if kind == "weight" else f"{module}.{kind}"


def _tally(
    tensors: list[dict[str, Any]], key: Callable[[dict[str, Any]], str]
) -> dict[str, dict[str, Any]]:
    """Tensors, bytes, weights and bits of those that share a key, the largest first."""
    out: dict[str, dict[str, Any]] = {}
    for tensor in tensors:
        entry = out.setdefault(key(tensor), {"tensors": 0, "bytes": 0, "params": 0})
        entry["tensors"] += 1
        entry["bytes"] += tensor["bytes"]
        entry["params"] += tensor["params"]
    for entry in out.values():
        entry["bits_per_weight"] = _bits(entry["bytes"], entry["params"])
    return dict(sorted(out.items(), key=lambda item: -item[1]["bytes"]))


def _bits(nbytes: int, params: int) -> float:
    return round(8 * nbytes / params, 3) if params else 0.0


def render(facts: dict[str, Any], *, verbose: bool) -> str:
    """The facts as text that fits the terminal."""
    config, tokenizer, kv = facts["config"], facts["tokenizer"], facts["kv_bytes_per_token"]
    rope, context = config["rope"], config["max_position"]
    heads = f"{config['num_heads']} heads of {config['head_dim']}"
    if config["num_kv_heads"] != config["num_heads"]:
        heads += f", {config['num_kv_heads']} for keys and values"
    special = f", eos {', '.join(map(str, tokenizer.get('eos_ids', ()))) or 'none'}"
    kind = tokenizer["kind"] or f"none ({tokenizer.get('problem', '')})"
    pre = f" ({tokenizer['pre']})" if tokenizer.get("pre") else ""
    template = "yes" if tokenizer["chat_template"] else "none"
    if tokenizer.get("named_templates"):
        template += f"; by name: {', '.join(tokenizer['named_templates'])}"
    window = max(config["sliding_window"], default=0)
    rows = {
        "model": facts["model"],
        "its own name": facts["name"] if facts["name"] != facts["model"] else "",
        "file": f"{facts['path']} ({facts['kind']})",
        "architecture": f"{facts['architecture']}, {config['num_layers']} layers, "
        f"width {config['hidden_size']}, MLP {config['intermediate_size']}",
        "attention": heads + (f", window {window}" if window else ""),
        "rope": f"{rope['kind']}, theta {rope['theta']:g}"
        + (f", factor {rope['factor']:g}" if rope["kind"] != "default" else ""),
        "context": f"{context} tokens",
        "vocabulary": f"{config['vocab_size']} tokens"
        + (", embedding shared with the output" if config["tie_word_embeddings"] else ""),
        "tokenizer": f"{kind}{pre}{special}",
        "chat template": template,
        "weights": f"{human_count(facts['params'])}, {human_bytes(facts['size'])}, "
        f"{facts['bits_per_weight']:.2f} bits each",
        "config says": "; ".join(_claims(facts)),
        "activations": "; ".join(_roundings(facts)),
        "KV per token": ", ".join(f"{human_bytes(size)} {name}" for name, size in kv.items()),
        "KV of context": ", ".join(
            f"{human_bytes(size * context)} {name}" for name, size in kv.items()
        ),
    }
    parts = ["\n".join(wrapped(label, text) for label, text in rows.items() if text)]
    parts.append(_format_table(facts))
    for title in ("decisions", "warnings"):
        lines = [wrapped("  -", text, indent=4) for text in facts[title]]
        if lines:
            parts.append("\n".join([title, *lines]))
    if verbose:
        parts.append(_tensor_list(facts["tensors"]))
    return clean("\n\n".join(parts))


def _claims(facts: dict[str, Any]) -> list[str]:
    """What the config says of the weights, each once."""
    return list(dict.fromkeys(t["claim"] for t in facts["tensors"] if t["claim"]))


def _roundings(facts: dict[str, Any]) -> Iterator[str]:
    """How inputs are rounded on a CPU by default, with the formats that it holds for."""
    matrices = [t for t in facts["tensors"] if t["activations"]]
    for how in dict.fromkeys(t["activations"] for t in matrices):
        labels = dict.fromkeys(one_line(t["format"]) for t in matrices if t["activations"] == how)
        yield f"{how} ({', '.join(labels)})"


def _format_table(facts: dict[str, Any]) -> str:
    """A line for each format, and below it one for each module that has it."""
    rows: list[tuple[str, ...]] = []
    for label, entry in facts["formats"].items():
        rows.append(_figures(one_line(label), entry))
        parts = facts["modules"][label].items()
        rows += [_figures(f"  {one_line(module)}", part) for module, part in parts]
    return columns(("format, modules", "tensors", "weights", "size", "bits each"), rows)


def _figures(label: str, entry: dict[str, Any]) -> tuple[str, ...]:
    return (
        label,
        str(entry["tensors"]),
        human_count(entry["params"]),
        human_bytes(entry["bytes"]),
        f"{entry['bits_per_weight']:.2f}",
    )


def _tensor_list(tensors: list[dict[str, Any]]) -> str:
    """Every tensor, and below it what it is and what was checked of it."""
    out = ["tensors"]
    for tensor in tensors:
        facts = [
            tensor["format"],
            " x ".join(map(str, tensor["shape"])) or "scalar",
            human_bytes(tensor["bytes"]),
            f"{tensor['bits_per_weight']:.2f} bits each",
        ]
        said = [f"config: {tensor['claim']}"] if tensor["claim"] else []
        text = "; ".join([", ".join(facts), *said, *tensor["checks"]])
        out += [wrapped("", tensor["name"], indent=2), wrapped("", text, indent=6)]
    return "\n".join(out)
