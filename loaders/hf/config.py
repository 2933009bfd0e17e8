"""``config.json`` of a Hugging Face folder to a :class:`ModelConfig`."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ..files.fields import Fields, shown
from ..model import checks as limits
from ..model.config import Activation, ModelConfig, RopeConfig
from ..model.families import family_of_config, family_of_type, model_types
from ..model.family import ModelFamily
from ..model.multipliers import LEAST, MOST, with_multipliers
from ..model.report import LoadReport
from .layers import read_delta, read_experts, rotated_layers, sliding_windows
from .rope import read_local_rope, read_rope

# Keys of counts and of what a tensor's sides follow from, for messages.
_KEYS: dict[str, str] = {
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "rotary": "partial_rotary_factor",
    "windows": "layer_types",
    "local": "layer_types",
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "vocab": "vocab_size",
    "q": "num_attention_heads x head_dim",
    "kv": "num_key_value_heads x head_dim",
    "inner": "intermediate_size",
    "experts": "num_experts",
    "shared_inner": "shared_expert_intermediate_size",
    "expert_inner": "moe_intermediate_size",
    "delta_keys": "linear_num_key_heads x linear_key_head_dim",
    "delta_values": "linear_num_value_heads x linear_value_head_dim",
    "delta_mixed": "2 x linear_num_key_heads x linear_key_head_dim + linear_num_value_heads x "
    "linear_value_head_dim",
    "delta_heads": "linear_num_value_heads",
    "delta_key_heads": "linear_num_key_heads",
    "delta_value": "linear_value_head_dim",
    "delta_kernel": "linear_conv_kernel_dim",
    "one": "1",
}

# Keys that change the numbers in a way these families do not have -> the value without effect.
_NEUTRAL: dict[str, Any] = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": None,
    "num_local_experts": 0,
    "num_experts": 0,
    "no_rope_layers": None,
    "clip_qkv": None,
    "use_bidirectional_attention": False,
}


def read_config(
    where: str,
    values: dict[str, Any],
    generation: Fields,
    name: str,
    weights_dtype: str,
    report: LoadReport,
) -> ModelConfig:
    """The architecture that a ``config.json`` describes.

    Args:
        where: path of the file for messages.
        values: the parsed file.
        generation: fields of ``generation_config.json``, or of nothing.
        name: display name of the model.
        weights_dtype: type of the stored matrices, used when the config names none.
        report: gets the decisions taken.

    Raises:
        UnsupportedModelError: another model type, or a value that is not implemented.
        CheckpointError: a field is missing, of the wrong type or out of bounds.
    """
    read, family = _open(where, values, report)
    facts = family.hf
    hidden = read.integer("hidden_size", 1, limits.MAX_HIDDEN)
    layers = read.integer("num_hidden_layers", 1, limits.MAX_LAYERS)
    heads = read.integer("num_attention_heads", 1, limits.MAX_HEADS)
    vocab = read.integer("vocab_size", 1, limits.MAX_VOCAB)
    position = read.integer("max_position_embeddings", 1, limits.MAX_POSITION)
    head_dim = _head_dim(read, hidden, heads)
    rope = read_rope(read, head_dim, position, family)
    rotated = rotated_layers(read, layers) if facts.windows == "unrotated" else ()
    bias = facts.attention_bias and read.flag("attention_bias", False)
    config = ModelConfig(
        architecture=family.name,
        vocab_size=vocab,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=read.integer("num_key_value_heads", 1, limits.MAX_HEADS, heads),
        head_dim=head_dim,
        intermediate_size=read.integer("intermediate_size", 1, limits.MAX_INTERMEDIATE),
        rms_norm_eps=read.number(facts.norm_eps, 0.0, 1.0, 1e-6),
        max_position=_context(rope, position, report),
        rope=rope,
        interleaved_rope=family.interleaved_rope,
        tie_word_embeddings=read.flag("tie_word_embeddings", False),
        qkv_bias=bias or family.qkv_bias,
        o_bias=facts.attention_bias and bool(facts.o_bias) and read.flag(facts.o_bias, False),
        whole_qk_norm=family.whole_qk_norm,
        mlp_bias=family.expert_bias or (facts.mlp_bias and read.flag("mlp_bias", False)),
        qk_norm=family.qk_norm,
        sinks=family.sinks,
        sliding_window=sliding_windows(read, facts.windows, layers, rotated),
        activation=_activation(read, family),
        post_norms=family.post_norms,
        pre_norms=family.pre_norms,
        parallel=family.parallel,
        centered_norms=family.centered_norms,
        attn_softcap=_softcap(read, family, "attn_logit_softcapping"),
        experts=read_experts(read, family, layers),
        logit_softcap=_softcap(read, family, "final_logit_softcapping"),
        bos_token_id=next(iter(_ids(read, "bos_token_id", vocab, report)), None),
        eos_token_ids=_end_ids((generation, read), vocab, report),
        dtype=_dtype(read, weights_dtype),
        name=name,
    )
    if family.gemma:
        config = _gemma(read, family, config)
    if family.multipliers or family.logit_scale:
        config = _multiplied(read, family, config, report)
    if family.delta:
        config = replace(config, delta=read_delta(read, layers), norm_offset=1.0)
    if family.local_rope and config.sliding_window:
        local = tuple(window > 0 for window in config.sliding_window)
        config = replace(config, rope_local=read_local_rope(read, head_dim), local_layers=local)
    if family.unrotated_full and read.present("sliding_window"):
        rotated = tuple(config.window(layer) > 0 for layer in range(layers))
    if not all(rotated):
        unrotated = tuple(not has_rope for has_rope in rotated)
        config = replace(config, rope_local=RopeConfig(kind="none"), local_layers=unrotated)
    limits.check_heads(where, config, keys_of(values))
    if config.experts is not None:
        count, few = config.experts.count, config.experts.per_token
        report.decide(f"mixture of {count} experts, {few} for each token")
    if rope.kind != "default":
        report.decide(f"rotary scaling: {rope.kind}, factor {rope.factor:g}")
    return config


def keys_of(values: Mapping[str, Any]) -> dict[str, str]:
    """The keys that counts and sizes are under in this ``config.json``, for messages."""
    family = family_of_config(values)
    if family is None:
        return _KEYS
    own = {"experts": family.hf.expert_count, "expert_inner": family.hf.expert_width}
    keys = _KEYS | own
    if not wraps(values):
        return keys
    return {
        name: re.sub("[a-z_]{2,}", lambda part: f"text_config.{part[0]}", key)
        for name, key in keys.items()
    }


def wraps(values: Mapping[str, Any]) -> bool:
    """Whether a parsed ``config.json`` holds the model that is read under ``text_config``."""
    family = family_of_config(values)
    return family is not None and values["model_type"] == family.hf.wrapper


def _open(where: str, values: dict[str, Any], report: LoadReport) -> tuple[Fields, ModelFamily]:
    """The model's fields with the family's defaults put in, and the family."""
    family = check_family(Fields(where, values), report)
    inner = values
    if wraps(values):
        inner = dict(Fields(where, values).mapping("text_config"))
        for key in ("eos_token_id", "bos_token_id", "dtype", "torch_dtype", "tie_word_embeddings"):
            if key in values:
                inner.setdefault(key, values[key])
        inner["model_type"] = family.hf.model_type
        _check_math(Fields(where, inner, "text_config."), family)
    prefix = "" if inner is values else "text_config."
    caps = {key: cap for key, cap in family.softcaps.items() if cap}
    if inner.get("rope_parameters", {}) is None:  # no rule, so the family's own
        inner = {key: value for key, value in inner.items() if key != "rope_parameters"}
    return Fields(where, {**caps, **family.hf.defaults, **inner}, prefix), family


def check_family(read: Fields, report: LoadReport) -> ModelFamily:
    """The family, refused with UnsupportedModelError when it or a variant of it is unknown."""
    model_type = read.text("model_type")
    family = family_of_config(read.values)
    if family is None and family_of_type(model_type) is not None:
        inner = read.mapping("text_config").get("model_type")
        raise UnsupportedModelError(
            f"{read.name('text_config.model_type')} is {shown(inner)}; it is none of the text "
            f"models that are supported in {shown(model_type)}",
            hint="this architecture is not implemented: take a model of a supported family",
        )
    if family is None:
        raise UnsupportedModelError(
            f"{read.name('model_type')} is {shown(model_type)}; supported are "
            f"{', '.join(model_types())}",
            hint="this architecture is not implemented: take a model of a supported family",
        )
    classes = read.values.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        raise read.error("architectures", classes, "a list of class names")
    ending = "ForConditionalGeneration" if wraps(read.values) else "ForCausalLM"
    if classes and not any(c.endswith(("ForCausalLM", ending)) for c in classes):
        raise UnsupportedModelError(
            f"{read.name('architectures')} is {shown(classes)}; supported are text generation "
            "models (...ForCausalLM)"
        )
    if read.present("auto_map"):
        report.warn("auto_map in config.json is ignored: code from a model folder never runs")
    if not wraps(read.values):
        _check_math(read, family)
    return family


def _check_math(read: Fields, family: ModelFamily) -> None:
    """Refuse what would change the numbers and the family does not have."""
    _activation(read, family)
    for key, neutral in {**_NEUTRAL, **family.hf.fixed}.items():
        value = read.values.get(key)
        own = key in family.softcaps or key in family.hf.own_keys
        if own or value is None or value == neutral:
            continue
        raise UnsupportedModelError(
            f"{read.name(key)} is {shown(value)}; this variant of {family.hf.model_type} is not "
            "supported"
        )


def _activation(read: Fields, family: ModelFamily) -> Activation:
    key, names = family.hf.activation_key, family.hf.activation_names
    name = read.text(key, family.hf.defaults.get(key, "silu"))
    if name not in names:
        raise UnsupportedModelError(f"{read.name(key)} is {shown(name)}; supported is {names[0]}")
    return family.activation


def _softcap(read: Fields, family: ModelFamily, key: str) -> float:
    """A soft cap, 0 for none."""
    if key not in family.softcaps or not read.present(key):
        return 0.0
    return read.number(key, 1e-3, 1e6)


def _gemma(read: Fields, family: ModelFamily, config: ModelConfig) -> ModelConfig:
    """What all Gemmas do to embeddings and norms, and later ones to scores."""
    scalar = float(config.head_dim)
    if "query_pre_attn_scalar" in family.hf.defaults:
        scalar = read.number("query_pre_attn_scalar", 1e-6, 1e9)
    return replace(
        config,
        embedding_scale=rounded(config.hidden_size**0.5, config.dtype),
        attention_scale=scalar**-0.5,
        norm_offset=1.0,
    )


def _multiplied(
    read: Fields, family: ModelFamily, config: ModelConfig, report: LoadReport
) -> ModelConfig:
    """Granite's factors, or Cohere's on the logits."""
    if family.logit_scale:
        return replace(config, logit_scale=read.number("logit_scale", LEAST, MOST))
    return with_multipliers(
        config,
        report,
        embedding=read.number("embedding_multiplier", LEAST, MOST),
        residual=read.number("residual_multiplier", LEAST, MOST),
        attention=read.number("attention_multiplier", LEAST, MOST),
        logits=read.number("logits_scaling", LEAST, MOST),
    )


def rounded(value: float, dtype: str) -> float:
    """``value`` as a number of type ``dtype`` (``float32``, ``float16``, ``bfloat16``).

    By way of float32 and to the nearest, ties to even, as torch casts.
    """
    (single,) = struct.unpack("<f", struct.pack("<f", value))
    if dtype == "float16":
        return struct.unpack("<e", struct.pack("<e", single))[0]
    if dtype == "bfloat16":
        (bits,) = struct.unpack("<I", struct.pack("<f", single))
        bits += 0x7FFF + ((bits >> 16) & 1)
        return struct.unpack("<f", struct.pack("<I", bits & 0xFFFF0000))[0]
    return single


def _head_dim(read: Fields, hidden: int, heads: int) -> int:
    """Elements of a head: the key when it is there, else derived (null means derived too)."""
    if not read.present("head_dim") and hidden % heads:
        raise CheckpointError(
            f"{read.name('hidden_size')} {hidden} over {read.prefix}num_attention_heads {heads} is "
            "not whole, and head_dim is not given"
        )
    return read.integer("head_dim", 1, limits.MAX_HEAD_DIM, hidden // heads)


def _context(rope: RopeConfig, position: int, report: LoadReport) -> int:
    """Context length in tokens; scaling rules that extend it beyond the config's value do."""
    longest = position
    if rope.kind in ("dynamic", "yarn"):
        longest = max(position, int(rope.factor * rope.original_max_position))
        longest = min(longest, limits.MAX_POSITION)
    if longest != position:
        report.decide(f"context of {position} tokens extended to {longest} by {rope.kind} scaling")
    return longest


def _ids(read: Fields, key: str, vocab: int, report: LoadReport) -> tuple[int, ...]:
    """Token ids under a key that holds an int, a list of ints, null, or -1 for none."""
    value = read.values.get(key)
    items = value if isinstance(value, list) else [] if value is None else [value]
    ids: list[int] = []
    for item in items:
        checked = Fields(read.where, {key: item}, read.prefix).integer(key, -1, limits.MAX_TOKEN_ID)
        if checked >= vocab:
            report.warn(f"{key} {checked} is outside the vocabulary of {vocab}; not used")
        elif checked >= 0:
            ids.append(checked)
    return tuple(ids)


def _end_ids(sources: tuple[Fields, ...], vocab: int, report: LoadReport) -> tuple[int, ...]:
    """End-of-text ids from every file that names some, each once."""
    found = (i for fields in sources for i in _ids(fields, "eos_token_id", vocab, report))
    return tuple(dict.fromkeys(found))


def _dtype(read: Fields, weights_dtype: str) -> str:
    """Training type: ``dtype`` (transformers 5), ``torch_dtype`` (4), or that of the weights."""
    for key in ("dtype", "torch_dtype"):
        name = read.text(key, "auto").removeprefix("torch.")
        if name in ("float32", "float16", "bfloat16"):
            return name
        if name != "auto":
            raise UnsupportedModelError(
                f"{read.name(key)} is {shown(name)}; supported are float32, float16, bfloat16"
            )
    return weights_dtype
