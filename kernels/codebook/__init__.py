"""Codebook weights (NF4, FP4, any 16-entry table) times fp16 or bf16 activations."""

from __future__ import annotations

from .layout import PackedCodebook, pack_codebook
from .op import codebook_linear, dequantize

__all__ = ["PackedCodebook", "codebook_linear", "dequantize", "pack_codebook"]
