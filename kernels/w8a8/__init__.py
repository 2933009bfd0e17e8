"""W8A8: 8-bit weights times 8-bit activations (SmoothQuant int8, and float8 e4m3)."""

from __future__ import annotations

from .layout import PackedW8A8, pack_w8a8
from .op import quantize_rows, w8a8_linear

__all__ = ["PackedW8A8", "pack_w8a8", "quantize_rows", "w8a8_linear"]
