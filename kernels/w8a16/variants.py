"""The shipped configurations of the W8A16 kernels, for the codegen gate."""

from __future__ import annotations

from collections.abc import Iterator

from ..codegen.variant import Variant
from ..fragments.compiled import dequantize, product, weight_types
from ..fragments.config import most_tokens
from .gather import GATHER_BLOCK, gather_kernel


def variants(arch: int) -> Iterator[Variant]:
    """All tiles and types with channel scales; groups, offsets and epilogues with some."""
    for dtype in ("fp16", "bf16"):
        for bm in (8, 16, 32, 64) if arch else (16, 32, 64):
            yield product(arch, "w8a16", 2, bm, 0, dtype)
            if bm <= most_tokens(narrow=True):
                yield product(arch, "w8a16", 2, bm, 128, dtype, scale="fp32", offset=True)
        yield product(arch, "w8a16", 2, 16, 32, dtype)
        yield product(arch, "w8a16", 2, 16, 0, dtype, bias=True, experts=True)
        yield product(arch, "w8a16", 2, 16, 32, dtype, even=False, bias=True, residual=True)
        # Groups of 16 are those of Q6_K, Q3_K, and Q2_K, which has offsets.
        for bm in (8, 16, 32, 64) if arch else (16, 32, 64):
            yield product(arch, "w8a16", 2, bm, 16, dtype, scale="fp32")
        yield product(arch, "w8a16", 2, 16, 16, dtype, scale="fp32", offset=True)
        # float8 weights in blocks of 128 by 128.
        for bm in (8, 16, 32, 64) if arch else (16, 32, 64):
            yield product(arch, "w8a16", 2, bm, 128, dtype, scale="fp32", float8=True)
        yield dequantize(arch, "w8a16", 2, 128, dtype, scale="fp32", float8=True)
        yield dequantize(arch, "w8a16", 2, 32, dtype)
        yield _gather(arch, dtype)


def _gather(arch: int, dtype: str) -> Variant:
    """Rows of an embedding in Q6_K."""
    types = weight_types(arch, dtype, "fp32")
    del types["lut_ptr"]
    integers = ("vocabulary", "K", "atoms", "tiles_k")
    return Variant(
        kernel="w8a16.gather",
        config=f"g16 fp32 w4 {dtype}",
        fn=gather_kernel,
        signature={"ids_ptr": "*i64", **types, "out_ptr": f"*{dtype}", "factor": "fp32"}
        | dict.fromkeys(integers, "i32"),
        constants={"BLOCK": GATHER_BLOCK, "GROUP": 16, "OFFSET": False},
        divisible=("ids_ptr", *types, "out_ptr"),
        num_warps=4,
        num_stages=3,
    )
