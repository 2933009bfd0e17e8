"""Cases of the codebook kernels."""

from __future__ import annotations

import torch

from ..codegen.case import PtxCase
from ..codegen.variant import Variant
from ..formats.code_tables import E2M1, NF4
from ..fragments.cases import DrawnFragments, dequantize_case, drawn_scales, product_case
from .layout import pack_codebook
from .op import codebook_grouped, codebook_linear, dequantize
from .reference import dequantize as true_weight


def _draw(
    variant: Variant, n: int, k: int, dtype: torch.dtype, rng: torch.Generator
) -> DrawnFragments:
    """NF4, or a table for each row; 4-bit floats where scales are bytes."""
    if variant.constants["SCALE"]:
        return _draw_bytes(variant, n, k, dtype, rng)
    scales, group = drawn_scales(variant, n, k, rng)
    codes = torch.randint(0, 16, (n, k), generator=rng, dtype=torch.uint8)
    rows = variant.constants["LUT_ROWS"]
    table = torch.randn(n, 16, generator=rng) if rows else torch.tensor(NF4)
    spread = scales.repeat_interleave(k if group == -1 else group, dim=1)[:, :k]
    true = true_weight(codes, torch.ones(n), table, -1, dtype) * spread.double()
    return DrawnFragments(pack_codebook(codes, scales, table, block=group), true, true.abs())


def _draw_bytes(
    variant: Variant, n: int, k: int, dtype: torch.dtype, rng: torch.Generator
) -> DrawnFragments:
    """MXFP4 with exponents of numbers that float16 holds, or NVFP4 with factors."""
    group, kind = variant.constants["GROUP"], variant.constants["SCALE"]
    shape, factors = (n, -(-k // group)), None
    if kind == "e8m0":
        bytes_NG = torch.randint(110, 128, shape, generator=rng, dtype=torch.uint8)
        scales = bytes_NG.view(torch.float8_e8m0fnu)
    else:
        bytes_NG = torch.randint(0, 127, shape, generator=rng, dtype=torch.uint8)
        scales = bytes_NG.view(torch.float8_e4m3fn)
        factors = torch.rand(n, generator=rng) * 1e-3 + 1e-4
    codes = torch.randint(0, 16, (n, k), generator=rng, dtype=torch.uint8)
    wide = scales.double() * (1 if factors is None else factors.double()[:, None])
    true = torch.tensor(E2M1, dtype=torch.float64)[codes.long()]
    true *= wide.repeat_interleave(group, dim=1)[:, :k]
    packed = pack_codebook(codes, scales, E2M1, block=group, factors=factors)
    return DrawnFragments(packed, true, true.abs())


def cases() -> dict[str, PtxCase]:
    """By the kernel's dotted name."""
    return {
        "codebook.dequantize": dequantize_case(_draw, dequantize),
        "codebook.gemm": product_case(_draw, codebook_linear, codebook_grouped),
    }
