"""W4A8: the packed weights of W4A16 by inputs rounded to int8, a scale for each token."""

from __future__ import annotations

from .op import PackedW4A8, quantize_inputs, w4a8_linear

__all__ = ["PackedW4A8", "quantize_inputs", "w4a8_linear"]
