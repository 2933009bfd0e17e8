"""Integer codes of up to 4 bits for 16-bit activations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..device.expert_tiles import ExpertLoad, ExpertTiles
from ..device.workspace import COUNTERS, PARTIAL_BYTES
from ..formats.canonical import QuantizedLinear, Weight
from ..formats.weight_format import WeightFormat
from ..kind import (
    NO_ROWS,
    Chosen,
    Conditions,
    KindCase,
    MatrixSpec,
    ProductContext,
    TritonKind,
    entries,
    no_integers,
    recentred,
    round_up,
    unpacked,
)
from . import tuning
from .config import Problem, choose, table_key
from .layout import ATOM_ROWS, ROW_ALIGN, SLICE, PackedW4, pack_w4, stack_w4, supports
from .op import grouped_choice, w4a16_grouped, w4a16_linear
from .variants import variants

if TYPE_CHECKING:
    from ..codegen.variant import Variant


class W4A16Kind(TritonKind[PackedW4]):
    """Packed in pairs of planes; the only kind with a product that ends in its gate."""

    name = "w4a16"
    reorders = True
    peers = ("tinygemm", "gemlite", "marlin")
    tuning = tuning
    cases = (
        KindCase(WeightFormat(4, 128)),
        KindCase(WeightFormat(4, 128), gated=True),
        KindCase(WeightFormat(4, 128, "int")),
        KindCase(WeightFormat(4, 64, "float")),
        KindCase(WeightFormat(4, 32, "int")),
        KindCase(WeightFormat(4, -1)),
    )

    def accepts(self, spec: MatrixSpec, arch: int) -> str | None:
        """Groups of whole 32s, everywhere."""
        reason = no_integers(spec.format)
        if reason is not None or spec.format is None:
            return reason
        if spec.format.bits > 4:
            return f"codes of {spec.format.bits} bits; it takes up to 4"
        return NO_ROWS if spec.table else supports(spec.format.group_size)

    def packed_bytes(self, spec: MatrixSpec) -> int:
        """Half a byte a code, and an entry of scale and offset a group."""
        assert spec.format is not None
        rows, entry = _stored_rows(spec), 4 if spec.half else 8
        codes = rows * round_up(spec.k, SLICE) // 2
        return codes + rows * entries(spec.format, spec.k, SLICE) * entry

    def problem(self, spec: MatrixSpec, m: int, where: Conditions) -> Problem:
        """The product of ``m`` rows."""
        assert spec.format is not None
        group = max(spec.format.group_size, 0)
        if group % SLICE:
            group = math.gcd(group, SLICE)
        device = where.device
        sizes = m, _stored_rows(spec), spec.k, group
        return Problem(*sizes, where.fp16, device.arch, device.sms, where.exact, spec.gated)

    def choose(self, spec: MatrixSpec, m: int, where: Conditions) -> Chosen:
        """Late scaling, scaling in registers, or a dense product, by table or formula."""
        assert spec.format is not None
        problem = self.problem(spec, m, where)
        choice = choose(
            problem, partial_bytes=PARTIAL_BYTES, counters=COUNTERS, overrides=where.tables
        )
        source, detail = choice.source, f"codes of {spec.format.bits} bits"
        if source not in ("exact", "formula"):
            assert where.tables is not None
            found = where.tables.find(table_key(problem))
            assert found is not None
            source, detail = found.kind, found.detail
        config = {} if choice.kernel == "dequantize" else asdict(choice.config)
        return Chosen(choice.kernel, config, source, detail, dict(choice.rejected))

    def pack(
        self, weight: Weight, dtype: torch.dtype, device: torch.device, gated: bool
    ) -> PackedW4:
        """Codes and entries of [N, K]; ``gated`` interleaves gate and up."""
        assert isinstance(weight, QuantizedLinear)
        zero, zeros = recentred(weight, 8)
        assert zero in ("none", "int", "float")
        zeros = None if zeros is None else zeros.to(device)
        codes, scales = unpacked(weight, device)
        group = weight.format.group_size
        return pack_w4(codes, scales, zeros, zero=zero, group=group, gated=gated)

    def linear(
        self,
        x_MK: Tensor,
        weight: PackedW4,
        bias: Tensor | None,
        residual: Tensor | None,
        out: Tensor | None,
        context: ProductContext,
    ) -> Tensor:
        """-> [M, N], or [M, N / 2] when gated."""
        return w4a16_linear(
            x_MK,
            weight,
            bias=bias,
            residual=residual,
            activation="silu_mul" if weight.gated else None,
            out=out,
            exact=context.exact,
            workspace=context.workspace,
            overrides=context.overrides,
        )

    def stack(self, weights: Sequence[PackedW4]) -> PackedW4 | None:
        """Row blocks of one matrix."""
        return stack_w4(weights)

    def tile_rows(
        self, weight: PackedW4, load: ExpertLoad, dtype: torch.dtype, context: ProductContext
    ) -> int:
        """As the launch has them."""
        choice = grouped_choice(
            weight, load, dtype, exact=context.exact, workspace=context.workspace
        )
        return choice.config.bm

    def grouped_linear(
        self,
        x_PK: Tensor,
        weight: PackedW4,
        bias: Tensor | None,
        tiles: ExpertTiles,
        context: ProductContext,
    ) -> Tensor:
        """-> [P, N]."""
        return w4a16_grouped(
            x_PK, weight, tiles, bias=bias, exact=context.exact, workspace=context.workspace
        )

    def variants(self, arch: int) -> Iterator[Variant]:
        """All tiles, groups and epilogues."""
        return variants(arch)


def _stored_rows(spec: MatrixSpec) -> int:
    """Rows with padding; gate and up are padded on their own and interleaved in blocks."""
    if spec.gated:
        return round_up(spec.n // 2, ATOM_ROWS) * 2
    return round_up(spec.n, ROW_ALIGN)


W4A16 = W4A16Kind()
