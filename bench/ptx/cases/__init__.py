"""A call for every shipped kernel that launches one given variant of it, and what must come out."""

from __future__ import annotations

from .attention import decode_case, prefill_case
from .base import PreparedCase, PtxCase
from .fragments import fragment_dequantize_case, fragment_product_case, gather_case
from .fused import (
    add_rms_norm_case,
    embed_norm_case,
    gated_case,
    gather_step_case,
    rope_write_kv_case,
)
from .sampling import argmax_case, sample_case
from .w4a16 import w4a16_dequantize_case, w4a16_product_case
from .w8a8 import gemm_case, quantize_case

CASES: dict[str, PtxCase] = {
    "attention.decode": decode_case,
    "attention.prefill": prefill_case,
    "attention.reduce": decode_case,
    "codebook.dequantize": fragment_dequantize_case,
    "codebook.gemm": fragment_product_case,
    "fused.add_rms_norm": add_rms_norm_case,
    "fused.embed_norm": embed_norm_case,
    "fused.gated": gated_case,
    "fused.gather_step": gather_step_case,
    "fused.rope_write_kv": rope_write_kv_case,
    "sampling.argmax": argmax_case,
    "sampling.sample": sample_case,
    "w4a16.dequantize": w4a16_dequantize_case,
    "w4a16.direct": w4a16_product_case,
    "w4a16.late": w4a16_product_case,
    "w8a16.dequantize": fragment_dequantize_case,
    "w8a16.gather": gather_case,
    "w8a16.gemm": fragment_product_case,
    "w8a8.gemm": gemm_case,
    "w8a8.quantize": quantize_case,
}
"""By the kernel of a variant; a test compares the names with those that ship."""

__all__ = ["CASES", "PreparedCase", "PtxCase"]
