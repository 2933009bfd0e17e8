"""The fragment kernels: W8A16, codebooks, their dequantization, and rows of a table."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ....kernels.codebook import codebook_linear, pack_codebook
from ....kernels.codebook import dequantize as dequantize_codebook
from ....kernels.codebook import reference as codebook_reference
from ....kernels.codegen.variant import Variant
from ....kernels.formats.code_tables import NF4
from ....kernels.fragments import product
from ....kernels.fragments.config import FragmentConfig
from ....kernels.w8a16 import dequantize as dequantize_w8a16
from ....kernels.w8a16 import gather_rows, pack_w8a16, w8a16_linear
from ....kernels.w8a16 import reference as w8a16_reference
from ..check import OutputCheck, within
from ..launcher import Emulation
from .base import PreparedCase, product_error, rounded_once, type_of, undefined_workspace

_TABLE = 4
"""Planes of codes that index a table."""


def fragment_product_case(
    variant: Variant, emulation: Emulation, rng: torch.Generator
) -> PreparedCase:
    """A product with two splits of unequal length, each longer than the pipeline, ragged rows."""
    c, dtype = variant.constants, type_of(variant, "x_ptr")
    config = FragmentConfig(c["BM"], c["BN"], variant.num_warps, variant.num_stages, splits=2)
    m, n = (config.bm + 3, 140) if config.bm <= 32 else (config.bm - 5, 70)
    slice_k = 32 * c["PLANES"]
    slices = 2 * (config.stages + 1) - 1
    if c["GROUP"] > slice_k:
        slices += 1  # Blocks of a codebook end with their row.
    k = slice_k * slices - (0 if c["EVEN_K"] else slice_k // 2 + 8 * (c["PLANES"] == 2))
    weight, w, size = _fragments(variant, n, k, dtype, rng)
    x = torch.randn(m, k, generator=rng).to(dtype)
    bias = torch.randn(n, generator=rng).to(dtype) if c["BIAS"] else None
    residual = torch.randn(m, n, generator=rng).to(dtype) if c["RESIDUAL"] else None
    space = undefined_workspace(emulation)
    want = w8a16_reference.linear(x, w, bias, residual)
    allowed = rounded_once(want, product_error(x, w, size, dtype, rounded=False), dtype)
    linear: Any = codebook_linear if c["PLANES"] == _TABLE else w8a16_linear

    def call() -> list[OutputCheck]:
        with patch.object(product, "choose", lambda *args, **options: config):
            out = linear(x, weight, bias=bias, residual=residual, workspace=space)
        return [within("y", out, want, allowed)]

    return call


def fragment_dequantize_case(
    variant: Variant, emulation: Emulation, rng: torch.Generator
) -> PreparedCase:
    """A dense weight of three atoms and five slices, each element rounded once."""
    dtype = type_of(variant, "out_ptr")
    weight, want, size = _fragments(variant, 140, 5 * 32 * variant.constants["PLANES"], dtype, rng)
    # Subnormal numbers of float16 have the distance of its smallest normal ones.
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    allowed = rounded_once(want, 2.0**-22 * size, dtype) + least
    table = variant.constants["PLANES"] == _TABLE
    dequantize: Any = dequantize_codebook if table else dequantize_w8a16

    def call() -> list[OutputCheck]:
        return [within("w", dequantize(weight, dtype), want, allowed)]

    return call


def gather_case(variant: Variant, emulation: Emulation, rng: torch.Generator) -> PreparedCase:
    """Rows of a table of 1100 columns, ids outside of it included."""
    dtype = type_of(variant, "out_ptr")
    weight, w, _ = _fragments(variant, 70, 1104, dtype, rng)
    ids = torch.tensor([0, 69, 13, 13, 70, -1])
    inside = ((ids >= 0) & (ids < 70))[:, None]
    factor = 3.5
    want = w[ids.clamp(0, 69)] * inside * factor
    # Rounded before and after the factor.
    allowed = rounded_once(want, 0.5 * torch.finfo(dtype).eps * want.abs(), dtype) * 1.01

    def call() -> list[OutputCheck]:
        return [within("rows", gather_rows(ids, weight, dtype, factor), want, allowed)]

    return call


def _fragments(
    variant: Variant, n: int, k: int, dtype: torch.dtype, rng: torch.Generator
) -> tuple[Any, Tensor, Tensor]:
    """(packed weight, its meaning [N, K], bounds of the terms that are summed)."""
    c = variant.constants
    group = c["GROUP"] or -1
    shape = n, 1 if group == -1 else -(-k // group)
    scales = torch.rand(shape, generator=rng) * 0.01 + 0.001
    zeros = None
    if variant.signature["scale_ptr"] == "*fp16":
        scales = scales.half().float()
    if c.get("PLANES") == _TABLE:
        codes = torch.randint(0, 16, (n, k), generator=rng, dtype=torch.uint8)
        table = torch.randn(n, 16, generator=rng) if c["LUT_ROWS"] else torch.tensor(NF4)
        spread = scales.repeat_interleave(k if group == -1 else group, dim=1)[:, :k]
        w = codebook_reference.dequantize(codes, torch.ones(n), table, -1, dtype) * spread.double()
        return pack_codebook(codes, scales, table, block=group), w, w.abs()
    codes = torch.randint(0, 256, (n, k), generator=rng, dtype=torch.uint8)
    zero = "none"
    if c["OFFSET"]:
        zero, zeros = "float", torch.randn(shape, generator=rng) * 0.1
    packed = pack_w8a16(codes, scales, zeros, zero=zero, group=group)
    w = w8a16_reference.dequantize(codes, scales, zeros, zero, group)
    # Codes enter as q - 128 and offsets apart from them: both parts can exceed their sum.
    return packed, w, w.abs() + 256 * scales.double().amax()
