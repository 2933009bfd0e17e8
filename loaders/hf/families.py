"""What sets the families of Hugging Face folders apart: defaults, biases, windows, rotary rules.

Facts only; :mod:`.config` reads by them. Defaults are those of transformers, because a file
that leaves a key out means transformers' value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ..files.fields import Fields, shown
from ..model import checks as limits
from ..model.config import Activation, Experts

# Window rules: none at all, all layers, on a switch from some layer on, where there is no
# rotary embedding, every second layer, or all but every sixth.
WindowRule = Literal["none", "all", "switched", "all_switched", "unrotated", "even", "pattern"]

_SILU: dict[str, Activation] = {"silu": "silu", "swish": "silu"}
_TANH: dict[str, Activation] = {"gelu_pytorch_tanh": "gelu_tanh"}
# Gemma 1's files say "gelu" and mean the tanh form; transformers reads them so, too.
_GEMMA1: dict[str, Activation] = {**_TANH, "gelu": "gelu_tanh"}


@dataclass(frozen=True, slots=True)
class Family:
    """One ``model_type``.

    Attributes:
        defaults: values of keys that a file may leave out; a null in the file is not replaced.
        activations: accepted names of the MLP's activation.
        activation_key: key that names it.
        qkv_bias: whether q, k and v have biases when ``attention_bias`` is not consulted.
        attention_bias: ``attention_bias`` switches the biases of q, k, v and o.
        mlp_bias: ``mlp_bias`` switches the biases of the MLP.
        qk_norm: q and k are normed per head.
        windows: which layers have the sliding window.
        partial_rotary: ``partial_rotary_factor`` may be less than 1.
        gemma: scaled embeddings, norms by 1 + w, ``query_pre_attn_scalar``.
        post_norms: four norms a layer.
        softcaps: the soft cap keys that it honours.
        local_rope: sliding layers have a rotary rule of their own.
        own_keys: keys that other families must not have.
        experts: number of experts where the file names none; 0 = the family has no experts.
        expert_width: key of the width of an expert's MLP.
    """

    defaults: Mapping[str, Any]
    activations: Mapping[str, Activation] = field(default_factory=lambda: _SILU)
    activation_key: str = "hidden_act"
    qkv_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: WindowRule = "none"
    partial_rotary: bool = False
    gemma: bool = False
    post_norms: bool = False
    softcaps: tuple[str, ...] = ()
    local_rope: bool = False
    own_keys: tuple[str, ...] = ()
    experts: int = 0
    expert_width: str = "intermediate_size"


_GEMMA: dict[str, Any] = {
    "vocab_size": 256000,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
}
_GEMMA2: dict[str, Any] = {
    **_GEMMA,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_GEMMA3: dict[str, Any] = {
    **_GEMMA2,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
}
# Two spellings of one number; which one is written depends on the version of transformers.
_EXPERT_COUNTS = ("num_experts", "num_local_experts")
_SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")

FAMILIES: dict[str, Family] = {
    "llama": Family({"max_position_embeddings": 2048}, attention_bias=True, mlp_bias=True),
    "mistral": Family(
        {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
        windows="all",
    ),
    "qwen2": Family(
        {"num_key_value_heads": 32, "max_position_embeddings": 32768},
        qkv_bias=True,
        windows="switched",
    ),
    "qwen3": Family(
        {"num_key_value_heads": 32, "max_position_embeddings": 32768, "head_dim": 128},
        attention_bias=True,
        qk_norm=True,
        windows="switched",
    ),
    "mixtral": Family(
        {
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,  # no key of its files: its shares always sum to 1
        },
        windows="all",
        own_keys=_EXPERT_COUNTS,
        experts=8,
    ),
    "qwen3_moe": Family(
        {
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
        attention_bias=True,
        qk_norm=True,
        windows="all_switched",
        own_keys=_EXPERT_COUNTS,
        experts=128,
        expert_width="moe_intermediate_size",
    ),
    "smollm3": Family(
        {
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
            "rope_theta": 2000000.0,
        },
        attention_bias=True,
        mlp_bias=True,
        windows="unrotated",
        own_keys=("no_rope_layers",),
    ),
    "phi3": Family(
        {
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        },
        windows="all",
        partial_rotary=True,
    ),
    "gemma": Family(
        {**_GEMMA, "num_attention_heads": 16, "num_key_value_heads": 16},
        activations=_GEMMA1,
        attention_bias=True,
        gemma=True,
    ),
    "gemma2": Family(
        _GEMMA2,
        activations=_TANH,
        activation_key="hidden_activation",
        attention_bias=True,
        windows="even",
        gemma=True,
        post_norms=True,
        softcaps=_SOFTCAPS,
    ),
    "gemma3_text": Family(
        _GEMMA3,
        activations=_TANH,
        activation_key="hidden_activation",
        attention_bias=True,
        qk_norm=True,
        windows="pattern",
        gemma=True,
        post_norms=True,
        softcaps=_SOFTCAPS[1:],
        local_rope=True,
    ),
}


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
    if not isinstance(types, list) or len(types) != layers:
        raise read.error("layer_types", types, f"a list of {layers} layer types")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedModelError(
                f"{read.name('layer_types')} holds {shown(kind)}; supported are full_attention "
                "and sliding_attention"
            )
    if "sliding_attention" in types and not window:
        raise read.error("layer_types", "sliding_attention", "full_attention: there is no window")
    per_layer = tuple(window if kind == "sliding_attention" else 0 for kind in types)
    return per_layer if any(per_layer) else ()


def _window(read: Fields, rule: WindowRule) -> int:
    """Tokens of the sliding window, 0 when the model has none."""
    if rule == "none":
        return 0
    if rule in ("even", "pattern"):  # layers without one would be another model
        return read.integer("sliding_window", 1, limits.MAX_POSITION)
    if rule == "all":
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
    if rule == "pattern":
        key = "sliding_window_pattern"
        key = key if read.present(key) else "_sliding_window_pattern"
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


def experts(read: Fields, kind: Family, layers: int) -> Experts | None:
    """The mixture of experts of a family that has one.

    Raises:
        CheckpointError: a value is of the wrong type or out of bounds.
    """
    if not kind.experts:
        return None
    most = limits.MAX_EXPERTS // layers
    counts = [read.integer(key, 1, most) for key in _EXPERT_COUNTS if read.present(key)]
    count = counts[0] if counts else kind.experts
    if counts and counts[-1] != count:
        raise read.error(_EXPERT_COUNTS[1], counts[-1], f"{count}, as in {_EXPERT_COUNTS[0]}")
    step = read.integer("decoder_sparse_step", 1, limits.MAX_LAYERS, 1)
    plain = read.values.get("mlp_only_layers") or []
    if not isinstance(plain, list) or not all(type(i) is int and 0 <= i < layers for i in plain):
        raise read.error("mlp_only_layers", plain, f"layers from 0 to {layers - 1}")
    without = frozenset(plain)
    return Experts(
        count=count,
        per_token=read.integer("num_experts_per_tok", 1, count),
        intermediate_size=read.integer(kind.expert_width, 1, limits.MAX_INTERMEDIATE),
        normalize=read.flag("norm_topk_prob", False),
        layers=tuple(i not in without and (i + 1) % step == 0 for i in range(layers)),
    )
