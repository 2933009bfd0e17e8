"""The variants of the fragment kernels that kinds ship, for the codegen gate."""

from __future__ import annotations

from typing import Any

from ..codegen.variant import Variant
from .config import launch_options, tile
from .kernel import dequantize_kernel, product_kernel
from .layout import BYTE_SCALE_TYPES

_WEIGHT = ("words_ptr", "scale_ptr", "offset_ptr", "lut_ptr")
_POINTERS = ("x_ptr", *_WEIGHT, "out_ptr", "bias_ptr", "residual_ptr", "work_ptr")
_POINTERS += ("count_ptr", "experts_ptr")
_INTEGERS = ("M", "N", "atoms", "tiles_k", "tiles_split", "splits", "k_units", "per_expert")


def product(
    arch: int,
    family: str,
    planes: int,
    bm: int,
    group: int,
    dtype: str,
    *,
    scale: str = "fp16",
    even: bool = True,
    **flags: bool,
) -> Variant:
    """``flags``: offset, lut_rows, float8, bias, residual, experts."""
    config = tile(arch, bm, planes)
    options = launch_options(config, arch, planes, group)
    types: dict[str, str] = dict.fromkeys(_POINTERS, f"*{dtype}")
    types |= weight_types(arch, dtype, scale)
    types |= {"work_ptr": "*fp32", "count_ptr": "*i32", "experts_ptr": "*i32"}
    constants: dict[str, Any] = {
        **_weight_constants(arch, planes, group, scale, flags),
        "BM": config.bm,
        "BN": config.bn,
        "EVEN_K": even,
        "K_UNIT": 8,
        "BIAS": flags.get("bias", False),
        "RESIDUAL": flags.get("residual", False),
        "GROUPED": flags.get("experts", False),
        "INTERPRET": False,
        "WARPS": config.warps,
    }
    words = [f"m{bm} g{group} {scale} {config.bm}x{config.bn} w{config.warps} s{config.stages}"]
    words += [dtype] + ["odd"] * (not even) + [name for name, on in flags.items() if on]
    return Variant(
        kernel=f"{family}.gemm",
        config=" ".join(words),
        fn=product_kernel,
        signature=types | dict.fromkeys(_INTEGERS, "i32"),
        constants=constants,
        divisible=_POINTERS,
        num_warps=options.pop("num_warps"),
        num_stages=options.pop("num_stages"),
        options=options,
        # Weights that a lane handles in one pass.
        unit=config.bn * 32 * planes / (32 * config.warps),
    )


def dequantize(
    arch: int,
    family: str,
    planes: int,
    group: int,
    dtype: str,
    *,
    scale: str = "fp16",
    **flags: bool,
) -> Variant:
    """The kernel that writes a dense weight."""
    words = [f"g{group} w4 {dtype}"] + [name for name, on in flags.items() if on]
    if scale in BYTE_SCALE_TYPES.values():
        words.append(scale)
    integers = ("first_atom", "atoms", "tiles_k", "k_units")
    return Variant(
        kernel=f"{family}.dequantize",
        config=" ".join(words),
        fn=dequantize_kernel,
        signature=weight_types(arch, dtype, scale)
        | {"out_ptr": f"*{dtype}"}
        | dict.fromkeys(integers, "i32"),
        constants={**_weight_constants(arch, planes, group, scale, flags), "K_UNIT": 8},
        divisible=(*_WEIGHT, "out_ptr"),
        num_warps=4,
        num_stages=1,
    )


def weight_types(arch: int, dtype: str, scale: str) -> dict[str, str]:
    """Types of the pointers to a weight's parts."""
    table = "*i32" if arch > 0 else f"*{dtype}"
    kinds = {"e8m0": ("*i32", "*i32"), "e4m3": ("*i32", "*fp32")}
    own, beside = kinds.get(scale, (f"*{scale}", f"*{scale}"))
    return {"words_ptr": "*i32", "lut_ptr": table, "scale_ptr": own, "offset_ptr": beside}


def _weight_constants(
    arch: int, planes: int, group: int, scale: str, flags: dict[str, bool]
) -> dict[str, Any]:
    return {
        "PLANES": planes,
        "GROUP": group,
        "OFFSET": flags.get("offset", False),
        "SCALE": scale if scale in BYTE_SCALE_TYPES.values() else "",
        "FLOAT8": flags.get("float8", False),
        "LUT_ROWS": flags.get("lut_rows", False),
        "PTX": arch > 0,
    }
