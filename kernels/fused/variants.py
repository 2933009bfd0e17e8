"""Fused ops as they ship: Llama-3-8B and 70B shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..codegen.variant import Variant
from .activation_kernel import gated_kernel, gated_quant_kernel
from .config import gated_tile, head_tile, next_power_of_2, row_tile
from .gather_kernel import gather_kernel
from .norm_kernel import embed_norm_kernel, norm_kernel
from .rope_kernel import rope_kernel


def _make(
    name: str,
    config: str,
    fn: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    warps: int,
) -> Variant:
    pointers = tuple(name for name, kind in types.items() if kind.startswith("*"))
    return Variant(
        kernel=f"fused.{name}",
        config=config,
        fn=fn,
        signature=types,
        constants=constants,
        divisible=pointers,
        num_warps=warps,
        num_stages=3,
    )


def _norm(dtype: str, width: int, group: int, quant: bool) -> Variant:
    block, warps = row_tile(width, group)
    types = {name: f"*{dtype}" for name in ("x_ptr", "residual_ptr", "out_ptr")}
    types |= {"rows_ptr": "*i64", "w_ptr": "*fp32", "sums_ptr": "*fp32", "codes_ptr": "*i8"}
    types |= {"scales_ptr": "*fp32", "eps": "fp32"}
    constants = {"D": width, "BLOCK": block, "GROUP": max(group, 1), "ADD": True, "PICK": False}
    constants |= {"PLUS_ONE": False, "STORE": True, "SUMS": group > 0, "QUANT": quant}
    config = f"{dtype} {width}{f' g{group}' if group else ''}{' int8' if quant else ''}"
    return _make("add_rms_norm", config, norm_kernel, types, constants, warps)


def _embed(dtype: str, width: int) -> Variant:
    block, warps = row_tile(width)
    types = {name: f"*{dtype}" for name in ("table_ptr", "residual_ptr", "out_ptr")}
    types |= {"ids_ptr": "*i64", "w_ptr": "*fp32", "sums_ptr": "*fp32", "codes_ptr": "*i8"}
    types |= {"scales_ptr": "*fp32", "vocabulary": "i32", "scale": "fp32", "eps": "fp32"}
    constants = {"D": width, "BLOCK": block, "GROUP": 1, "SCALED": False, "NORM": True}
    constants |= {"PLUS_ONE": False, "STORE": True, "SUMS": False, "QUANT": False}
    return _make("embed_norm", f"{dtype} {width}", embed_norm_kernel, types, constants, warps)


def _gated(dtype: str, width: int, gelu: bool, quant: bool) -> Variant:
    block, warps = gated_tile(width, 128)
    types = {"x_ptr": f"*{dtype}", "out_ptr": f"*{dtype}", "sums_ptr": "*fp32"}
    constants = {"WIDTH": width, "BLOCK": block, "GROUP": 128, "GELU": gelu, "SUMS": True}
    config = f"{dtype} {width} {'gelu' if gelu else 'silu'} g128{' int8' if quant else ''}"
    if not quant:
        return _make("gated", config, gated_kernel, types, constants, warps)
    types |= {"codes_ptr": "*i8", "scales_ptr": "*fp32"}
    return _make("gated", config, gated_quant_kernel, types, constants | {"STORE": True}, warps)


def _rope(dtype: str, heads: int, dim: int, half: int, norm: bool, quant: bool) -> Variant:
    count, warps = head_tile(heads + 16, next_power_of_2(half))
    cache = "*i8" if quant else f"*{dtype}"
    types = {"qkv_ptr": f"*{dtype}", "q_ptr": f"*{dtype}", "k_ptr": cache, "v_ptr": cache}
    types |= {"rope_ptr": "*fp32", "slots_ptr": "*i64", "q_norm_ptr": "*fp32"}
    types |= {"k_norm_ptr": "*fp32", "k_scale_ptr": "*fp32", "v_scale_ptr": "*fp32"}
    types |= {"q_stride": "i32", "block_stride": "i32", "scale_stride": "i32", "eps": "fp32"}
    rest = dim - 2 * half
    constants = {"Q_HEADS": heads, "KV_HEADS": 8, "DIM": dim, "HALF": half, "PAGE": 64}
    constants |= {"HEADS": count, "HALF_TILE": next_power_of_2(half)}
    constants |= {"REST_TILE": next_power_of_2(rest) if rest else 0}
    constants |= {"NORM": norm, "QUANT": quant}
    name = f"{dtype} h{heads} d{dim} r{2 * half}{' norm' if norm else ''}{' int8' if quant else ''}"
    return _make("rope_write_kv", name, rope_kernel, types, constants, warps)


def variants(arch: int) -> Iterator[Variant]:
    """Representative configurations; the same for every compute capability."""
    for dtype in ("fp16", "bf16"):
        for width in (4096, 8192):
            yield _norm(dtype, width, 0, False)
        yield _embed(dtype, 4096)
        yield _rope(dtype, 32, 128, 64, False, False)
    yield _norm("fp16", 4096, 128, False)
    yield _norm("bf16", 8192, 0, True)
    yield _gated("fp16", 14336, False, False)
    yield _gated("bf16", 28672, False, True)
    yield _gated("bf16", 14336, True, False)
    yield _rope("bf16", 64, 128, 64, True, False)
    yield _rope("fp16", 32, 128, 64, False, True)
    yield _rope("fp16", 32, 80, 16, False, False)
    types = {
        "rows_ptr": "*i64",
        "positions_ptr": "*i32",
        "tokens_ptr": "*i64",
        "tables_ptr": "*i32",
    }
    types |= {"rope_table_ptr": "*fp32", "rope_shift_ptr": "*i32", "ids_ptr": "*i64"}
    types |= {
        "slots_ptr": "*i64",
        "rope_ptr": "*fp32",
        "tokens_stride": "i32",
        "tables_stride": "i32",
    }
    constants = {"PAGE": 64, "COLUMNS": 128, "TILE": 128, "SHIFT": False}
    yield _make("gather_step", "d128", gather_kernel, types, constants, 1)
