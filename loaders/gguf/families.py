"""What sets the architectures of GGUF files apart, beyond what their metadata says.

The facts are those of llama.cpp (``src/models``), which the files are made for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from halfbyte.errors import UnsupportedModelError

from ..files.fields import Fields, shown
from ..model import checks as limits
from ..model.report import LoadReport
from .reader import GGUFArray


@dataclass(frozen=True, slots=True)
class Family:
    """One ``general.architecture``.

    Attributes:
        name: family, as in ``ModelConfig.architecture``.
        permuted: q and k rows are stored in interleaved order.
        stacked: q, k and v, and gate and up, may be one tensor each.
        qkv_bias: q, k and v have biases.
        qk_norm: q and k are normed per head.
        window: sliding window in tokens when the file names none; 0 = none.
        window_every: where the file has no pattern, every so many layers the last has full
            attention; 0 = none has; -1 = which layers have it is unknown.
        local_rope: sliding layers have a rotary rule of their own.
        unrotated_every: every so many layers the last has no rotary embedding; 0 = all have.
        gemma: scaled embeddings and a gelu gate.
        post_norms: four norms a layer.
        softcaps: key -> default of the soft caps that it has.
        wide_layers: models of so many layers scale attention scores by
            ``(hidden_size // num_heads) ** -0.5``; all others by ``head_dim ** -0.5``.
        experts: family of the files that have a mixture of experts; "" = none may.
    """

    name: str
    permuted: bool = False
    stacked: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    window: int = 0
    window_every: int = 0
    local_rope: bool = False
    unrotated_every: int = 0
    gemma: bool = False
    post_norms: bool = False
    softcaps: Mapping[str, float] = field(default_factory=dict)
    wide_layers: int = 0
    experts: str = ""


FAMILIES: dict[str, Family] = {
    "llama": Family("llama", permuted=True, experts="mixtral"),
    "mistral": Family("mistral", permuted=True),
    "mistral3": Family("mistral", permuted=True),
    "smollm3": Family("smollm3", permuted=True, unrotated_every=4),
    "qwen2": Family("qwen2", qkv_bias=True, window_every=-1),
    "qwen3": Family("qwen3", qk_norm=True, window_every=-1),
    "qwen3moe": Family("qwen3_moe", qk_norm=True, window_every=-1, experts="qwen3_moe"),
    "phi3": Family("phi3", stacked=True),
    "gemma": Family("gemma", gemma=True),
    "gemma2": Family(
        "gemma2",
        window=4096,
        window_every=2,
        gemma=True,
        post_norms=True,
        softcaps={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        wide_layers=46,
    ),
    "gemma3": Family(
        "gemma3",
        qk_norm=True,
        window_every=6,
        local_rope=True,
        gemma=True,
        post_norms=True,
        softcaps={"final_logit_softcapping": 0.0},
        wide_layers=62,
    ),
}


def sliding_layers(
    read: Fields, family: Family, layers: int, report: LoadReport
) -> tuple[tuple[bool, ...], int]:
    """Per layer whether it has the sliding window, and the window in tokens; ``((), 0)`` for none.

    Raises:
        CheckpointError: a value is out of bounds.
        UnsupportedModelError: which layers have the window is unknown.
    """
    window = read.integer("attention.sliding_window", 0, limits.MAX_POSITION, family.window)
    if window == 0:
        return (), 0
    key = "attention.sliding_window_pattern"
    pattern, every = read.values.get(key), family.window_every
    if isinstance(pattern, GGUFArray) and pattern.count == layers:
        flags = pattern.values()
        if all(isinstance(flag, bool) for flag in flags):
            return flags, window
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern >= 0:
        every = pattern
    elif pattern is not None:
        raise UnsupportedModelError(
            f"{read.name(key)} is {shown(pattern)}; supported are a whole number and an array of "
            f"{layers} bools"
        )
    if every < 0:
        raise UnsupportedModelError(
            f"{read.name('attention.sliding_window')} is {window} without a pattern: which layers "
            "use it is unknown",
            hint="convert the original model again with a current converter",
        )
    if every == 0:
        report.decide(f"sliding window of {window} tokens on every layer")
    return tuple(every == 0 or i % every < every - 1 for i in range(layers)), window


def windows(slides: tuple[bool, ...], window: int, position: int) -> tuple[int, ...]:
    """Window per layer; empty when it is no shorter than the context, which is none at all."""
    if window >= position or not any(slides):
        return ()
    return tuple(window if flag else 0 for flag in slides)


def attention_scale(family: Family, layers: int, hidden: int, heads: int) -> float:
    """Factor on the attention scores; 0 where it follows from the head size."""
    return (hidden // heads) ** -0.5 if layers == family.wide_layers else 0.0
