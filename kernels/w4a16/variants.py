"""The shipped configurations of the W4A16 kernels, for the codegen gate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..codegen.variant import Variant
from ..device.choice import tensor_memory
from ..device.dependent import dependent_launch
from .config import (
    KernelName,
    W4A16Config,
    direct_tile,
    joined_planes,
    late_tile,
    late_tokens,
    launch_options,
)
from .kernel_direct import dequantize_kernel, direct_kernel
from .kernel_late import late_kernel

_POINTERS: tuple[str, ...] = (
    "x_ptr",
    "units_ptr",
    "table_ptr",
    "out_ptr",
    "bias_ptr",
    "residual_ptr",
    "work_ptr",
    "count_ptr",
    "experts_ptr",
)
_INTEGERS: tuple[str, ...] = (
    *("M", "N", "atoms", "tiles_k", "tiles_split", "splits", "k_units", "per_expert"),
)
# Name of a table's form: shift, additive, entry type.
_FORMS = {
    "sym": (8, False, "i32"),
    "zero": (-1, False, "i32"),
    "zero32": (-1, False, "i64"),
    "add": (-1, True, "i32"),
    "add32": (-1, True, "i64"),
}


def variants(arch: int) -> Iterator[Variant]:
    """Shipped configurations for one compute capability; the unit is one weight.

    All tiles, groups, dtypes and table forms appear; epilogues and ragged K with one tile each,
    because they do not change what surrounds them.
    """
    for bm in (8, 16, 32):
        for group in (128, 64, 32, 256, 0):
            if bm > late_tokens(group, False, arch):
                continue
            config = late_tile(bm)
            yield _product("late", arch, config, group, "zero", "fp16")
            if group == 128 or bm == 8:
                yield _product("late", arch, config, group, "sym", "fp16")
                yield _product("late", arch, config, group, "zero", "bf16")
        if bm <= late_tokens(128, False, arch):
            yield _product("late", arch, late_tile(bm), 128, "sym", "bf16")
    for form in ("zero32", "add", "add32"):
        for group in (128, 32):
            config = late_tile(8)
            yield _product("late", arch, config, group, form, "fp16")
    tile = late_tile(16)
    yield _product("late", arch, tile, 128, "zero", "fp16", even=False)
    yield _product("late", arch, tile, 128, "zero", "fp16", bias=True)
    yield _product("late", arch, tile, 128, "zero", "fp16", residual=True)
    yield _product("late", arch, tile, 128, "zero", "fp16", gated=True)
    yield _product("late", arch, late_tile(8), 128, "zero", "fp16", gated=True, experts=True)
    narrow = late_tile(8, 64)
    for group in (128, 64, 32, 256, 0):
        yield _product("late", arch, narrow, group, "zero", "fp16")
    for group in (128, 32):
        yield _product("late", arch, narrow, group, "zero", "bf16")
    yield _product("late", arch, narrow, 128, "sym", "fp16")
    yield _product("late", arch, narrow, 32, "add32", "fp16", bias=True)
    yield _product("late", arch, narrow, 128, "zero", "fp16", residual=True)
    yield _product("late", arch, narrow, 128, "zero", "fp16", experts=True)
    for m in (16, 32, 64, 128):
        config = direct_tile(m, arch)
        if config.bm < m:
            continue
        few = m <= 16 or (m <= 32 and not tensor_memory(arch))
        if few:
            # Late scaling takes the other groups, on compute capability 9.0 in bf16 alone.
            yield _product("direct", arch, config, 32, "add32", "bf16")
        if few and arch != 90:
            yield _product("direct", arch, config, 32, "zero", "fp16")
            continue
        for group in (128, 64, 32, 0):
            yield _product("direct", arch, config, group, "zero", "fp16")
        yield _product("direct", arch, config, 128, "sym", "fp16")
        yield _product("direct", arch, config, 128, "zero", "fp16", gated=True)
        if few:
            continue
        yield _product("direct", arch, config, 128, "zero", "bf16")
        yield _product("direct", arch, config, 32, "add32", "fp16")
        yield _product("direct", arch, config, 128, "zero", "fp16", even=False)
        yield _product("direct", arch, config, 128, "zero", "fp16", bias=True, experts=True)
    for dtype in ("fp16", "bf16"):
        for group, form in ((128, "zero"), (32, "add32")):
            yield _dequantize(arch, group, form, dtype)


def _product(
    name: KernelName,
    arch: int,
    config: W4A16Config,
    group: int,
    form: str,
    dtype: str,
    *,
    even: bool = True,
    bias: bool = False,
    residual: bool = False,
    gated: bool = False,
    experts: bool = False,
) -> Variant:
    early = dependent_launch(arch) and not experts
    options = launch_options(name, config, arch, group, early)
    shift, additive, entry = _FORMS[form]
    types: dict[str, str] = dict.fromkeys(_POINTERS, f"*{dtype}")
    types |= {"units_ptr": "*i16", "table_ptr": f"*{entry}"}
    types |= {"work_ptr": "*fp32", "count_ptr": "*i32", "experts_ptr": "*i32"}
    constants: dict[str, Any] = {
        "BM": config.bm,
        "BN": config.bn,
        "GROUP": group,
        "SHIFT": shift,
        "ADDITIVE": additive,
        "EVEN_K": even,
        "K_UNIT": 8,
        "BIAS": bias,
        "RESIDUAL": residual,
        "GATED": gated,
        "GROUPED": experts,
        "EARLY": early,
        "PTX": arch > 0,
        "INTERPRET": False,
    }
    if name == "late":
        constants["WARPS"] = config.warps
    else:
        constants["PLANES"] = joined_planes(config, arch)
    flags = {"odd": not even, "bias": bias, "residual": residual, "silu": gated}
    flags["experts"] = experts
    words = [
        f"m{config.bm} g{group} {form} {config.bm}x{config.bn}",
        f"w{config.warps} s{config.stages} {dtype}",
        *(word for word, on in flags.items() if on),
    ]
    return Variant(
        kernel=f"w4a16.{name}",
        config=" ".join(words),
        fn=late_kernel if name == "late" else direct_kernel,
        signature=types | dict.fromkeys(_INTEGERS, "i32"),
        constants=constants,
        divisible=_POINTERS,
        num_warps=options.pop("num_warps"),
        num_stages=options.pop("num_stages"),
        options=options,
        unit=config.bn * 128 / (32 * config.warps),
    )


def _dequantize(arch: int, group: int, form: str, dtype: str) -> Variant:
    shift, additive, entry = _FORMS[form]
    pointers = ("units_ptr", "table_ptr", "out_ptr")
    types = {"units_ptr": "*i16", "table_ptr": f"*{entry}", "out_ptr": f"*{dtype}"}
    integers = ("first_atom", "atoms", "tiles_k", "k_units")
    return Variant(
        kernel="w4a16.dequantize",
        config=f"g{group} {form} w4 {dtype}",
        fn=dequantize_kernel,
        signature=types | dict.fromkeys(integers, "i32"),
        constants={
            "GROUP": group,
            "SHIFT": shift,
            "ADDITIVE": additive,
            "EVEN_K": True,
            "K_UNIT": 8,
            "PTX": arch > 0,
        },
        divisible=pointers,
        num_warps=4,
        num_stages=1,
    )
