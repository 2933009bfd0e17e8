"""The shipped configurations of the codebook kernels, for the codegen gate."""

from __future__ import annotations

from collections.abc import Iterator

from ..codegen.variant import Variant
from ..fragments.compiled import dequantize, product
from ..fragments.config import most_tokens


def variants(arch: int) -> Iterator[Variant]:
    """All tiles with blocks of 64 and with scales of a byte; others, row tables and ends with some.

    The lookup does not depend on the type of the entries, so bf16 adds two tiles only.
    """
    for bm in (8, 16, 32, 64) if arch else (16, 32, 64):
        yield product(arch, "codebook", 4, bm, 64, "fp16", scale="fp32")
        if bm <= 16:
            yield product(arch, "codebook", 4, bm, 64, "bf16", scale="fp32")
    for group in (0, 32, 128, 256):
        yield product(arch, "codebook", 4, 16, group, "fp16", scale="fp32")
    # MXFP4 and NVFP4, whose scales are bytes.
    for scale, group in (("e8m0", 32), ("e4m3", 16)):
        for dtype in ("fp16", "bf16"):
            for bm in (8, 16, 32, 64) if arch else (16, 32, 64):
                if bm <= most_tokens(narrow=group == 16):
                    yield product(arch, "codebook", 4, bm, group, dtype, scale=scale)
            yield dequantize(arch, "codebook", 4, group, dtype, scale=scale)
        flags = {"even": False, "bias": True, "residual": True}
        yield product(arch, "codebook", 4, 16, group, "bf16", scale=scale, **flags)
    yield product(arch, "codebook", 4, 16, 0, "fp16", lut_rows=True)
    yield product(arch, "codebook", 4, 16, 64, "fp16", even=False, bias=True, residual=True)
    yield product(arch, "codebook", 4, 16, 64, "bf16", scale="fp32", experts=True)
    for dtype in ("fp16", "bf16"):
        yield dequantize(arch, "codebook", 4, 64, dtype)
