"""``config.json`` of a folder: carried over from a folder, or built for a model of a GGUF file."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from halfbyte.errors import QuantizeError

from ...engine.models.rope import inverse_frequencies
from ...loaders.base import Checkpoint
from ...loaders.files.folder_files import ModelFolder
from ...loaders.hf.config import wraps
from ...loaders.model.config import ModelConfig, RopeConfig
from ...loaders.model.family import ModelFamily
from .names import family_of

# Llama 3.1 and 3.2 were scaled from this context; GGUF files keep only the divisors.
_LLAMA3_CONTEXT = 8192
# Relative error of frequencies that pass for the same: the divisors went through float32 twice.
_SAME = 1e-5


def config_values(model: Checkpoint, dtype: str, notes: list[str]) -> dict[str, Any]:
    """What ``config.json`` says of a model, without its quantization.

    Args:
        model: the model; a folder's own file is carried over.
        dtype: ``float16``, ``bfloat16`` or ``float32``: what the model is to compute with, where
            its file does not say so.
        notes: gets what was left out.

    Raises:
        QuantizeError: the rotary embedding of a GGUF file cannot be said in this file.
    """
    if model.kind == "gguf":
        return _built(model.config, dtype)
    values = dict(ModelFolder(model.path).read_json("config.json") or {})
    if wraps(values):
        notes.append("the vision tower is left out: the folder holds the language model alone")
        values = _unwrapped(values, family_of(model.config))
    if values.pop("auto_map", None):
        notes.append("auto_map is left out: code is not carried over")
    for key in ("quantization_config", "compression_config"):
        values.pop(key, None)
    if not {"dtype", "torch_dtype"} & {key for key, value in values.items() if value}:
        values["torch_dtype"] = dtype
    # What the tensors show; the file may say something else, or leave it to a default.
    values["tie_word_embeddings"] = model.config.tie_word_embeddings
    return values


def _unwrapped(values: dict[str, Any], family: ModelFamily) -> dict[str, Any]:
    """The configuration of the language model that a wrapper has under ``text_config``."""
    keys = ("eos_token_id", "bos_token_id", "pad_token_id", "dtype", "torch_dtype")
    outer = {key: values[key] for key in keys if key in values}
    own = {"model_type": family.hf.model_type, "architectures": [family.hf.class_name]}
    return outer | dict(values["text_config"]) | own


def _built(config: ModelConfig, dtype: str) -> dict[str, Any]:
    family = family_of(config)
    facts = family.hf
    ends = list(config.eos_token_ids)
    values: dict[str, Any] = {
        "architectures": [facts.class_name],
        "model_type": facts.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        facts.activation_key: facts.activation_names[0],
        "max_position_embeddings": config.max_position,
        facts.norm_eps: config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": None,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    own_o = facts.o_bias != "attention_bias"
    if facts.attention_bias:
        values["attention_bias"] = config.qkv_bias if own_o else config.o_bias
    if own_o and facts.o_bias:
        values[facts.o_bias] = config.o_bias
    if family.logit_scale:
        values["logit_scale"] = config.logit_scale
    if family.multipliers:  # that on the residual was put away
        values |= {"embedding_multiplier": config.embedding_scale, "residual_multiplier": 1.0}
        values["attention_multiplier"] = config.score_scale
        values["logits_scaling"] = 1.0 / config.logit_scale
    if facts.mlp_bias:
        values["mlp_bias"] = config.mlp_bias
    says = family.qkv_bias or bool(values.get("attention_bias"))
    if config.qkv_bias != says or (config.o_bias and not facts.o_bias):
        raise QuantizeError(
            f"biases of q, k and v: {config.qkv_bias}, of o: {config.o_bias}; config.json of "
            f"{facts.model_type} cannot say so"
        )
    for key in family.softcaps:
        values[key] = (
            config.attn_softcap if key.startswith("attn") else config.logit_softcap
        ) or None
    if "query_pre_attn_scalar" in facts.defaults:
        values["query_pre_attn_scalar"] = round(config.score_scale**-2)
    values |= _windows(config, family) | _experts(config, family) | _rope(config, family)
    return values


def _windows(config: ModelConfig, family: ModelFamily) -> dict[str, Any]:
    """Which layers have a sliding window, and which have no rotary embedding."""
    rule, windows = family.hf.windows, config.sliding_window
    local = config.local_layers or (False,) * config.num_layers
    own: dict[str, Any] = {}
    if rule == "unrotated":
        own["no_rope_layers"] = [int(not unrotated) for unrotated in local]
    if rule == "none":
        return own
    size = max(windows, default=0)
    if rule == "all":
        if windows and min(windows) != size:
            raise QuantizeError(
                f"sliding windows differ between layers; config.json of {family.hf.model_type} "
                "has one for all"
            )
        return own | {"sliding_window": size or None}
    slides = [bool(window) for window in windows or (0,) * config.num_layers]
    if rule == "optional_pattern" and not size and config.rope_local is None:
        return own | {"sliding_window": None, "layer_types": ["full_attention"] * len(slides)}
    if rule in ("even", "pattern", "optional_pattern"):
        # They must name a window: one as long as the context is none.
        own["sliding_window"] = size or config.max_position
        if config.rope_local is not None:
            slides = [has != family.unrotated_full for has in local]
    else:
        own |= {"use_sliding_window": bool(size), "sliding_window": size or None}
    kinds = ("full_attention", "sliding_attention")
    return own | {"layer_types": [kinds[flag] for flag in slides]}


def _experts(config: ModelConfig, family: ModelFamily) -> dict[str, Any]:
    experts = config.experts
    if experts is None:
        return {}
    found: dict[str, Any] = {
        family.hf.expert_count: experts.count,
        "num_experts_per_tok": experts.per_token,
        family.hf.expert_width: experts.intermediate_size,
    }
    if family.hf.expert_width != "intermediate_size":
        found |= {
            "norm_topk_prob": experts.normalize,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [i for i, has in enumerate(experts.layers) if not has],
        }
    return found


def _rope(config: ModelConfig, family: ModelFamily) -> dict[str, Any]:
    """The rotary embedding in the words of transformers 4, which 5 reads, too."""
    rope = config.rope
    if rope.kind in ("dynamic", "none"):  # no rule of a GGUF file
        raise QuantizeError(
            f"the rotary rule is {rope.kind}; expected one that GGUF files have",
            hint="start from the model's Hugging Face folder",
        )
    if rope.freq_factors:
        rope = llama3_of(rope, config.head_dim, config.max_position)
    found: dict[str, Any] = {"rope_theta": rope.theta}
    local = config.rope_local
    if local is not None and local.kind != "none" and local.theta != rope.theta:
        if "rope_local_base_freq" not in family.hf.defaults:
            raise QuantizeError(
                f"sliding layers rotate by a base of {local.theta:g} and others by {rope.theta:g}; "
                f"config.json of {family.hf.model_type} has one base",
                hint="start from the model's Hugging Face folder",
            )
        found["rope_local_base_freq"] = local.theta
    rotary = rope.rotary_dim or config.head_dim
    if rotary != config.head_dim:
        found["partial_rotary_factor"] = rotary / config.head_dim
    scaling: dict[str, Any] = {"rope_type": rope.kind}
    original = rope.original_max_position
    if rope.kind == "default":
        # Where the key is missing, some families scale.
        said = "rope_parameters" in family.hf.defaults
        return found | ({"rope_scaling": scaling} if said else {})
    if rope.kind in ("linear", "llama3", "yarn"):
        scaling["factor"] = rope.factor
    if rope.kind == "llama3":
        scaling["low_freq_factor"] = rope.low_freq_factor
        scaling["high_freq_factor"] = rope.high_freq_factor
    if rope.kind == "yarn":
        scaling |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        if rope.mscale and rope.mscale_all_dim:
            scaling |= {"mscale": rope.mscale, "mscale_all_dim": rope.mscale_all_dim}
        if family.query_scale:
            scaling["llama_4_scaling_beta"] = rope.query_scale
        scaling |= {} if rope.truncate else {"truncate": False}
    if rope.kind == "longrope":
        scaling |= {
            "short_factor": list(rope.short_factor),
            "long_factor": list(rope.long_factor),
        }
    if rope.kind in ("yarn", "longrope") and rope.attention_factor is not None:
        scaling["attention_factor"] = rope.attention_factor
    if rope.kind in ("llama3", "yarn"):
        scaling["original_max_position_embeddings"] = original
    if rope.kind == "longrope":
        found["original_max_position_embeddings"] = original
        if "original_max_position_embeddings" not in family.hf.defaults:
            scaling["original_max_position_embeddings"] = original
            del found["original_max_position_embeddings"]
            scaling["factor"] = rope.factor
    return found | {"rope_scaling": scaling}


def llama3_of(rope: RopeConfig, head_dim: int, max_position: int) -> RopeConfig:
    """The ``llama3`` rule that gives stored divisors of frequencies.

    GGUF files keep its divisors and not its four numbers. The largest divisor is its factor; the
    others are those of every Llama that was published.

    Raises QuantizeError where no such rule gives them.
    """
    dim = rope.rotary_dim or head_dim
    stored = inverse_frequencies(rope, dim, max_position)
    factor = max(rope.freq_factors)
    originals = (_LLAMA3_CONTEXT, math.floor(max_position / factor))
    for original in originals:
        rule = replace(
            rope,
            kind="llama3",
            factor=factor,
            original_max_position=original,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            freq_factors=(),
        )
        if original > 1 and torch.allclose(
            inverse_frequencies(rule, dim, max_position), stored, rtol=_SAME, atol=0
        ):
            return rule
    raise QuantizeError(
        "the rotary frequencies are divided by numbers (rope_freqs.weight) that are not those of "
        "Llama 3; config.json has no rule for them",
        hint="start from the model's Hugging Face folder",
    )
