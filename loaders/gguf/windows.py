"""Sliding windows of a GGUF file, layer by layer."""

from __future__ import annotations

from halfbyte.errors import UnsupportedModelError

from ..files.fields import Fields, shown
from ..model import checks as limits
from ..model.families import ModelFamily
from ..model.report import LoadReport
from .reader import GGUFArray


def sliding_layers(
    read: Fields, family: ModelFamily, layers: int, report: LoadReport
) -> tuple[tuple[bool, ...], int]:
    """Per layer whether it has the sliding window, and the window in tokens; ``((), 0)`` for none.

    Raises:
        CheckpointError: a value is out of bounds.
        UnsupportedModelError: which layers have the window is unknown.
    """
    window = read.integer("attention.sliding_window", 0, limits.MAX_POSITION, family.gguf.window)
    if window == 0:
        return (), 0
    key = "attention.sliding_window_pattern"
    pattern, every = read.values.get(key), family.gguf.window_every
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
