"""Rotary embedding of a GGUF file: metadata and the tensors that hold frequency divisors."""

from __future__ import annotations

from collections.abc import Mapping

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ..files.fields import Fields, shown
from ..model import checks as limits
from ..model.config import RopeConfig


def read_rope(
    read: Fields,
    head_dim: int,
    position: int,
    factors: Mapping[str, tuple[float, ...]],
    whole_ramp: bool = True,
) -> RopeConfig:
    """The rotary embedding.

    Args:
        read: fields under the architecture's prefix.
        head_dim: elements of a head.
        position: context length in tokens.
        factors: contents of the factor tensors that are stored, by GGUF name.
        whole_ramp: as :class:`~..model.family.GGUFFacts` has it.

    Raises:
        CheckpointError: a value is missing or out of bounds, or a factor tensor has another length.
        UnsupportedModelError: a scaling rule, or a mixture of rules, that is not implemented.
    """
    theta = read.number("rope.freq_base", limits.MIN_THETA, limits.MAX_THETA, 10000.0)
    rotary = read.integer("rope.dimension_count", 2, limits.MAX_HEAD_DIM, head_dim)
    if rotary > head_dim or rotary % 2:
        raise read.error("rope.dimension_count", rotary, f"an even number up to {head_dim}")
    for name, values in factors.items():
        if len(values) != rotary // 2:
            raise CheckpointError(
                f"{read.where}: tensor {name} has {len(values)} values; expected {rotary // 2}"
            )
    kind = read.text("rope.scaling.type", "none")
    # Files from 2023 have a bare divisor instead of a type.
    old_linear = read.number("rope.scale_linear", 1e-6, 1e6, 1.0)
    if not read.present("rope.scaling.type") and old_linear != 1.0:
        kind = "linear"
    if "rope_freqs.weight" in factors and (kind != "none" or len(factors) > 1):
        raise UnsupportedModelError(
            f"{read.where}: rope_freqs.weight together with another rotary scaling "
            f"({shown(kind)}) is not supported"
        )
    query_scale = read.number("attention.temperature_scale", 0.0, 1e6, 0.0)
    if query_scale and kind != "yarn":  # it goes by the context before scaling
        raise UnsupportedModelError(
            f"{read.name('attention.temperature_scale')} is {query_scale:g} with rotary scaling "
            f"{shown(kind)}; supported is yarn"
        )
    if kind == "linear" and not read.present("rope.scaling.type"):
        return RopeConfig(theta, rotary, "linear", factor=old_linear)
    if kind == "none":
        if "rope_factors_long.weight" in factors or "rope_factors_short.weight" in factors:
            kind = "longrope"
        else:
            return RopeConfig(theta, rotary, freq_factors=factors.get("rope_freqs.weight", ()))
    original = read.integer(
        "rope.scaling.original_context_length",
        limits.MIN_ORIGINAL_POSITION,
        limits.MAX_POSITION,
        position,
    )
    attn = read.number("rope.scaling.attn_factor", 1e-6, 1e6, 1.0)
    if kind == "longrope":
        return _longrope(read, theta, rotary, original, attn, position, factors)
    factor = read.number("rope.scaling.factor", 1e-6, 1e6)
    if kind == "linear" and attn == 1.0:
        return RopeConfig(theta, rotary, "linear", factor=factor)
    if kind == "yarn" and attn == 1.0:
        fast = read.number("rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32.0)
        slow = read.number("rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1.0)
        if fast <= slow:
            raise read.error(
                "rope.scaling.yarn_beta_fast",
                fast,
                f"more than {read.prefix}rope.scaling.yarn_beta_slow {slow:g}",
            )
        # llama.cpp takes the other multiplier for 1.
        multiplier = read.number("rope.scaling.yarn_log_multiplier", 0.0, 1e6, 0.0)
        return RopeConfig(
            theta,
            rotary,
            "yarn",
            factor=factor,
            original_max_position=original,
            beta_fast=fast,
            beta_slow=slow,
            mscale=1.0 if multiplier else 0.0,
            mscale_all_dim=multiplier,
            query_scale=query_scale,
            truncate=whole_ramp,
        )
    raise UnsupportedModelError(
        f"{read.name('rope.scaling.type')} is {shown(kind)} with rope.scaling.attn_factor "
        f"{attn:g}; supported are none, linear, yarn and longrope, with attn_factor 1 for the "
        "first three"
    )


def _longrope(
    read: Fields,
    theta: float,
    rotary: int,
    original: int,
    attn: float,
    position: int,
    factors: Mapping[str, tuple[float, ...]],
) -> RopeConfig:
    both = ("rope_factors_short.weight", "rope_factors_long.weight")
    short, long = (factors.get(name, ()) for name in both)
    if not short or not long:
        raise CheckpointError(
            f"{read.where}: longrope scaling needs the tensors {' and '.join(both)}"
        )
    return RopeConfig(
        theta,
        rotary,
        "longrope",
        factor=max(1.0, position / original),
        original_max_position=original,
        attention_factor=attn if read.present("rope.scaling.attn_factor") else None,
        short_factor=short,
        long_factor=long,
    )
