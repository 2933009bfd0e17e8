"""Sampling as it ships: one tile size for every vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

from ..codegen.variant import Variant
from .config import BINS, CANDIDATES, NUM_WARPS, VOCAB_BLOCK
from .kernel import argmax_kernel, sample_kernel


def variants(arch: int) -> Iterator[Variant]:
    """Representative configurations; the same for every compute capability."""
    for dtype in ("fp16", "bf16", "fp32"):
        yield Variant(
            kernel="sampling.argmax",
            config=dtype,
            fn=argmax_kernel,
            signature={
                "logits_ptr": f"*{dtype}",
                "out_ptr": "*i64",
                "vocabulary": "i32",
                "logits_stride": "i32",
            },
            constants={"BLOCK": VOCAB_BLOCK},
            divisible=("logits_ptr", "out_ptr"),
            num_warps=NUM_WARPS,
            num_stages=3,
            unit=VOCAB_BLOCK / 32 / NUM_WARPS,
        )
    for dtype, penalties in (("fp16", True), ("bf16", False), ("fp32", True)):
        yield Variant(
            kernel="sampling.sample",
            config=f"{dtype}{' penalties' if penalties else ''}",
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
