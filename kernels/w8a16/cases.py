"""Cases of the W8A16 kernels."""

from __future__ import annotations

import torch

from ..codegen.case import OutputCheck, PreparedCase, PtxCase, rounded_once, type_of, within
from ..codegen.launcher import Emulation
from ..codegen.variant import Variant
from ..fragments.cases import DrawnFragments, dequantize_case, drawn_scales, product_case
from .gather import gather_rows
from .layout import pack_w8a16
from .op import dequantize, w8a16_grouped, w8a16_linear
from .reference import dequantize as true_weight


def _draw(
    variant: Variant, n: int, k: int, dtype: torch.dtype, rng: torch.Generator
) -> DrawnFragments:
    """All 256 codes, with offsets where the variant adds them; all numbers of float8."""
    scales, group = drawn_scales(variant, n, k, rng)
    codes = torch.randint(0, 256, (n, k), generator=rng, dtype=torch.uint8)
    zero, zeros = "none", None
    if variant.constants.get("FLOAT8"):
        zero = "e4m3"
        codes[(codes & 0x7F) == 0x7F] = 0x7E  # no number
    if variant.constants["OFFSET"]:
        zero, zeros = "float", torch.randn(scales.shape, generator=rng) * 0.1
    packed = pack_w8a16(codes, scales, zeros, zero=zero, group=group)
    true = true_weight(codes, scales, zeros, zero, group)
    # Codes enter as q - 128 and offsets apart from them: both parts can exceed their sum.
    return DrawnFragments(packed, true, true.abs() + 256 * scales.double().amax())


def _gather_case(variant: Variant, emulation: Emulation, rng: torch.Generator) -> PreparedCase:
    """Rows of a table of 1104 columns, ids outside of it included."""
    dtype = type_of(variant, "out_ptr")
    drawn = _draw(variant, 70, 1104, dtype, rng)
    ids = torch.tensor([0, 69, 13, 13, 70, -1])
    inside = ((ids >= 0) & (ids < 70))[:, None]
    factor = 3.5
    want = drawn.true[ids.clamp(0, 69)] * inside * factor
    # Rounded before and after the factor.
    allowed = rounded_once(want, 0.5 * torch.finfo(dtype).eps * want.abs(), dtype) * 1.01

    def call() -> list[OutputCheck]:
        return [within("rows", gather_rows(ids, drawn.weight, dtype, factor), want, allowed)]

    return call


def cases() -> dict[str, PtxCase]:
    """By the kernel's dotted name."""
    return {
        "w8a16.dequantize": dequantize_case(_draw, dequantize),
        "w8a16.gather": _gather_case,
        "w8a16.gemm": product_case(_draw, w8a16_linear, w8a16_grouped),
    }
