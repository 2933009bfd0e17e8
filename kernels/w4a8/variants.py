"""The shipped configurations of the W4A8 kernel, for the codegen gate."""

from __future__ import annotations

from collections.abc import Iterator

from ..codegen.variant import Variant
from ..device.column_order import SLICE
from . import config as cfg
from .codes import signed
from .kernel import product_kernel

_POINTERS: tuple[str, ...] = (
    *("x_ptr", "scales_ptr", "words_ptr", "table_ptr"),
    *("out_ptr", "bias_ptr", "residual_ptr", "work_ptr", "count_ptr", "experts_ptr"),
)
_INTEGERS: tuple[str, ...] = ("M", "N", "atoms", "tiles_k", "tiles_split", "splits", "per_expert")
# Name of a table's form: shift, additive, entry type.
_FORMS = {
    "sym": (8, False, "i32"),
    "zero": (-1, False, "i32"),
    "zero32": (-1, False, "i64"),
    "sym32": (8, False, "i64"),
    "add": (-1, True, "i32"),
    "add32": (-1, True, "i64"),
}


def variants(arch: int) -> Iterator[Variant]:
    """Shipped configurations for one compute capability; the unit is one weight.

    Tiles, groups and table forms; types and epilogues with one tile, as they surround the loop.
    """
    for group in (128, 64, 32, 256, 0):
        for tile in cfg.tiles_of(group, False, arch):
            yield _product(arch, tile, group, "sym")
            if group in (128, 32):
                yield _product(arch, tile, group, "zero")
    for group in (128, 32):
        for tile in cfg.tiles_of(group, True, arch):
            yield _product(arch, tile, group, "add32")
    for form in ("sym32", "zero32", "add"):
        yield _product(arch, cfg.tiles_of(32, form == "add", arch)[0], 32, form)
    few = cfg.tiles_of(128, False, arch)[0]
    yield _product(arch, few, 128, "sym", dtype="bf16")
    yield _product(arch, few, 128, "zero", end="bias")
    yield _product(arch, few, 128, "zero", end="residual", dtype="bf16")
    yield _product(arch, few, 128, "zero", end="silu")
    yield _product(arch, few, 128, "zero", end="experts")


def _product(
    arch: int, tile: cfg.W4A8Config, group: int, form: str, *, dtype: str = "fp16", end: str = ""
) -> Variant:
    """``end``: ``bias``, ``residual``, ``silu``, ``experts`` or nothing."""
    shift, additive, entry = _FORMS[form]
    types: dict[str, str] = dict.fromkeys(_POINTERS, f"*{dtype}")
    types |= {"x_ptr": "*i8", "words_ptr": "*i32", "table_ptr": f"*{entry}"}
    types |= {"scales_ptr": "*fp32", "work_ptr": "*fp32", "count_ptr": "*i32"}
    types |= {"experts_ptr": "*i32"}
    words = [
        f"m{tile.bm} g{group} {form} {tile.bm}x{cfg.BN} w{tile.warps} s{tile.stages} {dtype}",
        *([end] if end else []),
    ]
    options = tile.launch
    return Variant(
        kernel="w4a8.product",
        config=" ".join(words),
        fn=product_kernel,
        signature=types | dict.fromkeys(_INTEGERS, "i32"),
        constants={
            "BM": tile.bm,
            "BN": cfg.BN,
            "GROUP": group,
            "SHIFT": shift,
            "ADDITIVE": additive,
            "SIGNED": signed(tile.bm, shift, additive),
            "BIAS": end == "bias",
            "RESIDUAL": end == "residual",
            "GATED": end == "silu",
            "GROUPED": end == "experts",
            "PTX": arch > 0,
            "WARPS": tile.warps,
        },
        divisible=_POINTERS,
        num_warps=options.pop("num_warps"),
        num_stages=options.pop("num_stages"),
        options=options,
        unit=cfg.BN * SLICE / (32 * tile.warps),
    )
