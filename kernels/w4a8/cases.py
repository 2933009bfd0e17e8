"""The W4A8 product."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import torch

from .. import reference as ref
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
from ..device.column_order import SLICE
from ..formats.activations import quantize_tokens
from ..formats.canonical import QuantizedLinear, WeightFormat, pack_codes
from ..formats.weight_format import TOKEN_RULE
from ..w4a16.cases import drawn_numbers
from . import op
from .config import W4A8Config
from .kind import W4A8


def _product_case(variant: Variant, emulation: Emulation, rng: torch.Generator) -> PreparedCase:
    """Two splits of unequal length, each longer than the pipeline, ragged rows; bit for bit."""
    c, dtype = variant.constants, type_of(variant, "out_ptr")
    registers = variant.options.get("maxnreg", 0)
    tile = W4A8Config(c["BM"], variant.num_warps, variant.num_stages, 2, registers)
    # Two tiles of tokens and of rows where a tile is small.
    m, n = (tile.bm + 3, 140) if tile.bm <= 16 else (tile.bm - 5, 70)
    if c["GATED"]:
        n = 140
    slices = 2 * (tile.stages + 1) - 1
    if c["GROUPED"]:
        return _by_expert(variant, emulation, rng, tile, (n, SLICE * slices - 40))
    weight = _weight(variant, n, SLICE * slices - 40, rng)
    packed = W4A8.pack(weight, dtype, torch.device("cpu"), c["GATED"])
    x = torch.randn(m, weight.in_features, generator=rng).to(dtype)
    bias = torch.randn(n, generator=rng).to(dtype) if c["BIAS"] else None
    residual = torch.randn(m, n, generator=rng).to(dtype) if c["RESIDUAL"] else None
    q, d = quantize_tokens(x)
    middle = SLICE * -(-slices // 2)
    want = ref.token_sums(q, weight, 0, middle) * d + ref.token_sums(q, weight, middle) * d
    for added in (bias, residual):
        want = want if added is None else want + added.float()
    space = undefined_workspace(emulation)

    def call() -> list[OutputCheck]:
        codes, scales = op.quantize_inputs(x, packed)
        with patch.object(op.cfg, "choose", lambda *args, **options: tile):
            got = op.w4a8_linear(
                *(codes, scales, packed),
                dtype=dtype,
                bias=bias,
                residual=residual,
                workspace=space,
            )
        if not c["GATED"]:
            return [same_bits("y", got, want.to(dtype))]
        y = ref.gated_mul(want.double())
        return [within("y", got, y, rounded_once(y, 2.0**-20 * y.abs(), dtype))]

    return call


def _by_expert(
    variant: Variant,
    emulation: Emulation,
    rng: torch.Generator,
    tile: W4A8Config,
    shape: tuple[int, int],
) -> PreparedCase:
    """Rows of three experts, two launch tiles of each; bit for bit."""
    dtype, tiles = type_of(variant, "out_ptr"), case_tiles(2 * tile.bm)
    whole = replace(tile, splits=1)
    weights = [_weight(variant, *shape, rng) for _ in range(3)]
    packed = W4A8.stack([W4A8.pack(w, dtype, torch.device("cpu"), False) for w in weights])
    assert packed is not None
    x = torch.randn(tiles.padded, shape[1], generator=rng).to(dtype)
    q, d = quantize_tokens(x)
    want = own_rows([ref.token_sums(q, weight, 0) * d for weight in weights], tiles.rows)
    space = undefined_workspace(emulation)

    def call() -> list[OutputCheck]:
        codes, scales = op.quantize_inputs(x, packed)
        with patch.object(op.cfg, "choose", lambda *args, **options: whole):
            got = op.w4a8_linear(codes, scales, packed, dtype=dtype, workspace=space, tiles=tiles)
        return [same_bits("y", live_rows(got, tiles.rows), want.to(dtype))]

    return call


def _weight(variant: Variant, n: int, k: int, rng: torch.Generator) -> QuantizedLinear:
    """A random weight in the form of table that a variant reads."""
    group = variant.constants["GROUP"] or -1
    codes, scales, zero, zeros = drawn_numbers(variant, n, k, rng)
    form = WeightFormat(4, group, zero, act=TOKEN_RULE)
    return QuantizedLinear("w", form, pack_codes(codes, 4), scales, zeros, k)


def cases() -> dict[str, PtxCase]:
    """By the kernel's dotted name."""
    return {"w4a8.product": _product_case}
