"""The W8A8 product and its row quantizer."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import torch

from ..codegen.case import (
    OutputCheck,
    PreparedCase,
    PtxCase,
    rounded_once,
    same_bits,
    type_of,
    undefined_workspace,
    within,
)
from ..codegen.expert_case import case_tiles, live_rows, own_rows
from ..codegen.launcher import Emulation
from ..codegen.variant import Variant
from ..device.column_order import column_order
from ..device.input_rounding import InputRounding, RoundedRows, rule_of
from ..formats.activations import quantize_activations
from . import op
from . import reference as w8a8_reference
from .config import GemmConfig
from .layout import pack_w8a8, stack_w8a8
from .op import quantize_rows, w8a8_linear

_TYPES = {"i8": torch.int8, "fp8e4nv": torch.float8_e4m3fn}


def _gemm_case(variant: Variant, emulation: Emulation, rng: torch.Generator) -> PreparedCase:
    """Two tiles of rows and of columns, K longer than the pipeline in each split."""
    c, dtype = variant.constants, type_of(variant, "y_ptr")
    kind = _TYPES[variant.signature["x_ptr"].removeprefix("*")]
    split = c["SPLIT"]
    tile = GemmConfig(c["BM"], c["BN"], c["BK"], variant.num_warps, variant.num_stages, split > 1)
    m, n = tile.bm + 3, tile.bn + 16
    k = tile.bk * (split * (tile.stages + 1) - (split > 1)) + (0 if c["EVEN_K"] else 48)
    scales = torch.rand(n, generator=rng) * 0.01 + 0.001
    if kind == torch.int8:
        codes = torch.randint(-128, 128, (n, k), generator=rng, dtype=torch.int8)
        xq = torch.randint(-128, 128, (m, k), generator=rng, dtype=torch.int8)
    else:
        codes, xq = (torch.randn(rows, k, generator=rng).to(kind) for rows in (n, m))
    if c["GROUPED"]:
        return _by_expert(variant, emulation, rng, tile, (n, k))
    weight = pack_w8a8(codes, scales, dtype=dtype)
    sx = torch.rand(m, generator=rng) * 0.05 + 0.001
    zx = torch.randint(-128, 128, (m,), generator=rng, dtype=torch.int32) if c["HAS_ZX"] else None
    bias = torch.randn(n, generator=rng).to(dtype) if c["HAS_BIAS"] else None
    residual = torch.randn(m, n, generator=rng).to(dtype) if c["HAS_RES"] else None
    want = w8a8_reference.w8a8_linear(xq, sx, codes, scales, zx, bias, residual)
    # Sums of int8 are exact. Scales, bias and residual are float32: a few units of each part.
    parts = w8a8_reference.w8a8_linear(xq, sx, codes, scales, zx).abs()
    parts += sum(t.double().abs() for t in (bias, residual) if t is not None)
    error = 2.0**-21 * parts
    if kind != torch.int8:
        # Hopper adds up to 128 products with 14 bits; else as in float32.
        terms = w8a8_reference.w8a8_linear(xq.double().abs(), sx, codes.double().abs(), scales)
        error = error + (2.0**-13 if c["IMPRECISE"] else 2.0**-20) * terms
    allowed = rounded_once(want, error, dtype)
    sums = 4 * split * tile.bm * tile.bn  # of four tiles
    space = undefined_workspace(emulation, 4 * sums)

    def call() -> list[OutputCheck]:
        with (
            patch.object(op.cfg, "choose", lambda *args, **options: tile),
            patch.object(op.cfg, "choose_split", lambda *args, **options: split),
        ):
            x = RoundedRows(xq, sx, zx)
            out = w8a8_linear(x, weight, bias=bias, residual=residual, workspace=space)
        return [within("y", out, want, allowed)]

    return call


def _by_expert(
    variant: Variant,
    emulation: Emulation,
    rng: torch.Generator,
    tile: GemmConfig,
    shape: tuple[int, int],
) -> PreparedCase:
    """Rows of three experts, two launch tiles of each, with a bias."""
    dtype = type_of(variant, "y_ptr")
    kind = _TYPES[variant.signature["x_ptr"].removeprefix("*")]
    rounding = InputRounding(kind, top=127.0 if kind == torch.int8 else 448.0)
    n, k = shape
    tiles = case_tiles(2 * tile.bm)
    parts = []
    for _ in range(3):
        codes = torch.randint(-128, 128, (n, k), generator=rng, dtype=torch.int8)
        if kind != torch.int8:
            codes = torch.randn(n, k, generator=rng).to(kind)
        scales = torch.rand(n, generator=rng) * 0.01 + 0.001
        parts.append(pack_w8a8(codes, scales, dtype=dtype, rounding=rounding))
    weight = stack_w8a8(parts)
    assert weight is not None
    x = rounding.empty(tiles.padded, k, torch.device("cpu"))
    drawn = torch.randn(tiles.padded, k, generator=rng) * 20
    x.codes.copy_(drawn.to(kind))
    x.scale.copy_(torch.rand(tiles.padded, generator=rng) * 0.05 + 0.001)
    bias = torch.randn(3, n, generator=rng).to(dtype)
    wants, errors = [], []
    for part, own in zip(parts, bias, strict=True):
        given = x.codes.double(), x.scale, part.codes.double()[:, :k], part.scales
        wants.append(w8a8_reference.w8a8_linear(*given, None, own))
        terms = w8a8_reference.w8a8_linear(given[0].abs(), given[1], given[2].abs(), given[3])
        short = 2.0**-13 if variant.constants["IMPRECISE"] else 2.0**-20
        errors.append((2.0**-21 if kind == torch.int8 else short) * (terms + own.double().abs()))
    want = own_rows(wants, tiles.rows)
    allowed = rounded_once(want, own_rows(errors, tiles.rows), dtype)
    space = undefined_workspace(emulation, 4 << 20)
    whole = replace(tile, splittable=False)

    def call() -> list[OutputCheck]:
        with patch.object(op.cfg, "choose", lambda *args, **options: whole):
            out = w8a8_linear(x, weight, bias, workspace=space, tiles=tiles)
        return [within("y", live_rows(out, tiles.rows), want, allowed)]

    return call


def _quantize_case(variant: Variant, emulation: Emulation, rng: torch.Generator) -> PreparedCase:
    """Three rows, one of zeros and one with an outlier, bit for bit."""
    c = variant.constants
    kind = _TYPES[variant.signature["q_ptr"].removeprefix("*")]
    k = int(variant.config.split()[1].removeprefix("k"))
    x = torch.randn(3, k, generator=rng).to(type_of(variant, "x_ptr"))
    x[1] = 0
    x[2, k // 2] = 1000
    rounding = InputRounding(
        kind,
        c["HAS_Z"],
        float(c["TOP"]),
        torch.tensor([0.05]) if c["STATIC"] else None,
        order=c["ORDER"],
    )
    want, want_scale = quantize_activations(x, rule_of(rounding))
    if c["ORDER"] != "plain":
        places = torch.tensor(column_order(c["ORDER"]))
        want = want.view(len(x), -1, len(places))[:, :, places].view(len(x), -1)

    def call() -> list[OutputCheck]:
        made = quantize_rows(x, rounding)
        codes, z = made.codes.float(), made.zero
        shifted = codes if z is None else codes - z[:, None]
        checks = [same_bits("codes", shifted + 0.0, want + 0.0)]
        static = rounding.scale is not None
        return checks if static else [*checks, same_bits("scales", made.scale, want_scale[:, 0])]

    return call


def cases() -> dict[str, PtxCase]:
    """By the kernel's dotted name."""
    return {
        "w8a8.gemm": _gemm_case,
        "w8a8.quantize": _quantize_case,
    }
