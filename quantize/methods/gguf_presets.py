"""Which GGUF type each matrix gets under the names that people know, such as ``q4_k_m``.

The rules are llama.cpp's for the families that are read here, as its quantizer of 2025 has them
(src/llama-quant.cpp), but for two: IQ4_NL in place of Q4_0 where rows are too short for Q2_K and
Q3_K (the same bits, and a tenth to a fifth less error), and stacked projections share the best of
their types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from halfbyte.errors import ConfigError

from ...loaders.base import Checkpoint
from ...loaders.gguf.types import BLOCK_TYPES
from ...loaders.model.families import MODEL_FAMILIES
from ...loaders.model.fused import FUSED
from ...loaders.model.quantizing import is_decoder_linear
from .gguf_blocks import TYPES

MatrixPart = Literal["value", "down", "output"]

_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_LINEAR = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")
_PARTS: dict[str, MatrixPart] = {
    "self_attn.v_proj": "value",
    "self_attn.o_proj": "output",
    "down_proj": "down",
}
# Types of super-blocks -> the type of 32 columns that takes their place in shorter rows.
_SHORT = {
    "Q2_K": "IQ4_NL",
    "Q3_K": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


def _first(count: int) -> Callable[[int, int], bool]:
    return lambda layer, layers: layer < count


def _share(part: int) -> Callable[[int, int], bool]:
    return lambda layer, layers: layer < layers // part


def _all(layer: int, layers: int) -> bool:
    return True


def _more(layer: int, layers: int) -> bool:
    """The first and the last eighth, and every third layer between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


@dataclass(frozen=True, slots=True)
class _Rule:
    """Layers of which a part gets another type.

    Attributes:
        part: which matrices.
        type: theirs.
        layers: whether a layer, of so many, is one.
        shared: only where at least four query heads share a key/value head.
        important: only with importance, or only without; None = in any case.
    """

    part: MatrixPart
    type: str
    layers: Callable[[int, int], bool] = _all
    shared: bool = False
    important: bool | None = None


@dataclass(frozen=True, slots=True)
class Preset:
    """A name that people know.

    Attributes:
        base: type of most matrices.
        file_type: ``general.file_type``.
        rules: exceptions; the first that fits counts.
    """

    base: str
    file_type: int
    rules: tuple[_Rule, ...] = ()


PRESETS: dict[str, Preset] = {
    "q4_0": Preset("Q4_0", 2, (_Rule("down", "Q4_1", _share(8), important=True),)),
    "q4_1": Preset("Q4_1", 3),
    "q5_0": Preset("Q5_0", 8, (_Rule("down", "Q5_1", _share(8), important=True),)),
    "q5_1": Preset("Q5_1", 9),
    "q8_0": Preset("Q8_0", 7),
    "q2_k": Preset(
        "Q2_K",
        10,
        (
            _Rule("value", "Q4_K", shared=True),
            _Rule("value", "Q3_K"),
            _Rule("down", "Q3_K"),
            _Rule("output", "Q3_K"),
        ),
    ),
    "q3_k_m": Preset(
        "Q3_K",
        12,
        (
            _Rule("value", "Q5_K", _first(2)),
            _Rule("value", "Q4_K"),
            _Rule("down", "Q5_K", _share(16)),
            _Rule("down", "Q4_K"),
            _Rule("output", "Q4_K"),
        ),
    ),
    "q4_k_s": Preset(
        "Q4_K", 14, (_Rule("value", "Q5_K", _first(4)), _Rule("down", "Q5_K", _share(8)))
    ),
    "q4_k_m": Preset("Q4_K", 15, (_Rule("value", "Q6_K", _more), _Rule("down", "Q6_K", _more))),
    "q5_k_m": Preset("Q5_K", 17, (_Rule("value", "Q6_K", _more), _Rule("down", "Q6_K", _more))),
    "q6_k": Preset("Q6_K", 18),
    "iq4_nl": Preset(
        "IQ4_NL",
        25,
        (
            _Rule("value", "Q5_K", shared=True),
            _Rule("down", "Q5_K", _share(8), important=False),
        ),
    ),
    "iq4_xs": Preset(
        "IQ4_XS",
        30,
        (
            _Rule("value", "Q5_K", shared=True),
            _Rule("down", "Q5_K", _share(8), important=False),
        ),
    ),
}


def block_types(
    preset: str, model: Checkpoint, important: bool, uniform: bool = False
) -> dict[str, str]:
    """The type of each matrix of a model that becomes blocks, by canonical names.

    Matrices that are not in it stay dense: routers, and those whose rows no block fits.

    Args:
        preset: a key of ``PRESETS``.
        model: to be quantized.
        important: whether the mean square of inputs is known.
        uniform: only types with uniform grids, for GPTQ.

    Raises:
        ConfigError: the preset is unknown, or has a table where ``uniform`` is asked for.
    """
    rules = PRESETS.get(preset)
    if rules is None:
        raise ConfigError(f"GGUF type is {preset!r:.40}; expected one of {', '.join(PRESETS)}")
    if uniform and rules.base.startswith("IQ"):
        raise ConfigError(
            f"GGUF type is {preset}, whose values are those of a table; GPTQ rounds to uniform "
            "grids",
            hint="use q4_0 or q4_k_m, or another method",
        )
    config, found = model.config, dict[str, str]()
    shared = config.num_heads >= 4 * config.num_kv_heads
    tied = config.tie_word_embeddings
    for info in model.tensors():
        if info.name == _HEAD or (info.name == _EMBED and tied):
            kind = "Q8_0" if rules.base == "Q8_0" or info.shape[1] % 256 else "Q6_K"
        elif info.name == _EMBED:
            kind = rules.base
        elif is_decoder_linear(info.name, info.shape):
            kind = _of_linear(rules, info.name, config.num_layers, shared, important)
        else:
            continue
        fitting = _fitting(kind, info.shape[1], uniform)
        if fitting is not None:
            found[info.name] = fitting
    family = next(f for f in MODEL_FAMILIES if f.name == config.architecture)
    return _stacked(found) if family.gguf.stacked else found


def same_type(kind: str, names: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, str]:
    """One type for all matrices, given with their shapes [N, K], or what fits their rows.

    Raises:
        ConfigError: the type cannot be made.
    """
    if kind not in TYPES:
        raise ConfigError(f"GGUF type is {kind!r:.40}; expected one of {', '.join(TYPES)}")
    fitting = {name: _fitting(kind, shape[1], False) for name, shape in names}
    return {name: found for name, found in fitting.items() if found is not None}


def _of_linear(rules: Preset, name: str, layers: int, shared: bool, important: bool) -> str:
    found = _LINEAR.fullmatch(name)
    assert found is not None
    layer, module = int(found[1]), found[2]
    part = next((p for end, p in _PARTS.items() if module.endswith(end)), None)
    for rule in rules.rules:
        wanted = rule.part == part and rule.layers(layer, layers)
        if wanted and (shared or not rule.shared) and rule.important in (None, important):
            return rule.type
    return rules.base


def _fitting(kind: str, columns: int, uniform: bool) -> str | None:
    """The type, or what takes its place in rows that its blocks do not fill."""
    if columns % TYPES[kind].elements:
        kind = _SHORT.get(kind, kind)
    if uniform and kind == "IQ4_NL":
        kind = "Q4_0"
    return None if columns % TYPES[kind].elements else kind


def _stacked(types: dict[str, str]) -> dict[str, str]:
    """One type, the most bits, for what is one tensor in the family's files."""
    sizes = {kind.name: kind.nbytes / kind.elements for kind in BLOCK_TYPES.values()}
    out = dict(types)
    for name in types:
        prefix, _, rest = name.partition("self_attn." if "self_attn." in name else "mlp.")
        del rest
        for parts in FUSED.values():
            names = [f"{prefix}{part}.weight" for part in parts]
            if name in names:
                kinds = {types[n] for n in names if n in types}
                best = max(sorted(kinds), key=lambda kind: sizes[kind])
                out |= {n: best for n in names if n in types}
    return out
