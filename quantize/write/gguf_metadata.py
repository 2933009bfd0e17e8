"""What a GGUF file says of a model beside its tensors: copied from another, or from its config."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFValueType as Kind
from gguf import GGUFWriter

from halfbyte.errors import QuantizeError

from ...engine.models.rope import attention_factor, inverse_frequencies
from ...loaders.gguf.parts import GGUFParts
from ...loaders.gguf.reader import GGUFArray
from ...loaders.model.config import ModelConfig, RopeConfig
from ...loaders.model.families import MODEL_FAMILIES
from ...loaders.model.family import ModelFamily

# Families whose own name llama.cpp does not know, and the one that it runs them as.
_WRITTEN_AS = {"mistral": "llama"}
# Keys that are true of the file that they were in.
_OF_THE_FILE = ("split.", "general.alignment", "general.file_type", "general.quantization_version")
QUANTIZATION_VERSION = 2
"""Of the block layouts; llama.cpp refuses others."""


@dataclass(frozen=True, slots=True)
class MetadataEntry:
    """A metadata value.

    Attributes:
        value: int, float, bool, str, or a sequence of such.
        kind: its type.
        items: type of the items of an array.
    """

    value: Any
    kind: Kind
    items: Kind | None = None


Metadata = dict[str, MetadataEntry]


def add_entries(writer: GGUFWriter, metadata: Metadata) -> None:
    """Give all entries to a writer, in order."""
    for key, entry in metadata.items():
        writer.add_key_value(key, entry.value, entry.kind, entry.items)


def text(value: str) -> MetadataEntry:
    """A string."""
    return MetadataEntry(value, Kind.STRING)


def count(value: int) -> MetadataEntry:
    """A number from 0 up."""
    return MetadataEntry(value, Kind.UINT32)


def flag(value: bool) -> MetadataEntry:
    """A truth value."""
    return MetadataEntry(value, Kind.BOOL)


def array(values: Sequence[Any], items: Kind) -> MetadataEntry:
    """An array of some length."""
    return MetadataEntry(list(values), Kind.ARRAY, items)


def copied_metadata(parts: GGUFParts) -> Metadata:
    """Everything of a GGUF file but what is true of that file alone."""
    types = parts.files[0].value_types
    found: Metadata = {}
    for key, value in parts.metadata.items():
        if key.startswith(_OF_THE_FILE):
            continue
        if not isinstance(value, GGUFArray):
            found[key] = MetadataEntry(value, Kind(types[key]))
        elif value.count:
            found[key] = array(value.values(), Kind(value.item_type))
    return found


def family_of(config: ModelConfig) -> ModelFamily:
    """The family of a config."""
    return next(f for f in MODEL_FAMILIES if f.name == config.architecture)


def architecture_of(config: ModelConfig) -> str:
    """What ``general.architecture`` is for a model."""
    own = family_of(config).gguf.architectures[0]
    return _WRITTEN_AS.get(own, own)


def without_window(config: ModelConfig) -> ModelConfig:
    """A config whose sliding window is its context, where llama.cpp has no windows for a family.

    It would look at all of a longer text; up to the window both are the same.
    """
    facts, windows = family_of(config).gguf, {*config.sliding_window}
    if not windows or facts.window or facts.window_every:
        return config
    position = min(config.max_position, *(windows - {0}))
    return replace(config, sliding_window=(), max_position=position)


def described_metadata(config: ModelConfig, path: Path) -> Metadata:
    """The architecture of a model by the keys of its family, as llama.cpp reads them.

    Args:
        config: the architecture, after :func:`without_window`.
        path: of the model, which has to serve as its name where it has none.

    Raises:
        QuantizeError: the format has no key for something.
    """
    arch, family = architecture_of(config), family_of(config)
    own: Metadata = {
        "block_count": count(config.num_layers),
        "context_length": count(config.max_position),
        "embedding_length": count(config.hidden_size),
        "feed_forward_length": count(config.intermediate_size),
        "attention.head_count": count(config.num_heads),
        "attention.head_count_kv": count(config.num_kv_heads),
        "attention.key_length": count(config.head_dim),
        "attention.value_length": count(config.head_dim),
        family.gguf.norm_eps: MetadataEntry(config.rms_norm_eps, Kind.FLOAT32),
        "vocab_size": count(config.vocab_size),
        "rope.dimension_count": count(config.rope.rotary_dim or config.head_dim),
        "rope.freq_base": MetadataEntry(config.rope.theta, Kind.FLOAT32),
        **_scaling(config, config.rope),
        **_windows(config, family),
    }
    for key, value in (
        ("attn_logit_softcapping", config.attn_softcap),
        ("final_logit_softcapping", config.logit_softcap),
    ):
        if key in family.softcaps:
            own[key] = MetadataEntry(value, Kind.FLOAT32)
    if family.logit_scale:
        own["logit_scale"] = MetadataEntry(config.logit_scale, Kind.FLOAT32)
    if family.multipliers:  # that on the residual was put away
        own["embedding_scale"] = MetadataEntry(config.embedding_scale, Kind.FLOAT32)
        own["attention.scale"] = MetadataEntry(config.score_scale, Kind.FLOAT32)
        own["logit_scale"] = MetadataEntry(1.0 / config.logit_scale, Kind.FLOAT32)
    if config.rope_local is not None and config.rope_local.kind == "default":
        own["rope.freq_base_swa"] = MetadataEntry(config.rope_local.theta, Kind.FLOAT32)
    if config.experts is not None:
        if not config.experts.normalize:
            raise QuantizeError(
                f"{path}: norm_topk_prob is false; expected true for a GGUF file, whose readers "
                "always scale the shares of a token's experts to a sum of 1"
            )
        own["expert_count"] = count(config.experts.count)
        own["expert_used_count"] = count(config.experts.per_token)
        own["expert_feed_forward_length"] = count(config.experts.intermediate_size)
    return {
        "general.architecture": text(arch),
        "general.type": text("model"),
        "general.name": text(config.name or path.name),
        **{f"{arch}.{key}": entry for key, entry in own.items()},
    }


def _windows(config: ModelConfig, family: ModelFamily) -> Metadata:
    """The sliding window, and which layers have it where that is not the family's own rule."""
    windows = sorted({*config.sliding_window} - {0})
    if not windows:
        # A family may have a window of its own unless told otherwise.
        return {"attention.sliding_window": count(0)} if family.gguf.window else {}
    if len(windows) > 1:
        raise QuantizeError(
            f"layers have sliding windows of {windows} tokens; expected one size for a GGUF file"
        )
    found = {"attention.sliding_window": count(windows[0])}
    slides = [bool(window) for window in config.sliding_window]
    every = family.gguf.window_every
    if every < 0 or slides != [every == 0 or i % every < every - 1 for i in range(len(slides))]:
        found["attention.sliding_window_pattern"] = array(slides, Kind.BOOL)
    return found


def _scaling(config: ModelConfig, rope: RopeConfig) -> Metadata:
    """Rotary scaling; Llama 3's and stored divisors are a tensor, see :func:`rope_tensors`."""
    if rope.kind in ("default", "llama3", "none"):
        return {}
    if rope.kind == "dynamic":
        raise QuantizeError(
            "rope_type is 'dynamic'; expected default, linear, llama3, yarn or longrope: GGUF "
            "files have no key for scaling by the length of a text"
        )
    found: Metadata = {}
    if rope.kind != "longrope":
        found["rope.scaling.type"] = text(rope.kind)
        found["rope.scaling.factor"] = MetadataEntry(rope.factor, Kind.FLOAT32)
    if rope.kind != "linear":
        original = rope.original_max_position or config.max_position
        found["rope.scaling.original_context_length"] = count(original)
    if rope.kind == "yarn":
        found["rope.scaling.yarn_beta_fast"] = MetadataEntry(rope.beta_fast, Kind.FLOAT32)
        found["rope.scaling.yarn_beta_slow"] = MetadataEntry(rope.beta_slow, Kind.FLOAT32)
        if rope.mscale_all_dim and family_of(config).gguf.own_keys:  # compared when read back
            entry = MetadataEntry(rope.mscale_all_dim, Kind.FLOAT32)
            found["rope.scaling.yarn_log_multiplier"] = entry
    if family_of(config).query_scale:
        found["attention.temperature_scale"] = MetadataEntry(rope.query_scale, Kind.FLOAT32)
    if rope.kind == "longrope":
        factor = attention_factor(rope, config.max_position)
        found["rope.scaling.attn_factor"] = MetadataEntry(factor, Kind.FLOAT32)
    return found


def rope_tensors(config: ModelConfig) -> dict[str, tuple[float, ...]]:
    """Divisors of rotary frequencies that a GGUF file keeps as tensors, by their names."""
    rope = config.rope
    if rope.kind == "longrope":
        return {
            "rope_factors_long.weight": rope.long_factor,
            "rope_factors_short.weight": rope.short_factor,
        }
    if rope.freq_factors:
        return {"rope_freqs.weight": rope.freq_factors}
    if rope.kind == "llama3":
        dim = rope.rotary_dim or config.head_dim
        plain = inverse_frequencies(RopeConfig(rope.theta, dim), dim, config.max_position)
        divisors = plain / inverse_frequencies(rope, dim, config.max_position)
        return {"rope_freqs.weight": tuple(divisors.tolist())}
    return {}


# What must be the same in the config that a file's metadata means; floats within rounding.
_SAME = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "rms_norm_eps",
    "tie_word_embeddings",
    "qkv_bias",
    "o_bias",
    "mlp_bias",
    "qk_norm",
    "sliding_window",
    "activation",
    "score_scale",
    "attn_softcap",
    "logit_softcap",
    "logit_scale",
    "post_norms",
    "local_layers",
    "experts",
)


def check_config(config: ModelConfig, read: ModelConfig, path: Path) -> None:
    """Refuse a model whose architecture a GGUF file cannot tell.

    Args:
        config: the model's.
        read: what readers make of the metadata for it.
        path: of the model.

    Raises:
        QuantizeError: something differs.
    """
    for name in _SAME:
        wanted, found = getattr(config, name), getattr(read, name)
        same = wanted == found
        if isinstance(wanted, float) and isinstance(found, float):
            same = math.isclose(wanted, found, rel_tol=1e-6)
        if not same:
            raise QuantizeError(
                f"{path}: {name} is {wanted!r:.80}, and a GGUF file of this family means "
                f"{found!r:.80}: the format cannot carry this model"
            )
    # A factor that the model's type rounds is told by no key.
    if not math.isclose(config.embedding_scale, read.embedding_scale, rel_tol=2**-8):
        raise QuantizeError(
            f"{path}: embeddings are scaled by {config.embedding_scale:g}, and by "
            f"{read.embedding_scale:g} in a GGUF file of this family"
        )
    ropes = [(config.rope, read.rope)]
    if config.rope_local is not None and read.rope_local is not None:
        ropes.append((config.rope_local, read.rope_local))
    for ours, theirs in ropes:
        if not _same_rope(config, ours, read, theirs):
            raise QuantizeError(
                f"{path}: rotary embedding {ours.kind!r} with these settings means other "
                "frequencies or factors in a GGUF file: the format cannot carry this model"
            )


def _same_rope(
    config: ModelConfig, ours: RopeConfig, read: ModelConfig, theirs: RopeConfig
) -> bool:
    values: list[torch.Tensor] = []
    for rope, model in ((ours, config), (theirs, read)):
        dim = rope.rotary_dim or model.head_dim
        inverse = inverse_frequencies(rope, dim, model.max_position)
        factor = attention_factor(rope, model.max_position)
        more = (*rope.short_factor, *rope.long_factor, factor, rope.query_scale)
        values.append(torch.cat((inverse, torch.tensor(more))))
    return values[0].shape == values[1].shape and torch.allclose(*values, rtol=1e-5, atol=0)
