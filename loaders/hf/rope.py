"""Rotary settings of ``config.json``, in the spellings of transformers 4 and 5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ..files.fields import Fields, shown
from ..model import checks as limits
from ..model.config import RopeConfig
from ..model.family import ModelFamily

_LAYER_TYPES = ("full_attention", "sliding_attention")
_KNOWN = frozenset(
    (
        "rope_type",
        "type",
        "rope_theta",
        "partial_rotary_factor",
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "short_factor",
        "long_factor",
        "low_freq_factor",
        "high_freq_factor",
        "finetuned",
        "max_position_embeddings",  # Ministral 3 has it here once more
        "llama_4_scaling_beta",
    )
)
_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def read_rope(
    config: Fields, head_dim: int, max_position: int, family: ModelFamily | None = None
) -> RopeConfig:
    """The rotary embedding of a model, or of its layers with full attention.

    ``rope_scaling`` (transformers 4) and ``rope_parameters`` (5) are read alike; where a file
    has both, the former wins, as it does in transformers. For dynamic scaling
    ``original_max_position`` is the config's own context length. ``family`` says what is allowed.

    Raises:
        UnsupportedModelError: multi-axis rotary settings, per-layer or partial ones of a family
            without them, unknown kinds and keys.
        CheckpointError: a value is missing or out of range.
    """
    scaling = config.mapping("rope_scaling")
    values = scaling or config.mapping("rope_parameters")
    name = "rope_scaling" if scaling else "rope_parameters"
    if family is not None and family.local_rope:
        values, name = _of_layers(config, "full_attention")
        values = {**values, **scaling}
    partial = family is not None and family.hf.partial_rotary
    query_scale = family is not None and family.query_scale
    extras = () if family is None else family.hf.rotary_extras
    _refuse(config, name, values, partial, extras)
    rope = Fields(config.where, values, f"{config.prefix}{name}.")
    low, high = limits.MIN_THETA, limits.MAX_THETA
    outer = config.number("rope_theta", low, high, 10000.0)
    theta = rope.number("rope_theta", low, high, outer)
    kind = rope.text("rope_type", rope.text("type", "default"))
    # Phi-3's first files call longrope "su", or "yarn".
    named_so = family is not None and "original_max_position_embeddings" in family.hf.defaults
    kind = "longrope" if kind == "su" or (kind == "yarn" and named_so) else kind
    factor = config.number("partial_rotary_factor", 1e-6, 1.0, 1.0)
    rotary = int(head_dim * rope.number("partial_rotary_factor", 1e-6, 1.0, factor))
    if rotary < 2:  # 0 would mean the whole head
        raise rope.error("partial_rotary_factor", rotary / head_dim, f"2 of {head_dim} or more")
    base = RopeConfig(theta=theta, rotary_dim=rotary)
    if rope.present("llama_4_scaling_beta") and not (query_scale and kind == "yarn"):
        raise UnsupportedModelError(
            f"{rope.name('llama_4_scaling_beta')} is {shown(values['llama_4_scaling_beta'])} with "
            f"rope_type {shown(kind)}; supported is yarn, of ministral3"
        )
    if kind == "default":
        return base
    if kind in ("linear", "dynamic"):
        factor = rope.number("factor", 1e-6, 1e6)
        if kind == "linear":
            return replace(base, kind="linear", factor=factor)
        return replace(base, kind="dynamic", factor=factor, original_max_position=max_position)
    if kind not in _KINDS:
        raise UnsupportedModelError(
            f"{rope.name('rope_type')} is {shown(kind)}; supported are {', '.join(_KINDS)}"
        )
    original = _original_position(config, rope, max_position)
    if kind == "llama3":
        low = rope.number("low_freq_factor", 1e-6, 1e6)
        high = rope.number("high_freq_factor", 1e-6, 1e6)
        if low >= high:
            raise rope.error("low_freq_factor", low, f"less than high_freq_factor {high:g}")
        return replace(
            base,
            kind="llama3",
            factor=rope.number("factor", 1e-6, 1e6),
            original_max_position=original,
            low_freq_factor=low,
            high_freq_factor=high,
        )
    base = replace(
        base,
        factor=rope.number("factor", 1e-6, 1e6, max_position / original),
        original_max_position=original,
        attention_factor=(
            rope.number("attention_factor", 1e-6, 1e6) if rope.present("attention_factor") else None
        ),
    )
    return _yarn(rope, base) if kind == "yarn" else _longrope(rope, base, rotary)


def read_local_rope(config: Fields, head_dim: int) -> RopeConfig:
    """The rotary embedding of sliding layers (Gemma 3, OLMo 3), which never is a scaled one.

    Raises:
        UnsupportedModelError: it is scaled.
        CheckpointError: the base is missing or out of range.
    """
    values, name = _of_layers(config, "sliding_attention")
    _refuse(config, name, values, False)
    rope = Fields(config.where, values, f"{config.prefix}{name}.")
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind != "default":
        raise UnsupportedModelError(
            f"{rope.name('rope_type')} is {shown(kind)}; supported for these layers is default"
        )
    low, high = limits.MIN_THETA, limits.MAX_THETA
    outer = config.number("rope_theta", low, high, 10000.0)
    outer = config.number("rope_local_base_freq", low, high, outer)
    return RopeConfig(theta=rope.number("rope_theta", low, high, outer), rotary_dim=head_dim)


def _of_layers(config: Fields, layers: str) -> tuple[Mapping[str, Any], str]:
    """Settings for one type of layers (transformers 5) and their name; empty in older files.

    Raises CheckpointError when ``rope_parameters`` are not told apart by layers.
    """
    every = config.mapping("rope_parameters")
    if every and not any(key in _LAYER_TYPES for key in every):
        raise config.error("rope_parameters", dict(every), f"settings under {_LAYER_TYPES}")
    fields = Fields(config.where, every, f"{config.prefix}rope_parameters.")
    return fields.mapping(layers), f"rope_parameters.{layers}"


def _refuse(
    config: Fields,
    name: str,
    values: Mapping[str, Any],
    partial: bool,
    extras: tuple[str, ...] = (),
) -> None:
    """Refuse settings that these families do not have, by name."""
    for key in values:
        if key in _LAYER_TYPES:
            raise UnsupportedModelError(
                f"{config.name(name)} has separate settings for {key} layers; only one setting "
                "for all layers is supported"
            )
        if key not in _KNOWN and key not in extras:
            what = "multi-axis rotary embedding" if "mrope" in key else "this rotary setting"
            raise UnsupportedModelError(
                f"{config.name(name)}.{shown(key)[1:-1]} is set; {what} is not supported"
            )
    if partial:
        return
    for where, fields in ((name + ".", Fields(config.where, values)), ("", config)):
        if fields.number("partial_rotary_factor", 1e-6, 1.0, 1.0) != 1.0:
            raise UnsupportedModelError(
                f"{config.name(where)}partial_rotary_factor is "
                f"{fields.values['partial_rotary_factor']}; these families rotate whole heads"
            )


def _original_position(config: Fields, rope: Fields, max_position: int) -> int:
    """Context length before scaling; the top-level key wins over the nested one."""
    key = "original_max_position_embeddings"
    low, high = limits.MIN_ORIGINAL_POSITION, limits.MAX_POSITION
    return config.integer(key, low, high, rope.integer(key, low, high, max_position))


def _yarn(rope: Fields, base: RopeConfig) -> RopeConfig:
    fast = rope.number("beta_fast", 0.0, 1e6, 32.0) or 32.0
    slow = rope.number("beta_slow", 0.0, 1e6, 1.0) or 1.0
    for key, beta in (("beta_fast", fast), ("beta_slow", slow)):
        if beta < 1e-3:  # its logarithm is taken, and a context over it must stay a number
            raise rope.error(key, beta, "0 for the default, or at least 0.001")
    if fast <= slow:
        raise rope.error("beta_fast", fast, f"more than beta_slow {slow:g}")
    return replace(
        base,
        kind="yarn",
        beta_fast=fast,
        beta_slow=slow,
        truncate=rope.flag("truncate", True),
        mscale=rope.number("mscale", 0.0, 1e6, 0.0),
        mscale_all_dim=rope.number("mscale_all_dim", 0.0, 1e6, 0.0),
        query_scale=rope.number("llama_4_scaling_beta", 0.0, 1e6, 0.0),
    )


def _longrope(rope: Fields, base: RopeConfig, rotary: int) -> RopeConfig:
    return replace(
        base,
        kind="longrope",
        short_factor=_factors(rope, "short_factor", rotary // 2),
        long_factor=_factors(rope, "long_factor", rotary // 2),
    )


def _factors(rope: Fields, key: str, count: int) -> tuple[float, ...]:
    items = rope.values.get(key)
    if not isinstance(items, list) or len(items) != count:
        raise CheckpointError(f"{rope.name(key)} is {shown(items)}; expected {count} numbers")
    checked = Fields(rope.where, dict(enumerate_keys(items)), f"{rope.prefix}{key}")
    return tuple(checked.number(name, 1e-6, 1e9) for name in checked.values)


def enumerate_keys(items: list[Any]) -> list[tuple[str, Any]]:
    """Items under the names ``[0]``, ``[1]``, ... for messages."""
    return [(f"[{index}]", item) for index, item in enumerate(items)]
