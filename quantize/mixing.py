"""Bits for each matrix, chosen by what it would lose: within a size, or within a loss.

Matrices that one pass reads together, q, k and v, or gate and up, get the same bits: engines keep
each such group as one matrix.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from halfbyte.errors import ConfigError, QuantizeError

from ..engine.config import EngineConfig
from ..engine.text.tokenizer_thread import LayersDone
from ..kernels.formats.canonical import QuantizedLinear
from ..kernels.formats.weight_format import WeightFormat
from ..loaders.base import Checkpoint
from .methods.base import Quantizer
from .methods.gguf import GGUFQuantizer
from .methods.gguf_presets import same_type
from .methods.mixed import MixedQuantizer
from .recipe import Order, Recipe, make_recipe
from .report.budget import Choice, allocate
from .report.sensitivity import WrittenBits, measure
from .windows import Windows
from .write.folder import folder_dtype
from .write.folder_format import FolderFormat

# Bits that formats of folders may hold, and block types of GGUF files.
_BITS = (2, 3, 4, 5, 6, 8)
_TYPES = ("Q2_K", "Q3_K", "Q4_0", "Q4_K", "Q5_0", "Q5_K", "Q6_K", "Q8_0")
_TOGETHER = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


def mix(
    request: Order,
    model: Checkpoint,
    windows: Windows,
    *,
    budget: float | None = None,
    max_kl: float | None = None,
    config: EngineConfig | None = None,
    progress: LayersDone | None = None,
) -> Recipe:
    """The recipe of a request with bits, or a GGUF type, for each matrix.

    Args:
        request: without bits.
        model: a dense model.
        windows: a text to measure on.
        budget: most bits of a weight on the average over all matrices, as they are written: with
            scales and whatever else the format has beside codes.
        max_kl: most KL divergence that is predicted, nats a token; give one of the two.
        config: how the text goes through the model.
        progress: told after each layer.

    Raises:
        ConfigError: the request has bits of its own, or both limits or none are given.
        QuantizeError: no choice keeps the limit.
    """
    if (budget is None) == (max_kl is None):
        raise ConfigError("--budget and --max-kl: expected one of the two")
    plain = make_recipe(request, model)
    candidates = _candidates(request, model, plain)
    probe = "4" if "4" in candidates else next(name for name in candidates if "4" in name)
    found = measure(
        model,
        windows,
        candidates,
        probe,
        config=config,
        progress=progress,
        size=None if plain.folder is None else _written(plain.folder, model),
    )
    groups = _groups(found.choices)
    limit = None if budget is None else math.floor(budget * found.weights)
    chosen = allocate({key: some for key, (_, some) in groups.items()}, limit, max_kl)
    by_module = {
        module: candidates[chosen.choices[key].name]
        for key, (modules, _) in groups.items()
        for module in modules
    }
    counts = Counter(chosen.choices[key].name for key, (ms, _) in groups.items() for _ in ms)
    settings = plain.settings | {
        "bits": ", ".join(f"{name} x {count}" for name, count in sorted(counts.items())),
        "budget" if budget is not None else "max_kl": budget if budget is not None else max_kl,
        "predicted KL": round(chosen.cost, 4),
    }
    # Experts that no token reached were not measured: they get what most have.
    usual = candidates[counts.most_common(1)[0][0]]
    for name in plain.matrices:
        by_module.setdefault(name.removesuffix(".weight"), usual)
    for name in plain.others:
        by_module[name.removesuffix(".weight")] = plain.quantizer
    return replace(plain, quantizer=MixedQuantizer(by_module), settings=settings)


def _written(folder: FolderFormat, model: Checkpoint) -> WrittenBits:
    """Bits of a matrix as a folder has it; the same for all of one shape and format."""
    dtype = getattr(torch, folder_dtype(model))
    known: dict[tuple[tuple[int, int], WeightFormat], int] = {}

    def bits(name: str, weight: QuantizedLinear) -> int:
        key = weight.shape, weight.format
        if key not in known:
            tensors = folder.encode(name.removesuffix(".weight"), weight, dtype)
            known[key] = 8 * sum(tensor.nbytes for tensor in tensors.values())
        return known[key]

    return bits


def _candidates(request: Order, model: Checkpoint, plain: Recipe) -> dict[str, Quantizer]:
    """Quantizers by their names; those that the format cannot hold are left out."""
    if request.format is not None and request.format.startswith("gguf:"):
        if request.method != "rtn":
            raise ConfigError("types are chosen for each matrix with --method rtn")
        shapes = [(i.name, i.shape) for i in model.tensors() if i.name in plain.matrices]
        made: dict[str, Quantizer] = {}
        for kind in _TYPES:
            types = same_type(kind, shapes)
            # A type that no row fits is another one's place-taker.
            if len(types) == len(shapes) and kind in types.values():
                made[kind] = GGUFQuantizer(types)
        return made
    if request.bits is not None or request.scheme is not None:
        raise ConfigError("--budget and --max-kl choose the bits; leave out --bits and --scheme")
    if plain.trained is not None or "bits" not in plain.settings:
        raise ConfigError(f"--method {request.method} has one kind of codes for all matrices")
    found: dict[str, Quantizer] = {}
    for bits in _BITS:
        try:
            found[str(bits)] = make_recipe(replace(request, bits=bits), model).quantizer
        except (ConfigError, QuantizeError):
            continue
    if len(found) < 2:
        raise ConfigError(f"--format {plain.settings['format']} holds one number of bits only")
    return found


def _groups(
    choices: Mapping[str, Sequence[Choice]],
) -> dict[str, tuple[list[str], list[Choice]]]:
    """Modules that are read together, and the sums of their choices."""
    together: dict[str, list[str]] = {}
    for module in choices:
        stem, _, last = module.rpartition(".")
        together.setdefault(f"{stem}.{_TOGETHER.get(last, last)}", []).append(module)
    found: dict[str, tuple[list[str], list[Choice]]] = {}
    for key, modules in together.items():
        sums: dict[str, tuple[int, float]] = {}
        for module in modules:
            for choice in choices[module]:
                size, cost = sums.get(choice.name, (0, 0.0))
                sums[choice.name] = size + choice.size, cost + choice.cost
        found[key] = modules, [Choice(name, *both) for name, both in sums.items()]
    return found
