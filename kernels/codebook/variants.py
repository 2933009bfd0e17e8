"""The shipped configurations of the codebook kernels, for the codegen gate."""

from __future__ import annotations

from collections.abc import Iterator

from ..codegen.variant import Variant
from ..w8a16.variants import dequantize, product


def variants(arch: int) -> Iterator[Variant]:
    """All tiles and types with blocks of 64; other blocks, row tables and epilogues with some."""
    for dtype in ("fp16", "bf16"):
        for bm in (8, 16, 32, 64, 128) if arch else (16, 32, 64, 128):
            yield product(arch, "codebook", 4, bm, 64, dtype, scale="fp32")
        for group in (0, 32, 128, 256):
            yield product(arch, "codebook", 4, 16, group, dtype, scale="fp32")
        yield product(arch, "codebook", 4, 16, 0, dtype, lut_rows=True)
        yield product(arch, "codebook", 4, 16, 64, dtype, even=False, bias=True, residual=True)
        yield dequantize(arch, "codebook", 4, 64, dtype)
