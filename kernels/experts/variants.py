"""The kernels around a mixture's products as they ship: Mixtral's and Qwen3-30B-A3B's layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..codegen.variant import Variant
from .config import chunk_tokens, padded_experts, pair_block, row_block
from .kernel import add_shares_kernel, gather_rows_kernel, place_kernel, route_kernel


def variants(arch: int) -> Iterator[Variant]:
    """Two layers; the same for every compute capability."""
    for experts, per_token, width, dtype in ((8, 2, 4096, "fp16"), (128, 8, 2048, "bf16")):
        name = f"e{experts} k{per_token}"
        padded, chunk = padded_experts(experts), chunk_tokens(experts)
        sizes = {"E2": padded, "K": per_token}
        integers = {"chunk_counts_ptr": "*i32", "expert_ptr": "*i32"}
        yield _make(
            "route",
            f"{name} {dtype}",
            route_kernel,
            {"scores_ptr": f"*{dtype}", "share_ptr": "*fp32", **integers, "T": "i32"},
            {**sizes, "E": experts, "CHUNK": chunk, "NORMALIZE": experts == 128},
        )
        rest = dict.fromkeys(("place_ptr", "pair_ptr", "tile_ptr", "span_ptr"), "*i32")
        yield _make(
            "place",
            name,
            place_kernel,
            {**integers, **rest, **dict.fromkeys(("pairs", "chunks", "tiles"), "i32")},
            {**sizes, "CHUNK": chunk, "ROWS": 16, "BLOCK": pair_block(experts)},
        )
        block = row_block(width)
        pointers = dict.fromkeys(("pair_ptr", "tile_ptr", "span_ptr"), "*i32")
        yield _make(
            "gather_rows",
            f"{name} {width} {dtype}",
            gather_rows_kernel,
            {"x_ptr": f"*{dtype}", **pointers, "out_ptr": f"*{dtype}"},
            {**sizes, "D": width, "BLOCK": block, "ROWS": 16},
        )
        floats = dict.fromkeys(("y_ptr", "residual_ptr"), f"*{dtype}")
        yield _make(
            "add_shares",
            f"{name} {width} {dtype}",
            add_shares_kernel,
            {**floats, "place_ptr": "*i32", "share_ptr": "*fp32"},
            {"D": width, "BLOCK": block, "K": per_token},
        )


def _make(
    name: str, config: str, fn: Any, types: Mapping[str, str], constants: Mapping[str, Any]
) -> Variant:
    return Variant(
        kernel=f"experts.{name}",
        config=config,
        fn=fn,
        signature=types,
        constants=constants,
        divisible=tuple(name for name, kind in types.items() if kind.startswith("*")),
        num_warps=4,
        num_stages=3,
    )
