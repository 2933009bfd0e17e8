"""Cases of the fragment kernels, which the kinds that use them draw weights for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ..codegen.case import (
    OutputCheck,
    PreparedCase,
    PtxCase,
    product_error,
    rounded_once,
    type_of,
    undefined_workspace,
    within,
)
from ..codegen.expert_case import by_expert, case_tiles, live_rows, own_rows
from ..codegen.launcher import Emulation
from ..codegen.variant import Variant
from . import product
from .config import FragmentConfig
from .layout import stack_fragments


@dataclass(frozen=True, slots=True)
class DrawnFragments:
    """A random weight.

    Attributes:
        weight: packed.
        true: what it means, float64 [N, K].
        size: bounds of the terms that a product sums up, [N, K].
    """

    weight: Any
    true: Tensor
    size: Tensor


DrawFragments = Callable[[Variant, int, int, torch.dtype, torch.Generator], DrawnFragments]
"""A weight [N, K] in the form that a variant reads, tables rounded to a type."""


def product_case(
    draw: DrawFragments, linear: Callable[..., Tensor], grouped: Callable[..., Tensor]
) -> PtxCase:
    """Products [M, N] of a kind with two splits, each longer than the pipeline, and ragged rows."""

    def prepare(variant: Variant, emulation: Emulation, rng: torch.Generator) -> PreparedCase:
        c, dtype = variant.constants, type_of(variant, "x_ptr")
        config = FragmentConfig(c["BM"], c["BN"], variant.num_warps, variant.num_stages, splits=2)
        m, n = (config.bm + 3, 140) if config.bm <= 32 else (config.bm - 5, 70)
        slice_k = 32 * c["PLANES"]
        slices = 2 * (config.stages + 1) - 1
        if c["GROUP"] > slice_k:
            slices += 1  # Blocks of a codebook end with their row.
        k = slice_k * slices - (0 if c["EVEN_K"] else slice_k // 2 + 8 * (c["PLANES"] == 2))
        if c["GROUPED"]:
            return _by_expert(variant, emulation, rng, config, (n, k), draw, grouped)
        drawn = draw(variant, n, k, dtype, rng)
        x = torch.randn(m, k, generator=rng).to(dtype)
        bias = torch.randn(n, generator=rng).to(dtype) if c["BIAS"] else None
        residual = torch.randn(m, n, generator=rng).to(dtype) if c["RESIDUAL"] else None
        space = undefined_workspace(emulation)
        want = x.double() @ drawn.true.T
        for part in (bias, residual):
            want = want if part is None else want + part.double()
        error = product_error(x, drawn.true, drawn.size, dtype, rounded=False)
        allowed = rounded_once(want, error, dtype)

        def call() -> list[OutputCheck]:
            with patch.object(product, "choose", lambda *args, **options: config):
                out = linear(x, drawn.weight, bias=bias, residual=residual, workspace=space)
            return [within("y", out, want, allowed)]

        return call

    return prepare


def dequantize_case(draw: DrawFragments, dequantize: Callable[..., Tensor]) -> PtxCase:
    """A dense weight [N, K] of three atoms and five slices, each element rounded once."""

    def prepare(variant: Variant, emulation: Emulation, rng: torch.Generator) -> PreparedCase:
        dtype = type_of(variant, "out_ptr")
        drawn = draw(variant, 140, 5 * 32 * variant.constants["PLANES"], dtype, rng)
        # Subnormal numbers of float16 have the distance of its smallest normal ones.
        least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        allowed = rounded_once(drawn.true, 2.0**-22 * drawn.size, dtype) + least

        def call() -> list[OutputCheck]:
            return [within("w", dequantize(drawn.weight, dtype), drawn.true, allowed)]

        return call

    return prepare


def drawn_scales(variant: Variant, n: int, k: int, rng: torch.Generator) -> tuple[Tensor, int]:
    """(float32 scales [N, G] that fit the type which a variant reads, group or -1)."""
    group = variant.constants["GROUP"] or -1
    scales = torch.rand(n, 1 if group == -1 else -(-k // group), generator=rng) * 0.01 + 0.001
    if variant.signature["scale_ptr"] == "*fp16":
        scales = scales.half().float()
    return scales, group


def _by_expert(
    variant: Variant,
    emulation: Emulation,
    rng: torch.Generator,
    config: FragmentConfig,
    shape: tuple[int, int],
    draw: DrawFragments,
    grouped: Callable[..., Tensor],
) -> PreparedCase:
    """Rows of three experts, two launch tiles of each."""
    c, dtype = variant.constants, type_of(variant, "x_ptr")
    n, k = shape
    drawn = [draw(variant, n, k, dtype, rng) for _ in range(3)]
    tiles = case_tiles(2 * config.bm)
    x = torch.randn(tiles.padded, k, generator=rng).to(dtype)
    bias = torch.randn(3, n, generator=rng).to(dtype) if c["BIAS"] else None
    space = undefined_workspace(emulation, 4 << 20)
    weight = stack_fragments([one.weight for one in drawn])
    assert weight is not None
    want = by_expert(x.double(), [one.true for one in drawn], tiles.rows)
    if bias is not None:
        ones = torch.ones(tiles.padded, 1).double()
        want += by_expert(ones, [row.double()[:, None] for row in bias], tiles.rows)
    errors = [product_error(x, one.true, one.size, dtype, rounded=False) for one in drawn]
    error = own_rows(errors, tiles.rows)
    allowed = rounded_once(want, error, dtype)

    def call() -> list[OutputCheck]:
        with patch.object(product, "choose", lambda *args, **options: config):
            out = grouped(x, weight, bias, tiles, exact=False, workspace=space)
        return [within("y", live_rows(out, tiles.rows), want, allowed)]

    return call
