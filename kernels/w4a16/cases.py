"""The W4A16 products and their dequantization."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast
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
from ..codegen.expert_case import case_tiles, live_rows, own_rows
from ..codegen.launcher import Emulation
from ..codegen.variant import Variant
from ..formats.weight_format import ZeroKind
from . import op
from .config import KernelName, TileChoice, W4A16Config
from .layout import SLICE, PackedW4, pack_w4, stack_w4, unpack_w4
from .reference import dequantize, w4a16_linear_reference

_MOST_BIAS = 256 + 16
"""The largest float that a code becomes in the late kernel: its bias and the code."""


class Always(dict[str, Any]):
    """An override table that has the same entry for every key.

    Args:
        entry: that entry.
    """

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__()
        self._entry = entry

    def get(self, key: object, default: object = None) -> Any:
        """The entry, whatever the key."""
        return self._entry


def _w4a16_product_case(
    variant: Variant, emulation: Emulation, rng: torch.Generator
) -> PreparedCase:
    """A product with two splits of unequal length, each longer than the pipeline, ragged rows."""
    c, dtype = variant.constants, type_of(variant, "x_ptr")
    name = variant.kernel.removeprefix("w4a16.")
    config = W4A16Config(c["BM"], c["BN"], variant.num_warps, variant.num_stages, splits=2)
    # Two tiles of tokens and of rows where a tile is small.
    small = config.bm <= 32
    m, n = (config.bm + 3, 140) if small else (config.bm - 5, 70)
    if c["GATED"]:
        n = 140
    k = SLICE * (2 * (config.stages + 1) - 1) - (0 if c["EVEN_K"] else 40)
    if c["GROUPED"]:
        return _by_expert(
            variant, emulation, rng, TileChoice(cast(KernelName, name), config, "case"), (n, k)
        )
    weight = _weight(variant, n, k, rng)
    x = torch.randn(m, k, generator=rng).to(dtype)
    bias = torch.randn(n, generator=rng).to(dtype) if c["BIAS"] else None
    residual = (
        torch.randn(m, weight.out_features, generator=rng).to(dtype) if c["RESIDUAL"] else None
    )
    space = undefined_workspace(emulation)
    want = w4a16_linear_reference(x, weight, bias=bias, residual=residual)
    w = dequantize(weight)
    late = name == "late"
    size = _scales(weight).abs() * _MOST_BIAS + w.abs() if late else w.abs()
    error = product_error(x, w, size, dtype, rounded=not late)
    if weight.gated:
        error = _through_gate(x.double() @ w.T, error)
    allowed = rounded_once(want, error, dtype)

    def call() -> list[OutputCheck]:
        out = op.w4a16_linear(
            x,
            weight,
            bias=bias,
            residual=residual,
            activation="silu_mul" if weight.gated else None,
            workspace=space,
            overrides=Always({"kernel": name, **asdict(config)}),
        )
        return [within("y", out, want, allowed)]

    return call


def _by_expert(
    variant: Variant,
    emulation: Emulation,
    rng: torch.Generator,
    choice: TileChoice,
    shape: tuple[int, int],
) -> PreparedCase:
    """Rows of three experts, two launch tiles of each."""
    c, dtype = variant.constants, type_of(variant, "x_ptr")
    tiles = case_tiles(2 * choice.config.bm)
    parts = [_weight(variant, *shape, rng) for _ in range(3)]
    weight = stack_w4(parts)
    assert weight is not None
    x = torch.randn(tiles.padded, shape[1], generator=rng).to(dtype)
    bias = torch.randn(3, shape[0], generator=rng).to(dtype) if c["BIAS"] else None
    space = undefined_workspace(emulation, 4 << 20)
    wants, errors = [], []
    for e, part in enumerate(parts):
        own = None if bias is None else bias[e]
        wants.append(w4a16_linear_reference(x, part, bias=own))
        w = dequantize(part)
        late = choice.kernel == "late"
        size = _scales(part).abs() * _MOST_BIAS + w.abs() if late else w.abs()
        error = product_error(x, w, size, dtype, rounded=not late)
        errors.append(_through_gate(x.double() @ w.T, error) if part.gated else error)
    want = own_rows(wants, tiles.rows)
    allowed = rounded_once(want, own_rows(errors, tiles.rows), dtype)

    def call() -> list[OutputCheck]:
        with patch.object(op, "grouped_choice", lambda *args, **options: choice):
            out = op.w4a16_grouped(x, weight, tiles, bias=bias, workspace=space)
        return [within("y", live_rows(out, tiles.rows), want, allowed)]

    return call


def _w4a16_dequantize_case(
    variant: Variant, emulation: Emulation, rng: torch.Generator
) -> PreparedCase:
    """A dense weight of three atoms, each element rounded once."""
    dtype = type_of(variant, "out_ptr")
    weight = _weight(variant, 140, 3 * SLICE, rng)
    want = dequantize(weight)
    allowed = rounded_once(want, 2.0**-22 * want.abs(), dtype)

    def call() -> list[OutputCheck]:
        out = op.dequantize(weight, dtype)
        return [within("w", out[: weight.rows], want, allowed)]

    return call


def _weight(variant: Variant, n: int, k: int, rng: torch.Generator) -> PackedW4:
    """A random weight in the form of table that a variant reads."""
    group = variant.constants["GROUP"] or -1
    codes, scales, zero, zeros = drawn_numbers(variant, n, k, rng)
    gated = variant.constants.get("GATED", False)
    return pack_w4(codes, scales, zeros, zero=zero, group=group, gated=gated)


def drawn_numbers(
    variant: Variant, n: int, k: int, rng: torch.Generator
) -> tuple[Tensor, Tensor, ZeroKind, Tensor | None]:
    """Codes uint8 [N, K], scales [N, G], zero kind and zeros [N, G] for the table of a variant."""
    c = variant.constants
    group = c["GROUP"] or -1
    shape = n, 1 if group == -1 else -(-k // group)
    codes = torch.randint(0, 16, (n, k), generator=rng, dtype=torch.uint8)
    scales = torch.rand(shape, generator=rng) * 0.02 + 1e-3
    zero: ZeroKind = "none"
    zeros = None
    if c["ADDITIVE"]:
        zero, zeros = "float", torch.randn(shape, generator=rng) * 0.05
    elif c["SHIFT"] < 0:
        zero, zeros = "int", torch.randint(0, 17, shape, generator=rng).float()
        zeros[0, 0], zeros[-1, -1] = 3.0, 5.0  # never one zero point for all
    if variant.signature["table_ptr"] == "*i32":
        scales = scales.half().float()
        zeros = None if zeros is None else zeros.half().float()
    return codes, scales, zero, zeros


def _scales(weight: PackedW4) -> Tensor:
    """The scale of every element [N, K]."""
    _, scales, _ = unpack_w4(weight)
    span = weight.group or weight.features
    return scales.double().repeat_interleave(span, dim=1)[:, : weight.features]


def _through_gate(y: Tensor, error: Tensor) -> Tensor:
    """Errors of ``silu(gate) * up`` from those of its parts; silu's slope is at most 1.1."""
    (gate, up), (of_gate, of_up) = y.chunk(2, dim=-1), error.chunk(2, dim=-1)
    silu = (gate * torch.sigmoid(gate)).abs()
    # The exponential has an error of two units of float32.
    return 1.1 * of_gate * (up.abs() + of_up) + silu * of_up + 2.0**-20 * silu * up.abs()


def cases() -> dict[str, PtxCase]:
    """By the kernel's dotted name."""
    return {
        "w4a16.dequantize": _w4a16_dequantize_case,
        "w4a16.direct": _w4a16_product_case,
        "w4a16.late": _w4a16_product_case,
    }
