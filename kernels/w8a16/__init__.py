"""W8A16: 8-bit weights, by group or channel, times fp16 or bf16 activations."""

from __future__ import annotations

from .gather import gather_rows
from .layout import PackedW8A16, pack_w8a16
from .op import dequantize, w8a16_linear

__all__ = ["PackedW8A16", "dequantize", "gather_rows", "pack_w8a16", "w8a16_linear"]
