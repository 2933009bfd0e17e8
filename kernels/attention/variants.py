"""Attention as it ships: Llama-3-8B and 70B shapes (head_dim 128, 4 and 8 heads per KV head)
and others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..codegen.variant import Variant
from ..device.choice import FLOAT8_ARCH
from ..device.dependent import dependent_launch, early_launch
from .config import (
    JOIN_TOGETHER,
    LEAST_KEY_CHUNK,
    decode_tile,
    largest_code,
    prefill_tile,
    tile_width,
)
from .decode_kernel import decode_kernel
from .prefill_kernel import prefill_kernel

_CACHES = {"": torch.float16, "int8": torch.int8, "e4m3": torch.float8_e4m3fn}
_CACHE_POINTERS = ("k_ptr", "v_ptr", "k_scale_ptr", "v_scale_ptr")
_POINTERS = ("q_ptr", *_CACHE_POINTERS, "sinks_ptr", "tables_ptr", "out_ptr")
_TOKENS = ("positions_ptr", "row_index_ptr", "tokens_ptr")
_STRIDES = ("q_stride", "block_stride", "scale_stride", "table_width", "window")


def _common(arch: int, group: int, page: int, dim: int, **flags: Any) -> dict[str, Any]:
    return {
        "KV_HEADS": 8,
        "GROUP": group,
        "PAGE": page,
        "DIM": dim,
        "WIDTH": tile_width(dim),
        "WINDOW": flags.get("window", False),
        "SOFT_CAP": flags.get("soft_cap", False),
        "SINKS": flags.get("sinks", False),
        "QUANT": largest_code(_CACHES[flags.get("codes", "")]),
        "PTX": arch > 0,
        "INTERPRET": False,
    }


def _signature(dtype: str, codes: str) -> dict[str, str]:
    cache = "*i16" if codes else f"*{dtype}"
    types = {name: f"*{dtype}" for name in ("q_ptr", "out_ptr")}
    types |= {"k_ptr": cache, "v_ptr": cache, "k_scale_ptr": "*fp32", "v_scale_ptr": "*fp32"}
    types |= {"sinks_ptr": "*fp32", "tables_ptr": "*i32", "factor": "fp32", "soft_cap": "fp32"}
    return types | dict.fromkeys(_STRIDES, "i32")


def _decode(arch: int, dtype: str, group: int, page: int, dim: int, **flags: Any) -> Variant:
    codes, listed = flags.get("codes", ""), flags.get("listed", False)
    early = dependent_launch(arch)
    width = tile_width(dim)
    tile = decode_tile(arch, group, page, width, 1 if codes else 2)
    name = " ".join(on if name == "codes" else name for name, on in flags.items() if on)
    return Variant(
        kernel="attention.decode",
        config=f"g{group} p{page} d{dim} w{tile.num_warps} s{tile.num_stages} {dtype} "
        f"{name}".strip(),
        fn=decode_kernel,
        signature=_signature(dtype, codes)
        | {"positions_ptr": "*i32", "row_index_ptr": "*i32", "tokens_ptr": "*i32"}
        | {"partial_ptr": "*fp32", "stats_ptr": "*fp32", "count_ptr": "*i32"}
        | {"splits": "i32", "first_token": "i32"},
        constants=_common(arch, group, page, dim, **flags)
        | {"ROWS": tile.rows, "CHUNK": 0, "LEAST": LEAST_KEY_CHUNK // page}
        | {"SINGLE": False, "INDEXED": listed, "LISTED": listed, "EARLY": early}
        | {"TOGETHER": JOIN_TOGETHER},
        divisible=(*_POINTERS, *_TOKENS, "partial_ptr", "stats_ptr", "count_ptr"),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        options=({"maxnreg": tile.registers} if tile.registers else {}) | early_launch(early),
        unit=page / tile.num_warps,
    )


def _prefill(arch: int, dtype: str, group: int, page: int, dim: int, **flags: Any) -> Variant:
    codes = flags.get("codes", "")
    width = tile_width(dim)
    tile = prefill_tile(arch, group, page, width, 1 if codes else 2)
    name = " ".join(on if name == "codes" else name for name, on in flags.items() if on)
    return Variant(
        kernel="attention.prefill",
        config=f"g{group} p{page} d{dim} m{tile.rows} w{tile.num_warps} s{tile.num_stages} {dtype} "
        f"{name}".strip(),
        fn=prefill_kernel,
        signature=_signature(dtype, codes) | {"work_ptr": "*i32"},
        constants=_common(arch, group, page, dim, **flags)
        | {"ROWS": tile.rows, "APART": tile.apart},
        divisible=(*_POINTERS, "work_ptr"),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        options={"maxnreg": tile.registers} if tile.registers else {},
        unit=page * tile.rows / 16 / tile.num_warps,
    )


def variants(arch: int) -> Iterator[Variant]:
    """Representative configurations for one compute capability.

    The unit is one KV token in decode, and 16 query rows times one KV token in prefill, both per
    warp: instructions of a program's pass over a page, divided by its tokens.
    """
    for make in (_decode, _prefill):
        for group in (4, 8):
            yield make(arch, "fp16", group, 64, 128)
        yield make(arch, "bf16", 4, 64, 128)
        yield make(arch, "fp16", 4, 128, 128)
        yield make(arch, "fp16", 4, 32, 128)
        yield make(arch, "fp16", 4, 16, 128)
        for dim in (64, 80, 96, 256):
            yield make(arch, "fp16", 4, 64, dim)
        yield make(arch, "fp16", 4, 64, 128, codes="int8")
        yield make(arch, "bf16", 4, 64, 128, codes="int8")
        if arch >= FLOAT8_ARCH:
            yield make(arch, "bf16", 4, 64, 128, codes="e4m3")
        yield make(arch, "bf16", 4, 64, 256, soft_cap=True, window=True)
        yield make(arch, "bf16", 8, 64, 64, sinks=True, window=True)
    yield _decode(arch, "fp16", 4, 64, 128, listed=True)
