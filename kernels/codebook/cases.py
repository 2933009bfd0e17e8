"""Cases of the codebook kernels."""

from __future__ import annotations

import torch

from ..codegen.case import PtxCase
from ..codegen.variant import Variant
from ..formats.code_tables import NF4
from ..fragments.cases import DrawnFragments, dequantize_case, drawn_scales, product_case
from .layout import pack_codebook
from .op import codebook_grouped, codebook_linear, dequantize
from .reference import dequantize as true_weight


def _draw(
    variant: Variant, n: int, k: int, dtype: torch.dtype, rng: torch.Generator
) -> DrawnFragments:
    """NF4, or a table for each row."""
    scales, group = drawn_scales(variant, n, k, rng)
    codes = torch.randint(0, 16, (n, k), generator=rng, dtype=torch.uint8)
    rows = variant.constants["LUT_ROWS"]
    table = torch.randn(n, 16, generator=rng) if rows else torch.tensor(NF4)
    spread = scales.repeat_interleave(k if group == -1 else group, dim=1)[:, :k]
    true = true_weight(codes, torch.ones(n), table, -1, dtype) * spread.double()
    return DrawnFragments(pack_codebook(codes, scales, table, block=group), true, true.abs())


def cases() -> dict[str, PtxCase]:
    """By the kernel's dotted name."""
    return {
        "codebook.dequantize": dequantize_case(_draw, dequantize),
        "codebook.gemm": product_case(_draw, codebook_linear, codebook_grouped),
    }
