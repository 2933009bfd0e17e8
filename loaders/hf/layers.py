"""A part of :mod:`.config`: what it says layer by layer: windows, rotary embeddings, experts."""

from __future__ import annotations

from typing import Any

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ..files.fields import Fields, shown
from ..model import checks as limits
from ..model.config import DeltaLayers, Experts
from ..model.families import EXPERT_COUNTS
from ..model.family import ModelFamily, WindowRule


def sliding_windows(
    read: Fields, rule: WindowRule, layers: int, rotated: tuple[bool, ...] = ()
) -> tuple[int, ...]:
    """Window per layer in tokens, 0 = full; empty when no layer has one.

    ``layer_types`` wins over the rule where the file has it. ``rotated`` says which layers have a
    rotary embedding (``unrotated`` asks).

    Raises:
        CheckpointError: a value is of the wrong type or out of bounds, or there is no window for
            a layer that must have one.
        UnsupportedModelError: another kind of layer.
    """
    window = _window(read, rule)
    types = read.values.get("layer_types")
    if rule == "none" or types is None:
        per_layer = tuple(window if _slides(read, rule, i, rotated) else 0 for i in range(layers))
        return per_layer if any(per_layer) else ()
    _check_types(read, types, layers, "sliding_attention")
    if "sliding_attention" in types and not window:
        raise read.error("layer_types", "sliding_attention", "full_attention: there is no window")
    per_layer = tuple(window if kind == "sliding_attention" else 0 for kind in types)
    return per_layer if any(per_layer) else ()


def _check_types(read: Fields, types: Any, layers: int, other: str) -> None:
    """Refuse a ``layer_types`` that does not say full_attention or ``other`` of each layer."""
    if not isinstance(types, list) or len(types) != layers:
        raise read.error("layer_types", types, f"a list of {layers} layer types")
    for kind in types:
        if kind not in ("full_attention", other):
            raise UnsupportedModelError(
                f"{read.name('layer_types')} holds {shown(kind)}; supported are full_attention "
                f"and {other}"
            )


def _window(read: Fields, rule: WindowRule) -> int:
    """Tokens of the sliding window, 0 when the model has none."""
    if rule == "none":
        return 0
    if rule in ("even", "pattern"):  # layers without one would be another model
        return read.integer("sliding_window", 1, limits.MAX_POSITION)
    if rule in ("all", "optional_pattern"):
        return read.integer("sliding_window", 0, limits.MAX_POSITION, 0)
    if not read.flag("use_sliding_window", False):
        return 0
    absent = 0 if rule == "unrotated" else 4096
    return read.integer("sliding_window", 0, limits.MAX_POSITION, absent)


def _slides(read: Fields, rule: WindowRule, layer: int, rotated: tuple[bool, ...]) -> bool:
    """Whether the rule gives ``layer`` the window."""
    if rule == "switched":
        return layer >= read.integer("max_window_layers", 0, 1 << 31, 28)
    if rule == "unrotated":
        return not rotated[layer]
    if rule == "even":
        return layer % 2 == 0
    if rule in ("pattern", "optional_pattern"):
        key = "sliding_window_pattern"
        key = key if read.present(key) else "_sliding_window_pattern"
        letters = read.values.get(key)
        if rule == "optional_pattern" and isinstance(letters, str):
            if not letters or set(letters) - {"L", "G"}:
                raise read.error(key, letters, "a number, or letters L and G")
            return letters[layer % len(letters)] == "L"
        return (layer + 1) % read.integer(key, 1, limits.MAX_LAYERS, 6) != 0
    return True


def rotated_layers(read: Fields, layers: int) -> tuple[bool, ...]:
    """SmolLM3: which layers have a rotary embedding (``no_rope_layers`` holds 1 for those).

    Raises CheckpointError for anything but as many ones and zeros as there are layers.
    """
    flags = read.values.get("no_rope_layers")
    if flags is None:
        every = read.integer("no_rope_layer_interval", 1, limits.MAX_LAYERS, 4)
        return tuple((layer + 1) % every != 0 for layer in range(layers))
    if not isinstance(flags, list) or len(flags) < layers or any(f not in (0, 1) for f in flags):
        raise CheckpointError(
            f"{read.name('no_rope_layers')} is {shown(flags)}; expected {layers} ones and zeros"
        )
    return tuple(bool(flag) for flag in flags[:layers])


def read_experts(read: Fields, family: ModelFamily, layers: int) -> Experts | None:
    """The mixture of experts of a family that has one.

    Raises:
        CheckpointError: a value is of the wrong type or out of bounds.
    """
    if not family.experts:
        return None
    most = limits.MAX_EXPERTS // layers
    shared = family.hf.shared_width
    counts = [
        read.integer(key, 0 if shared else 1, most) for key in EXPERT_COUNTS if read.present(key)
    ]
    count = counts[0] if counts else family.experts
    if counts and counts[-1] != count:
        raise read.error(EXPERT_COUNTS[1], counts[-1], f"{count}, as in {EXPERT_COUNTS[0]}")
    if count == 0:
        return None
    step = read.integer("decoder_sparse_step", 1, limits.MAX_LAYERS, 1)
    plain = read.values.get("mlp_only_layers") or []
    if not isinstance(plain, list) or not all(type(i) is int and 0 <= i < layers for i in plain):
        raise read.error("mlp_only_layers", plain, f"layers from 0 to {layers - 1}")
    without = frozenset(plain)
    return Experts(
        count=count,
        per_token=read.integer("num_experts_per_tok", 1, count),
        intermediate_size=read.integer(family.hf.expert_width, 1, limits.MAX_INTERMEDIATE),
        normalize=read.flag("norm_topk_prob", False),
        layers=tuple(i not in without and (i + 1) % step == 0 for i in range(layers)),
        router_bias=family.expert_bias,
        shared_size=read.integer(shared, 1, limits.MAX_INTERMEDIATE) if shared else 0,
    )


def read_delta(read: Fields, layers: int) -> DeltaLayers:
    """The layers of the gated delta rule of a family that has them.

    Raises:
        CheckpointError: a value is of the wrong type or out of bounds.
        UnsupportedModelError: another kind of layer, or no layer with attention.
    """
    every = read.integer("full_attention_interval", 1, limits.MAX_LAYERS, 4)
    types = read.values.get("layer_types")
    if types is None:
        kinds = ("linear_attention", "full_attention")
        types = [kinds[(layer + 1) % every == 0] for layer in range(layers)]
    _check_types(read, types, layers, "linear_attention")
    if "full_attention" not in types:
        raise UnsupportedModelError(
            f"{read.name('layer_types')} has no full_attention; supported are models with at "
            "least one such layer"
        )
    return DeltaLayers(
        key_heads=read.integer("linear_num_key_heads", 1, limits.MAX_HEADS),
        value_heads=read.integer("linear_num_value_heads", 1, limits.MAX_HEADS),
        key_dim=read.integer("linear_key_head_dim", 1, limits.MAX_HEAD_DIM),
        value_dim=read.integer("linear_value_head_dim", 1, limits.MAX_HEAD_DIM),
        kernel=read.integer("linear_conv_kernel_dim", 2, limits.MAX_CONVOLUTION),
        layers=tuple(kind == "linear_attention" for kind in types),
    )
