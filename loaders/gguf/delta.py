"""Layers of the gated delta rule in GGUF files: metadata, and names that no other layers have."""

from __future__ import annotations

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ..files.fields import Fields, shown
from ..model import checks as limits
from ..model.config import DeltaLayers
from .reader import GGUFArray

DELTA_KEYS = frozenset(
    (
        "attention.recurrent_layers",
        "full_attention_interval",
        "nextn_predict_layers",
        "rope.dimension_sections",
        *(f"ssm.{key}" for key in ("conv_kernel", "state_size", "group_count")),
        *(f"ssm.{key}" for key in ("time_step_rank", "inner_size")),
    )
)
"""Keys of such models alone. A text's positions are the same in all sections of a rotation."""
# Tensors whose names do not end as others do.
_WHOLE = {"ssm_a": "linear_attn.A", "ssm_dt.bias": "linear_attn.dt_bias"}


def read_delta(read: Fields, layers: int, stored_layers: int, tiled: bool) -> DeltaLayers:
    """The layers of the gated delta rule that the metadata describes.

    Args:
        read: fields under the architecture's prefix.
        layers: decoder layers.
        stored_layers: those of the file, with the ones that predict more tokens.
        tiled: see :class:`~..model.config.DeltaLayers`.

    Raises:
        CheckpointError: a value is missing or out of bounds.
        UnsupportedModelError: no layer has attention.
    """
    every = read.integer("full_attention_interval", 1, limits.MAX_LAYERS, 4)
    flags = read.values.get("attention.recurrent_layers")
    kinds = tuple((layer + 1) % every != 0 for layer in range(layers))
    if flags is not None:
        key, count = "attention.recurrent_layers", stored_layers
        if not isinstance(flags, GGUFArray) or flags.count != count:
            raise read.error(key, flags, f"{count} bools, one per layer")
        kinds = tuple(flags.values())[:layers]
        if not all(isinstance(flag, bool) for flag in kinds):
            raise read.error(key, list(kinds)[:8], f"{count} bools, one per layer")
    if all(kinds):
        raise UnsupportedModelError(
            f"{read.name('full_attention_interval')} {every} leaves no layer with attention; "
            "supported are models with at least one"
        )
    heads = read.integer("ssm.time_step_rank", 1, limits.MAX_HEADS)
    inner = read.integer("ssm.inner_size", 1, limits.MAX_HIDDEN)
    if inner % heads:
        raise CheckpointError(
            f"{read.name('ssm.inner_size')} is {shown(inner)} and {read.prefix}ssm.time_step_rank "
            f"is {heads}; expected a multiple"
        )
    return DeltaLayers(
        key_heads=read.integer("ssm.group_count", 1, limits.MAX_HEADS),
        value_heads=heads,
        key_dim=read.integer("ssm.state_size", 1, limits.MAX_HEAD_DIM),
        value_dim=inner // heads,
        kernel=read.integer("ssm.conv_kernel", 2, limits.MAX_CONVOLUTION),
        layers=kinds,
        tiled=tiled,
        rates=True,
    )


def delta_name(rest: str) -> str | None:
    """Canonical name, within a layer, of a tensor without an ending; None for all others."""
    return _WHOLE.get(rest)


def delta_file_name(rest: str) -> str | None:
    """The GGUF name of what :func:`delta_name` gives."""
    return next((own for own, canonical in _WHOLE.items() if canonical == rest), None)
