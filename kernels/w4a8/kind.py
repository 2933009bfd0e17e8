"""Integer codes of up to 4 bits for inputs that are rounded to int8, a scale for each token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from halfbyte.errors import UnsupportedWeightError

from ..device.column_order import column_order
from ..device.expert_tiles import ExpertLoad, ExpertTiles
from ..formats.canonical import QuantizedLinear, Weight
from ..formats.weight_format import TOKEN_RULE, WeightFormat
from ..formats.whole import zero_points
from ..kind import (
    NO_ROWS,
    PLAIN_INPUTS,
    Chosen,
    Conditions,
    KindCase,
    MatrixSpec,
    ProductContext,
    TritonKind,
    no_integers,
    recentred,
    unpacked,
)
from ..w4a16.kind import W4A16
from ..w4a16.layout import pack_w4, stack_w4, supports
from . import config
from .op import PackedW4A8, choice_for, quantize_inputs, w4a8_linear
from .variants import variants

if TYPE_CHECKING:
    from ..codegen.variant import Variant

MOST_ZERO = 31
"""The largest zero point that may be taken from a code of 4 bits in a byte, both times 4."""


class W4A8Kind(TritonKind[PackedW4A8]):
    """Packed as W4A16 has them; the format's own rule, or what a run chose (``under``)."""

    name = "w4a8"
    reorders = True
    rounds = True
    cases = (
        KindCase(WeightFormat(4, 128, act=TOKEN_RULE)),
        KindCase(WeightFormat(4, 128, act=TOKEN_RULE), gated=True),
        KindCase(WeightFormat(4, 128, "int", act=TOKEN_RULE)),
        KindCase(WeightFormat(4, 64, "float", act=TOKEN_RULE)),
        KindCase(WeightFormat(4, 32, act=TOKEN_RULE)),
        KindCase(WeightFormat(4, -1, act=TOKEN_RULE)),
    )

    def accepts(self, spec: MatrixSpec, arch: int) -> str | None:
        """Groups of whole 32s, everywhere; symmetric int8 inputs with a scale for each token."""
        form = spec.format
        reason = no_integers(form if form is None else replace(form, act=None))
        if reason is not None or form is None:
            return reason
        act = form.act
        if act is None:
            return PLAIN_INPUTS
        if act.name != "int8-token" or not act.symmetric:
            zero = "" if act.symmetric else " with a zero point"
            return f"activations are {act.name}{zero}; it takes symmetric int8-token"
        if form.bits > 4:
            return f"codes of {form.bits} bits; it takes up to 4"
        return NO_ROWS if spec.table else supports(form.group_size)

    def packed_bytes(self, spec: MatrixSpec) -> int:
        """Those of W4A16."""
        assert spec.format is not None
        return W4A16.packed_bytes(replace(spec, format=_packed_format(spec.format, spec.k)))

    def choose(self, spec: MatrixSpec, m: int, where: Conditions) -> Chosen:
        """The tile for ``m`` rows; in exact mode its splits do not depend on them."""
        assert spec.format is not None
        form = _packed_format(spec.format, spec.k)
        problem = W4A16.problem(replace(spec, format=form), m, where)
        found = config.choose(
            *(m, problem.rows, spec.k),
            group=problem.group,
            additive=form.zero == "float",
            arch=where.device.arch,
            sms=where.device.sms,
            exact=where.exact,
        )
        detail = f"codes of {form.bits} bits, activations of 8"
        source = "exact" if where.exact else "formula"
        return Chosen("w4a8", asdict(found) | {"bn": config.BN}, source, detail)

    def pack(
        self, weight: Weight, dtype: torch.dtype, device: torch.device, gated: bool
    ) -> PackedW4A8:
        """Codes and entries of [N, K]; ``gated`` interleaves gate and up.

        Raises UnsupportedWeightError for zero points above 31.
        """
        assert isinstance(weight, QuantizedLinear) and weight.format.act is not None
        form = _packed_format(weight.format, weight.in_features)
        zero, zeros = recentred(weight, 8)
        codes, scales = unpacked(weight, device)
        if zero == "int" and weight.format.zero == "int":
            assert zeros is not None
            points = zero_points(weight)
            if points is None:
                zero, zeros = "float", -(weight.scales.float() * zeros.float())
            elif int(points.max()) > MOST_ZERO:
                raise UnsupportedWeightError(
                    f"{weight.name}: zero points up to {int(points.max())}; the W4A8 kernel takes "
                    f"them up to {MOST_ZERO}",
                    hint="use activations='auto'",
                )
        zeros = None if zeros is None else zeros.to(device)
        group = form.group_size
        packed = pack_w4(codes, scales, zeros, zero=zero, group=group, gated=gated)
        return PackedW4A8(packed, weight.format.act.top)

    def linear(
        self,
        x_MK: Tensor,
        weight: PackedW4A8,
        bias: Tensor | None,
        residual: Tensor | None,
        out: Tensor | None,
        context: ProductContext,
    ) -> Tensor:
        """-> [M, N], or [M, N / 2] when gated."""
        q, scale = quantize_inputs(x_MK.contiguous(), weight)
        return w4a8_linear(
            q,
            scale,
            weight,
            dtype=x_MK.dtype,
            bias=bias,
            residual=residual,
            out=out,
            exact=context.exact,
            workspace=context.workspace,
        )

    def stack(self, weights: Sequence[PackedW4A8]) -> PackedW4A8 | None:
        """Row blocks of one matrix."""
        packed = stack_w4([each.weight for each in weights])
        tops = {each.top for each in weights}
        return None if packed is None or len(tops) > 1 else PackedW4A8(packed, *tops)

    def tile_rows(
        self, weight: PackedW4A8, load: ExpertLoad, dtype: torch.dtype, context: ProductContext
    ) -> int:
        """As the launch has them."""
        return choice_for(weight, load, context.exact, context.workspace).bm

    def grouped_linear(
        self,
        x_PK: Tensor,
        weight: PackedW4A8,
        bias: Tensor | None,
        tiles: ExpertTiles,
        context: ProductContext,
    ) -> Tensor:
        """-> [P, N], or [P, N / 2] when gated."""
        return w4a8_linear(
            *quantize_inputs(x_PK, weight),
            weight,
            dtype=x_PK.dtype,
            bias=bias,
            exact=context.exact,
            workspace=context.workspace,
            tiles=tiles,
        )

    def prepared(
        self, x_MK: Tensor, weight: PackedW4A8, out: Tensor, context: ProductContext
    ) -> Callable[[PackedW4A8], Tensor]:
        """The product alone, of x [M, K] that is rounded already."""
        q, scale = quantize_inputs(x_MK.contiguous(), weight)
        return lambda w: w4a8_linear(
            q, scale, w, dtype=x_MK.dtype, out=out, workspace=context.workspace
        )

    def seen(self, x_MK: Tensor, weight: PackedW4A8) -> Tensor:
        """Codes times scales: float64 [M, K]."""
        q, scale = quantize_inputs(x_MK.contiguous(), weight)
        places = torch.tensor(column_order(weight.order), device=q.device)
        slices = q.view(q.shape[0], -1, len(places))
        plain = torch.empty_like(slices)
        plain[:, :, places] = slices
        return plain.view(q.shape)[:, : x_MK.shape[1]].double() * scale.double()[:, None]

    def variants(self, arch: int) -> Iterator[Variant]:
        """All tiles, groups and epilogues."""
        return variants(arch)


def _packed_format(form: WeightFormat, k: int) -> WeightFormat:
    """The format as W4A16 packs it: without inputs, and with one group where that is all of K."""
    whole = form.group_size >= k
    return replace(form, act=None, group_size=-1 if whole else form.group_size)


W4A8 = W4A8Kind()
