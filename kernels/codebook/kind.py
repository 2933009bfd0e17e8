"""4-bit codes that index a table of 16 values, for 16-bit activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..device.expert_tiles import ExpertLoad, ExpertTiles
from ..formats.canonical import QuantizedLinear, Weight
from ..formats.code_tables import E2M1, NF4
from ..formats.compact import ByteScales
from ..formats.weight_format import WeightFormat
from ..fragments.config import chosen
from ..fragments.layout import BYTE_GROUPS, FRAGMENT_ROW_ALIGN, ByteScale, stack_fragments
from ..fragments.product import grouped_config
from ..kind import (
    NO_CODES,
    NO_GATE,
    NO_ROWS,
    QUANTIZED_INPUTS,
    Chosen,
    Conditions,
    KindCase,
    MatrixSpec,
    ProductContext,
    TritonKind,
    entries,
    round_up,
    unpacked,
)
from .layout import PackedCodebook, pack_codebook, without_signs
from .op import codebook_grouped, codebook_linear
from .variants import variants

if TYPE_CHECKING:
    from ..codegen.variant import Variant

_VALUES = 16
_PLANES = 4
_SLICE = 32 * _PLANES
_GROUP = 32
_BYTE_SCALES: dict[str, ByteScale] = {"F8_E8M0": "e8m0", "F8_E4M3": "e4m3"}
"""Groups are multiples of it."""


class CodebookKind(TritonKind[PackedCodebook]):
    """Packed in tensor-core fragments of nibbles."""

    name = "codebook"
    reorders = True
    cases = (KindCase(WeightFormat(4, 64, "table", NF4)),)

    def accepts(self, spec: MatrixSpec, arch: int) -> str | None:
        """Tables of 16 with groups of whole 32s that end with their row, everywhere.

        Groups of 16 where their scales are bytes.
        """
        form = spec.format
        if form is None:
            return NO_CODES
        if form.zero != "table":
            return "codes index no table"
        if form.act is not None:
            return QUANTIZED_INPUTS
        group = form.group_size
        if len(form.table) != _VALUES:
            return f"a table of {len(form.table)} values; it looks up {_VALUES}"
        if _byte_scale(spec):
            return NO_ROWS if spec.table else NO_GATE if spec.gated else None
        if group != -1 and group % _GROUP:
            return f"groups of {group} are no multiple of {_GROUP}"
        if group != -1 and group < spec.k and spec.k % _GROUP:
            return f"{spec.k} columns in groups of {group} are no multiple of {_GROUP}"
        if spec.table:
            return NO_ROWS
        return NO_GATE if spec.gated else None

    def packed_bytes(self, spec: MatrixSpec) -> int:
        """Half a byte a code, a scale a group, and the table in float32."""
        form, group = spec.format, -1 if spec.format is None else spec.format.group_size
        assert form is not None
        if group >= spec.k:
            form = WeightFormat(form.bits, -1, form.zero, form.table)
        elif spec.k % max(group, 1):
            form = WeightFormat(form.bits, _GROUP, form.zero, form.table)
        rows, entry = round_up(spec.n, FRAGMENT_ROW_ALIGN), 2 if spec.half else 4
        kind = _byte_scale(spec)
        if kind:
            # Words of four scales, with those read ahead; e4m3 has a factor for each row.
            words = (round_up(spec.k, _SLICE) + _SLICE) // (4 * group)
            codes = rows * round_up(spec.k, _SLICE) // 2
            return codes + 4 * rows * (words + (kind == "e4m3")) + 4 * _VALUES
        codes = rows * round_up(spec.k, _SLICE) // 2
        return codes + rows * entries(form, spec.k, _SLICE) * entry + 4 * _VALUES

    def choose(self, spec: MatrixSpec, m: int, where: Conditions) -> Chosen:
        """Fused, or a dense product for many rows."""
        kind = _byte_scale(spec)
        detail = f"a table of {_VALUES} values" + (kind and f", {kind} scales")
        assert spec.format is not None
        narrow = bool(kind) and spec.format.group_size == 16
        return chosen(spec, m, where, planes=_PLANES, narrow=narrow, detail=detail, scale=kind)

    def pack(
        self, weight: Weight, dtype: torch.dtype, device: torch.device, gated: bool
    ) -> PackedCodebook:
        """Fragments and scales of [N, K].

        The packer wants blocks of the flattened weight, which rows of whole groups are.
        """
        assert isinstance(weight, QuantizedLinear)
        k, group, table = weight.in_features, weight.format.group_size, weight.format.table
        compact = weight.compact
        if _byte_scale(MatrixSpec.of(weight)) and isinstance(compact, ByteScales):
            plain = weight.unpack().contiguous()
            codes, scales = without_signs(plain, compact.scales, group)
            factors = compact.multipliers
            factors = None if factors is None else factors.to(device)
            return pack_codebook(
                codes.to(device), scales.to(device), table, block=group, factors=factors
            )
        codes, scales_NG = unpacked(weight, device)
        if group == -1 or group >= k:
            return pack_codebook(codes, scales_NG, table, block=-1)
        if k % group:
            # Blocks run on over row ends: give every 32 columns their scale.
            fine = scales_NG.repeat_interleave(group // _GROUP, dim=1)
            scales_NG, group = fine[:, : -(-k // _GROUP)], _GROUP
        return pack_codebook(codes, scales_NG, table, block=group)

    def linear(
        self,
        x_MK: Tensor,
        weight: PackedCodebook,
        bias: Tensor | None,
        residual: Tensor | None,
        out: Tensor | None,
        context: ProductContext,
    ) -> Tensor:
        """-> [M, N]."""
        return codebook_linear(
            x_MK,
            weight,
            bias=bias,
            residual=residual,
            out=out,
            exact=context.exact,
            workspace=context.workspace,
        )

    def stack(self, weights: Sequence[PackedCodebook]) -> PackedCodebook | None:
        """Row blocks of one matrix."""
        return stack_fragments(weights)

    def tile_rows(
        self, weight: PackedCodebook, load: ExpertLoad, dtype: torch.dtype, context: ProductContext
    ) -> int:
        """As the launch has them."""
        return grouped_config(weight, load, context.exact, context.workspace).bm

    def grouped_linear(
        self,
        x_PK: Tensor,
        weight: PackedCodebook,
        bias: Tensor | None,
        tiles: ExpertTiles,
        context: ProductContext,
    ) -> Tensor:
        """-> [P, N]."""
        return codebook_grouped(
            x_PK, weight, bias, tiles, exact=context.exact, workspace=context.workspace
        )

    def variants(self, arch: int) -> Iterator[Variant]:
        """Tiles and blocks."""
        return variants(arch)


def _byte_scale(spec: MatrixSpec) -> ByteScale:
    """Type of scales that stay bytes, or "": those of 4-bit floats do."""
    form = spec.format
    assert form is not None
    if spec.compact is None or form.group_size not in BYTE_GROUPS or form.table != E2M1:
        return ""
    return _BYTE_SCALES.get(spec.compact.dtype, "")


CODEBOOK = CodebookKind()
