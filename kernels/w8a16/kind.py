"""Codes of up to 8 bits, a byte each, for 16-bit activations; embeddings, too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..device.expert_tiles import ExpertLoad, ExpertTiles
from ..formats.canonical import QuantizedLinear, Weight
from ..formats.weight_format import WeightFormat
from ..fragments.config import chosen
from ..fragments.layout import FRAGMENT_ROW_ALIGN, stack_fragments
from ..fragments.product import grouped_config
from ..kind import (
    NO_GATE,
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
from .gather import gather_rows
from .layout import PackedW8A16, pack_w8a16
from .op import w8a16_grouped, w8a16_linear
from .variants import variants

if TYPE_CHECKING:
    from ..codegen.variant import Variant

_PLANES = 2
_SLICE = 32 * _PLANES
_GROUP = 16
"""Groups are multiples of it."""


class W8A16Kind(TritonKind[PackedW8A16]):
    """Packed in tensor-core fragments of bytes."""

    name = "w8a16"
    reorders = True
    cases = (
        KindCase(WeightFormat(8, -1)),
        KindCase(WeightFormat(8, 128, "int")),
        KindCase(WeightFormat(8, 128, "e4m3")),
    )

    def accepts(self, spec: MatrixSpec, arch: int) -> str | None:
        """Groups of whole 16s, everywhere; inputs of float8 weights stay in 16 bits."""
        form = spec.format
        if form is None or form.zero != "e4m3":
            reason = no_integers(form)
            if reason is not None:
                return reason
        assert form is not None
        group = form.group_size
        if group != -1 and group % _GROUP:
            return f"groups of {group} are no multiple of {_GROUP}"
        if form.zero == "e4m3":
            return NO_ROWS if spec.table else NO_GATE if spec.gated else None
        if spec.table and form.permuted:
            return "columns of an embedding are not in order"
        return NO_GATE if spec.gated else None

    def packed_bytes(self, spec: MatrixSpec) -> int:
        """A byte a code; an entry a group, which is a scale, or a scale and an offset."""
        assert spec.format is not None
        rows, entry = round_up(spec.n, FRAGMENT_ROW_ALIGN), 2 if spec.half else 4
        if _offset(spec.format):
            # A scale and an offset; of codes around 64 that is the scale times 64, which is as
            # exact, of all others a product of two numbers or a sum, for which fp16 is too narrow.
            entry = 2 * entry if (spec.format.zero, spec.format.bits) == ("none", 7) else 8
        codes = rows * round_up(spec.k, _SLICE)
        return codes + rows * entries(spec.format, spec.k, _SLICE) * entry

    def choose(self, spec: MatrixSpec, m: int, where: Conditions) -> Chosen:
        """Fused, or a dense product for many rows."""
        form = spec.format
        assert form is not None
        detail = f"codes of {form.bits} bits"
        if form.zero == "e4m3":
            detail = "float8 codes, activations of 16 bits"
        elif spec.table:
            detail = "codes of 8 bits, of which rows can be read"
        elif form.group_size % 32 and form.group_size != -1:
            detail = f"groups of {form.group_size} have scales inside a step of 32"
        return chosen(spec, m, where, planes=_PLANES, narrow=_offset(form), detail=detail)

    def pack(
        self, weight: Weight, dtype: torch.dtype, device: torch.device, gated: bool
    ) -> PackedW8A16:
        """Fragments and scales of [N, K]."""
        assert isinstance(weight, QuantizedLinear)
        zero, zeros = recentred(weight, 128)
        assert zero != "table"
        zeros = None if zeros is None else zeros.to(device)
        codes, scales = unpacked(weight, device)
        return pack_w8a16(codes, scales, zeros, zero=zero, group=weight.format.group_size)

    def linear(
        self,
        x_MK: Tensor,
        weight: PackedW8A16,
        bias: Tensor | None,
        residual: Tensor | None,
        out: Tensor | None,
        context: ProductContext,
    ) -> Tensor:
        """-> [M, N]."""
        return w8a16_linear(
            x_MK,
            weight,
            bias=bias,
            residual=residual,
            out=out,
            exact=context.exact,
            workspace=context.workspace,
        )

    def gather(
        self, ids_T: Tensor, weight: PackedW8A16, dtype: torch.dtype, factor: float
    ) -> Tensor:
        """-> [T, D]."""
        return gather_rows(ids_T, weight, dtype, factor)

    def stack(self, weights: Sequence[PackedW8A16]) -> PackedW8A16 | None:
        """Row blocks of one matrix."""
        return stack_fragments(weights)

    def tile_rows(
        self, weight: PackedW8A16, load: ExpertLoad, dtype: torch.dtype, context: ProductContext
    ) -> int:
        """As the launch has them."""
        return grouped_config(weight, load, context.exact, context.workspace).bm

    def grouped_linear(
        self,
        x_PK: Tensor,
        weight: PackedW8A16,
        bias: Tensor | None,
        tiles: ExpertTiles,
        context: ProductContext,
    ) -> Tensor:
        """-> [P, N]."""
        return w8a16_grouped(
            x_PK, weight, bias, tiles, exact=context.exact, workspace=context.workspace
        )

    def variants(self, arch: int) -> Iterator[Variant]:
        """Tiles, groups and offsets; the reading of rows."""
        return variants(arch)


def _offset(form: WeightFormat) -> bool:
    """Whether codes have offsets: only float8 and signed bytes without a zero point have none."""
    return form.zero != "e4m3" and (form.zero != "none" or form.bits != 8)


W8A16 = W8A16Kind()
