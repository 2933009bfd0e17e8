"""The shipped configurations of the fragment kernels, for the codegen gate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..codegen.variant import Variant
from .config import launch_options, most_tokens, tile
from .gather import BLOCK, gather_kernel
from .kernel import dequantize_kernel, product_kernel

_WEIGHT = ("words_ptr", "scale_ptr", "offset_ptr", "lut_ptr")
_POINTERS = ("x_ptr", *_WEIGHT, "out_ptr", "bias_ptr", "residual_ptr", "work_ptr", "count_ptr")
_INTEGERS = ("M", "N", "atoms", "tiles_k", "tiles_split", "splits", "k_units")


def variants(arch: int) -> Iterator[Variant]:
    """All tiles and types with channel scales; groups, offsets and epilogues with some."""
    for dtype in ("fp16", "bf16"):
        for bm in (8, 16, 32, 64) if arch else (16, 32, 64):
            yield product(arch, "w8a16", 2, bm, 0, dtype)
            if bm <= most_tokens(offset=True):
                yield product(arch, "w8a16", 2, bm, 128, dtype, scale="fp32", offset=True)
        yield product(arch, "w8a16", 2, 16, 32, dtype)
        yield product(arch, "w8a16", 2, 16, 32, dtype, even=False, bias=True, residual=True)
        # Groups of 16 are those of Q6_K, Q3_K, and Q2_K, which has offsets.
        for bm in (8, 16, 32, 64) if arch else (16, 32, 64):
            yield product(arch, "w8a16", 2, bm, 16, dtype, scale="fp32")
        yield product(arch, "w8a16", 2, 16, 16, dtype, scale="fp32", offset=True)
        yield dequantize(arch, "w8a16", 2, 32, dtype)
        yield _gather(arch, dtype)


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
    """``flags``: offset, lut_rows, bias, residual."""
    config = tile(arch, bm, planes)
    options = launch_options(config, arch, planes, group)
    types: dict[str, str] = dict.fromkeys(_POINTERS, f"*{dtype}")
    types |= _weight_types(arch, dtype, scale)
    types |= {"work_ptr": "*fp32", "count_ptr": "*i32"}
    constants: dict[str, Any] = {
        **_weight_constants(arch, planes, group, flags),
        "BM": config.bm,
        "BN": config.bn,
        "EVEN_K": even,
        "K_UNIT": 8,
        "BIAS": flags.get("bias", False),
        "RESIDUAL": flags.get("residual", False),
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
    arch: int, family: str, planes: int, group: int, dtype: str, **flags: bool
) -> Variant:
    """The kernel that writes a dense weight."""
    words = [f"g{group} w4 {dtype}"] + [name for name, on in flags.items() if on]
    integers = ("first_atom", "atoms", "tiles_k", "k_units")
    return Variant(
        kernel=f"{family}.dequantize",
        config=" ".join(words),
        fn=dequantize_kernel,
        signature=_weight_types(arch, dtype, "fp16")
        | {"out_ptr": f"*{dtype}"}
        | dict.fromkeys(integers, "i32"),
        constants={**_weight_constants(arch, planes, group, flags), "K_UNIT": 8},
        divisible=(*_WEIGHT, "out_ptr"),
        num_warps=4,
        num_stages=1,
    )


def _gather(arch: int, dtype: str) -> Variant:
    """Rows of an embedding in Q6_K."""
    types = _weight_types(arch, dtype, "fp32")
    del types["lut_ptr"]
    integers = ("vocabulary", "K", "atoms", "tiles_k")
    return Variant(
        kernel="w8a16.gather",
        config=f"g16 fp32 w4 {dtype}",
        fn=gather_kernel,
        signature={"ids_ptr": "*i64", **types, "out_ptr": f"*{dtype}", "factor": "fp32"}
        | dict.fromkeys(integers, "i32"),
        constants={"BLOCK": BLOCK, "GROUP": 16, "OFFSET": False},
        divisible=("ids_ptr", *types, "out_ptr"),
        num_warps=4,
        num_stages=3,
    )


def _weight_types(arch: int, dtype: str, scale: str) -> dict[str, str]:
    table = "*i32" if arch > 0 else f"*{dtype}"
    scales = dict.fromkeys(("scale_ptr", "offset_ptr"), f"*{scale}")
    return {"words_ptr": "*i32", "lut_ptr": table, **scales}


def _weight_constants(arch: int, planes: int, group: int, flags: dict[str, bool]) -> dict[str, Any]:
    return {
        "PLANES": planes,
        "GROUP": group,
        "OFFSET": flags.get("offset", False),
        "LUT_ROWS": flags.get("lut_rows", False),
        "PTX": arch > 0,
    }
