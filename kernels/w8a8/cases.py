"""The W8A8 product and its row quantizer."""

from __future__ import annotations

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
from ..codegen.launcher import Emulation
from ..codegen.variant import Variant
from ..device.column_order import column_order
from ..formats.activations import quantize_activations
from ..formats.canonical import ActivationFormat
from . import op
from . import reference as w8a8_reference
from .config import GemmConfig
from .layout import pack_w8a8
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
            out = w8a8_linear(xq, sx, weight, zx=zx, bias=bias, residual=residual, workspace=space)
        return [within("y", out, want, allowed)]

    return call


def _quantize_case(variant: Variant, emulation: Emulation, rng: torch.Generator) -> PreparedCase:
    """Three rows, one of zeros and one with an outlier, bit for bit."""
    c = variant.constants
    kind = _TYPES[variant.signature["q_ptr"].removeprefix("*")]
    k = int(variant.config.split()[1].removeprefix("k"))
    x = torch.randn(3, k, generator=rng).to(type_of(variant, "x_ptr"))
    x[1] = 0
    x[2, k // 2] = 1000
    static = 0.05 if c["STATIC"] else None
    scale = None if static is None else torch.tensor([static])
    rule = ActivationFormat(
        kind="int8" if kind == torch.int8 else "e4m3",
        symmetric=not c["HAS_Z"],
        top=c["TOP"],
        scale=None if scale is None else float(scale),
    )
    want, want_scale = quantize_activations(x, rule)
    if c["ORDER"] != "plain":
        places = torch.tensor(column_order(c["ORDER"]))
        want = want.view(len(x), -1, len(places))[:, :, places].view(len(x), -1)

    def call() -> list[OutputCheck]:
        q, s, z = quantize_rows(
            x,
            asymmetric=c["HAS_Z"],
            scale=scale,
            dtype=kind,
            top=float(c["TOP"]),
            order=c["ORDER"],
        )
        shifted = q.float() if z is None else q.float() - z[:, None]
        checks = [same_bits("codes", shifted + 0.0, want + 0.0)]
        return checks if c["STATIC"] else [*checks, same_bits("scales", s, want_scale[:, 0])]

    return call


def cases() -> dict[str, PtxCase]:
    """By the kernel's dotted name."""
    return {
        "w8a8.gemm": _gemm_case,
        "w8a8.quantize": _quantize_case,
    }
