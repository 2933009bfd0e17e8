"""Sampling as it ships: one tile size for every vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

from ..codegen.variant import Variant
from .config import BINS, CANDIDATES, MOST_PARTS, NUM_WARPS, VOCAB_BLOCK
from .kernel import argmax_kernel, sample_kernel

_ODD = {8: "", 1: " odd"}


def variants(arch: int) -> Iterator[Variant]:
    """Representative configurations; the same for every compute capability.

    Rows of whole eights, and one of each kernel for others ("odd").
    """
    for dtype, unit in (("fp16", 8), ("bf16", 8), ("fp32", 8), ("fp16", 1)):
        yield Variant(
            kernel="sampling.argmax",
            config=f"{dtype}{_ODD[unit]}",
            fn=argmax_kernel,
            signature={
                "logits_ptr": f"*{dtype}",
                "out_ptr": "*i64",
                "parts_ptr": "*i64",
                "count_ptr": "*i32",
                "vocabulary": "i32",
                "logits_stride": "i32",
                "span": "i32",
            },
            constants={"BLOCK": VOCAB_BLOCK, "UNIT": unit, "PARTS": MOST_PARTS},
            divisible=("logits_ptr", "out_ptr", "parts_ptr", "count_ptr"),
            num_warps=NUM_WARPS,
            num_stages=3,
            unit=VOCAB_BLOCK / 32 / NUM_WARPS,
        )
    samplers = (("fp16", True, 8), ("bf16", False, 8), ("fp32", True, 8), ("bf16", True, 1))
    for dtype, penalties, unit in samplers:
        yield Variant(
            kernel="sampling.sample",
            config=f"{dtype}{' penalties' if penalties else ''}{_ODD[unit]}",
            fn=sample_kernel,
            signature={
                "logits_ptr": f"*{dtype}",
                "floats_ptr": "*fp32",
                "ints_ptr": "*i64",
                "counts_ptr": "*i32",
                "work_ptr": "*i32",
                "out_ptr": "*i64",
                "logprob_ptr": "*fp32",
                "vocabulary": "i32",
                "logits_stride": "i32",
                "counts_stride": "i32",
            },
            constants={
                "BLOCK": VOCAB_BLOCK,
                "UNIT": unit,
                "CANDIDATES": CANDIDATES,
                "BINS": BINS,
                "PENALTIES": penalties,
                "LOGPROBS": True,
            },
            divisible=(
                *("logits_ptr", "floats_ptr", "ints_ptr", "counts_ptr", "work_ptr", "out_ptr"),
                "logprob_ptr",
            ),
            num_warps=NUM_WARPS,
            num_stages=3,
            options={"enable_fp_fusion": False},
        )
