"""``config.json`` of a Hugging Face folder to a :class:`ModelConfig`."""

from __future__ import annotations

from typing import Any

from halfbyte.errors import CheckpointError, UnsupportedModelError

from . import model_checks as limits
from .fields import Fields, shown
from .hf_rope import read_rope
from .model_config import ModelConfig, RopeConfig
from .report import LoadReport

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

# What transformers assumes for a key that the file leaves out, where it is not "as many as
# attention heads" or "hidden_size / num_attention_heads".
_KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
_HEAD_DIM = {"qwen3": 128}
_MAX_POSITION = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768}

# Keys that change the numbers in a way these families do not have -> the value without effect.
_NEUTRAL: dict[str, Any] = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": None,
    "num_local_experts": 0,
    "num_experts": 0,
    "no_rope_layers": None,
    "clip_qkv": None,
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
    read = Fields(where, values)
    family = check_family(read, report)
    hidden = read.integer("hidden_size", 1, limits.MAX_HIDDEN)
    layers = read.integer("num_hidden_layers", 1, limits.MAX_LAYERS)
    heads = read.integer("num_attention_heads", 1, limits.MAX_HEADS)
    vocab = read.integer("vocab_size", 1, limits.MAX_VOCAB)
    position = read.integer(
        "max_position_embeddings", 1, limits.MAX_POSITION, _MAX_POSITION[family]
    )
    head_dim = _head_dim(read, family, hidden, heads)
    rope = read_rope(read, head_dim, position)
    bias = family in ("llama", "qwen3") and read.flag("attention_bias", False)
    config = ModelConfig(
        architecture=family,
        vocab_size=vocab,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=_kv_heads(read, family, heads),
        head_dim=head_dim,
        intermediate_size=read.integer("intermediate_size", 1, limits.MAX_INTERMEDIATE),
        rms_norm_eps=read.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        max_position=_context(rope, position, report),
        rope=rope,
        tie_word_embeddings=read.flag("tie_word_embeddings", False),
        qkv_bias=bias or family == "qwen2",
        o_bias=bias,
        mlp_bias=family == "llama" and read.flag("mlp_bias", False),
        qk_norm=family == "qwen3",
        sliding_window=_sliding_windows(read, family, layers),
        bos_token_id=next(iter(_ids(read, "bos_token_id", vocab, report)), None),
        eos_token_ids=_end_ids((generation, read), vocab, report),
        dtype=_dtype(read, weights_dtype),
        name=name,
    )
    limits.check_heads(where, config)
    if rope.kind != "default":
        report.decide(f"rotary scaling: {rope.kind}, factor {rope.factor:g}")
    return config


def check_family(read: Fields, report: LoadReport) -> str:
    """The model type, refused with UnsupportedModelError when it or a variant of it is unknown."""
    family = read.text("model_type")
    if family not in FAMILIES:
        raise UnsupportedModelError(
            f"{read.name('model_type')} is {shown(family)}; supported are {', '.join(FAMILIES)}"
        )
    classes = read.values.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        raise read.error("architectures", classes, "a list of class names")
    if classes and not any(c.endswith("ForCausalLM") for c in classes):
        raise UnsupportedModelError(
            f"{read.name('architectures')} is {shown(classes)}; supported are text generation "
            "models (...ForCausalLM)"
        )
    if read.present("auto_map"):
        report.warn("auto_map in config.json is ignored: code from a model folder never runs")
    act = read.text("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise UnsupportedModelError(f"{read.name('hidden_act')} is {shown(act)}; supported is silu")
    for key, neutral in _NEUTRAL.items():
        value = read.values.get(key)
        if value is not None and value != neutral:
            raise UnsupportedModelError(
                f"{read.name(key)} is {shown(value)}; this variant of {family} is not supported"
            )
    return family


def _kv_heads(read: Fields, family: str, heads: int) -> int:
    absent = heads if "num_key_value_heads" in read.values else _KV_HEADS.get(family, heads)
    return read.integer("num_key_value_heads", 1, limits.MAX_HEADS, absent)


def _head_dim(read: Fields, family: str, hidden: int, heads: int) -> int:
    """Elements of a head: the key when it is there, else derived (null means derived too)."""
    if "head_dim" not in read.values and family in _HEAD_DIM:
        return _HEAD_DIM[family]
    if not read.present("head_dim") and hidden % heads:
        raise CheckpointError(
            f"{read.where}: hidden_size {hidden} over num_attention_heads {heads} is not whole, "
            "and head_dim is not given"
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


def _sliding_windows(read: Fields, family: str, layers: int) -> tuple[int, ...]:
    """Window per layer in tokens, 0 = full; empty when no layer has one."""
    window = 0
    if family == "mistral":
        # Absent means transformers' default of 4096, null means none.
        absent = 0 if "sliding_window" in read.values else 4096
        window = read.integer("sliding_window", 0, limits.MAX_POSITION, absent)
    elif family in ("qwen2", "qwen3") and read.flag("use_sliding_window", False):
        window = read.integer("sliding_window", 0, limits.MAX_POSITION, 4096)
    first = 0 if family == "mistral" else read.integer("max_window_layers", 0, 1 << 31, 28)
    types = read.values.get("layer_types")
    if types is None:
        per_layer = tuple(window if i >= first else 0 for i in range(layers))
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


def _ids(read: Fields, key: str, vocab: int, report: LoadReport) -> tuple[int, ...]:
    """Token ids under a key that holds an int, a list of ints, null, or -1 for none."""
    value = read.values.get(key)
    items = value if isinstance(value, list) else [] if value is None else [value]
    ids: list[int] = []
    for item in items:
        checked = Fields(read.where, {key: item}).integer(key, -1, limits.MAX_TOKEN_ID)
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
