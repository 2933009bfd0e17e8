"""Every W8A8 kernel configuration that ships, for the codegen gate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..codegen.variant import Variant
from ..device.column_order import ColumnOrder
from . import config as cfg
from .kernel import gemm, quantize

_POINTERS = ("x_ptr", "w_ptr", "sx_ptr", "sw_ptr", "zx_ptr", "colsum_ptr", "bias_ptr", "res_ptr")
_POINTERS += ("y_ptr", "work_ptr", "count_ptr", "experts_ptr")
_NUMBERS = ("M", "N", "K", "W_STEP", "SX_STEP", "ZX_STEP", "per_expert")


def variants(arch: int) -> Iterator[Variant]:
    """Those of both types."""
    yield from int8_variants(arch)
    yield from float8_variants(arch)


def int8_variants(arch: int) -> Iterator[Variant]:
    """Tiles by split and epilogue; row quantizers."""
    yield from _gemms(arch, "i8")
    for k in (4096, 28672):
        yield _quantize("i8", k)
        yield _quantize("i8", k, zero=True)
    yield _quantize("i8", 4096, static=True)
    yield _quantize("i8", 4096, top=127.5)
    # For W4A8.
    yield _quantize("i8", 4096, order="together")
    yield _quantize("i8", 28672, order="apart")


def float8_variants(arch: int) -> Iterator[Variant]:
    """The same where there is a float8 product."""
    if arch >= 89:
        yield from _gemms(arch, "fp8e4nv")
        for k in (4096, 28672):
            yield _quantize("fp8e4nv", k, top=448.0)


def _gemms(arch: int, kind: str) -> Iterator[Variant]:
    for tile in cfg.tiles_of(arch):
        yield _gemm(arch, tile, kind, "fp16")
        yield _gemm(arch, tile, kind, "bf16", even=False, epilogue="zbr")
        yield _gemm(arch, tile, kind, "bf16", split=4)
    yield _gemm(arch, cfg.tiles_of(arch)[0], kind, "bf16", epilogue="be")
    square, wide = cfg.square_tile(arch), cfg.wide_tile(arch, kind != "i8")
    yield _gemm(arch, square, kind, "fp16")
    yield _gemm(arch, square, kind, "bf16", even=False, epilogue="br")
    if cfg.choose(arch, 8192, 8192, zero=True, residual=True) == square:
        yield _gemm(arch, square, kind, "bf16", epilogue="zbr")
    if wide is not None:
        yield _gemm(arch, wide, kind, "fp16")
        yield _gemm(arch, wide, kind, "bf16", even=False, epilogue="b")


def _gemm(
    arch: int,
    tile: cfg.GemmConfig,
    kind: str,
    dtype: str,
    split: int = 1,
    even: bool = True,
    epilogue: str = "",
) -> Variant:
    """``epilogue``: of z (zero point, int8 only), b (bias), r (residual), e (by expert)."""
    integer = kind == "i8"
    types: dict[str, str] = {
        **dict.fromkeys(("x_ptr", "w_ptr"), f"*{kind}"),
        **dict.fromkeys(("sx_ptr", "sw_ptr"), "*fp32"),
        **dict.fromkeys(("zx_ptr", "colsum_ptr", "count_ptr", "experts_ptr"), "*i32"),
        **dict.fromkeys(("bias_ptr", "res_ptr", "y_ptr"), f"*{dtype}"),
        "work_ptr": "*i32" if integer else "*fp32",
        **dict.fromkeys(_NUMBERS, "i32"),
    }
    constants: dict[str, Any] = {
        "BM": tile.bm,
        "BN": tile.bn,
        "BK": tile.bk,
        "SPLIT": split,
        "GROUP_M": cfg.GROUP_M,
        "EVEN_K": even,
        "HAS_ZX": "z" in epilogue and integer,
        "HAS_BIAS": "b" in epilogue,
        "HAS_RES": "r" in epilogue,
        "GROUPED": "e" in epilogue,
        "IMPRECISE": cfg.imprecise(arch),
        "INTERPRET": False,
    }
    parts = [kind, dtype, tile.name]
    parts += [f"split{split}"] * (split > 1) + ["ragged"] * (not even) + [epilogue] * bool(epilogue)
    return Variant(
        kernel="w8a8.gemm",
        config=" ".join(parts),
        fn=gemm,
        signature=types,
        constants=constants,
        divisible=(*_POINTERS, "N", "K", "W_STEP"),
        num_warps=tile.warps,
        num_stages=tile.stages,
        # Weights that a lane handles in one pass.
        unit=tile.bn * tile.bk / (32 * tile.warps),
    )


def _quantize(
    kind: str,
    k: int,
    zero: bool = False,
    static: bool = False,
    top: float = 127.0,
    order: ColumnOrder = "plain",
) -> Variant:
    block, warps = cfg.quantize_block(k)
    parts = [kind, f"k{k}"] + ["zero"] * zero + ["static"] * static + ["top127.5"] * (top == 127.5)
    parts += [order] * (order != "plain")
    return Variant(
        kernel="w8a8.quantize",
        config=" ".join(parts),
        fn=quantize,
        signature={
            **{"x_ptr": "*bf16", "q_ptr": f"*{kind}", "s_ptr": "*fp32"},
            **{"z_ptr": "*i32" if zero else "*fp32", "K": "i32", "K_OUT": "i32"},
        },
        constants={
            "BLOCK": block,
            "ONE_PASS": k <= block,
            "STATIC": static,
            "HAS_Z": zero,
            "TOP": top,
            "ORDER": order,
        },
        divisible=("x_ptr", "q_ptr", "s_ptr", "z_ptr", "K", "K_OUT"),
        num_warps=warps,
        num_stages=3,
    )
