"""Fused ops as they ship: Llama-3-8B and 70B shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..codegen.variant import Variant
from ..device.choice import FLOAT8_ARCH
from ..device.dependent import dependent_launch, early_launch
from ..device.input_rounding import InputRounding
from .activation_kernel import gated_kernel, gated_quant_kernel
from .config import gated_tile, head_tile, next_power_of_2, row_tile
from .norm_kernel import embed_norm_kernel, norm_kernel
from .outputs import code_constants
from .rope_kernel import rope_kernel

CODE_ROUNDINGS = {
    "int8": InputRounding(top=127.5),
    "int8-zero": InputRounding(asymmetric=True, top=127.5),
    "int8-static": InputRounding(top=127.5, scale=torch.tensor([0.05])),
    "e4m3": InputRounding(torch.float8_e4m3fn, top=448.0),
}
"""What rows are rounded by in the variants that do so, by name."""


def _make(
    name: str,
    config: str,
    fn: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    warps: int,
    early: bool = False,
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
        options=early_launch(early),
    )


def _code_types(codes: str) -> dict[str, str]:
    """Pointers of codes called so, or of stand-ins of a type."""
    if codes not in CODE_ROUNDINGS:
        return dict.fromkeys(("codes_ptr", "scales_ptr", "zeros_ptr"), f"*{codes}")
    rule = CODE_ROUNDINGS[codes]
    kind = {torch.int8: "i8", torch.float8_e4m3fn: "fp8e4nv"}[rule.dtype]
    zeros = "*i32" if rule.asymmetric else "*fp32"
    return {"codes_ptr": f"*{kind}", "scales_ptr": "*fp32", "zeros_ptr": zeros}


def _code_constants(codes: str) -> dict[str, Any]:
    made = code_constants(CODE_ROUNDINGS.get(codes))
    del made["QUANT"]
    return made


def _norm(early: bool, dtype: str, width: int, group: int, codes: str = "") -> Variant:
    block, warps = row_tile(width, group)
    types = {name: f"*{dtype}" for name in ("x_ptr", "residual_ptr", "out_ptr")}
    types |= {"rows_ptr": "*i64", "w_ptr": "*fp32", "sums_ptr": "*fp32", "eps": "fp32"}
    constants = {"D": width, "BLOCK": block, "GROUP": max(group, 1), "ADD": not codes}
    constants |= {"PICK": False, "PLUS_ONE": False, "STORE": not codes, "SUMS": group > 0}
    types |= _code_types(codes or dtype)
    constants |= {"QUANT": bool(codes), **_code_constants(codes), "EARLY": early}
    config = f"{dtype} {width}{f' g{group}' if group else ''}{' ' * bool(codes)}{codes}"
    return _make("add_rms_norm", config, norm_kernel, types, constants, warps, early)


def _embed(dtype: str, width: int) -> Variant:
    block, warps = row_tile(width)
    types = {name: f"*{dtype}" for name in ("table_ptr", "residual_ptr", "out_ptr")}
    types |= {"ids_ptr": "*i64", "w_ptr": "*fp32", "sums_ptr": "*fp32"}
    types |= {"vocabulary": "i32", "scale": "fp32", "eps": "fp32"}
    constants = {"D": width, "BLOCK": block, "GROUP": 1, "SCALED": False, "NORM": True}
    constants |= {"PLUS_ONE": False, "STORE": True, "SUMS": False}
    return _make("embed_norm", f"{dtype} {width}", embed_norm_kernel, types, constants, warps)


def _gated(dtype: str, width: int, activation: str, codes: str = "") -> Variant:
    group = 0 if codes else 128
    block, warps = gated_tile(width, group)
    types = {"x_ptr": f"*{dtype}", "out_ptr": f"*{dtype}", "sums_ptr": "*fp32"}
    constants = {"WIDTH": width, "BLOCK": block, "GROUP": max(group, 1), "SUMS": group > 0}
    constants |= {"GELU": activation == "gelu", "CLIPPED": activation == "clipped"}
    config = f"{dtype} {width} {activation} {codes or f'g{group}'}"
    if not codes:
        return _make("gated", config, gated_kernel, types, constants, warps)
    types |= _code_types(codes)
    constants |= {"STORE": False, **_code_constants(codes)}
    return _make("gated", config, gated_quant_kernel, types, constants, warps)


def _rope(
    early: bool, dtype: str, heads: int, dim: int, half: int, norm: bool, codes: str
) -> Variant:
    count, warps = head_tile(heads + 16, next_power_of_2(half))
    cache = {"": f"*{dtype}", "int8": "*i8", "e4m3": "*fp8e4nv"}[codes]
    types = {"qkv_ptr": f"*{dtype}", "q_ptr": f"*{dtype}", "k_ptr": cache, "v_ptr": cache}
    types |= {"rope_ptr": "*fp32", "slots_ptr": "*i64", "q_norm_ptr": "*fp32"}
    types |= {"k_norm_ptr": "*fp32", "k_scale_ptr": "*fp32", "v_scale_ptr": "*fp32"}
    types |= {"q_stride": "i32", "block_stride": "i32", "scale_stride": "i32", "eps": "fp32"}
    rest = dim - 2 * half
    constants = {"Q_HEADS": heads, "KV_HEADS": 8, "DIM": dim, "HALF": half, "PAGE": 64}
    constants |= {"HEADS": count, "HALF_TILE": next_power_of_2(half)}
    constants |= {"REST_TILE": next_power_of_2(rest) if rest else 0}
    constants |= {"NORM": norm, "INTERLEAVED": False, "QUANT": bool(codes), "EARLY": early}
    name = f"{dtype} h{heads} d{dim} r{2 * half}{' norm' * norm}{codes and ' ' + codes}"
    return _make("rope_write_kv", name, rope_kernel, types, constants, warps, early)


def variants(arch: int) -> Iterator[Variant]:
    """Representative configurations; the same for every compute capability."""
    early = dependent_launch(arch)
    for dtype in ("fp16", "bf16"):
        for width in (4096, 8192):
            yield _norm(early, dtype, width, 0)
        yield _embed(dtype, 4096)
        yield _rope(early, dtype, 32, 128, 64, False, "")
    yield _norm(early, "fp16", 4096, 128)
    yield _gated("fp16", 14336, "silu")
    yield _gated("bf16", 14336, "gelu")
    yield _gated("bf16", 2880, "clipped")
    for codes in CODE_ROUNDINGS:
        if codes != "e4m3" or arch >= FLOAT8_ARCH:
            yield _norm(early, "bf16", 8192, 0, codes)
            yield _gated("bf16", 28672, "silu", codes)
    yield _rope(early, "bf16", 64, 128, 64, True, "")
    yield _rope(early, "fp16", 32, 128, 64, False, "int8")
    if arch >= FLOAT8_ARCH:
        yield _rope(early, "bf16", 32, 128, 64, False, "e4m3")
    yield _rope(early, "fp16", 32, 80, 16, False, "")
