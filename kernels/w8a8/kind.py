"""8-bit weights for 8-bit activations: int8, and float8 where the GPU multiplies that."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..device.choice import FLOAT8_ARCH
from ..device.expert_tiles import ExpertLoad, ExpertTiles
from ..device.input_rounding import K_ALIGN, InputRounding, RoundedRows
from ..formats.canonical import QuantizedLinear, Weight
from ..formats.weight_format import ActivationFormat, WeightFormat
from ..kind import (
    NO_CODES,
    NO_GATE,
    NO_ROWS,
    PLAIN_INPUTS,
    Chosen,
    Conditions,
    KindCase,
    MatrixSpec,
    ProductContext,
    TritonKind,
    round_up,
    unpacked,
)
from . import config
from .layout import MAX_K, MAX_K_ASYMMETRIC, PackedW8A8, pack_w8a8, stack_w8a8
from .op import grouped_tile, quantize_rows, w8a8_linear
from .variants import float8_variants, int8_variants

if TYPE_CHECKING:
    from ..codegen.variant import Variant


class _RowScales(TritonKind[PackedW8A8]):
    """What both types share: one scale a row, inputs rounded row by row."""

    reorders = True
    rounds = True
    floating: bool
    detail: str

    @abstractmethod
    def refuses(self, form: WeightFormat, arch: int) -> str | None:
        """Why codes of a format are not of this type, or have no such kernel."""

    def accepts(self, spec: MatrixSpec, arch: int) -> str | None:
        """By the format, and by a K that sums fit into."""
        form = spec.format
        if form is None:
            return NO_CODES
        reason = self.refuses(form, arch)
        if reason is not None:
            return reason
        assert form.act is not None
        most = MAX_K if form.act.symmetric else MAX_K_ASYMMETRIC
        if spec.k >= most:
            return f"{spec.k} columns; sums of 8-bit products fit 32 bits only below {most}"
        if spec.table:
            return NO_ROWS
        return NO_GATE if spec.gated else None

    def packed_bytes(self, spec: MatrixSpec) -> int:
        """A byte a code; a float32 scale and an int32 sum of codes a row."""
        return spec.n * round_up(spec.k, K_ALIGN) + 8 * spec.n

    def choose(self, spec: MatrixSpec, m: int, where: Conditions) -> Chosen:
        """The tile for ``m`` rows."""
        assert spec.format is not None and spec.format.act is not None
        device, fixed = where.device, where.exact and self.floating
        zero = not spec.format.act.symmetric
        if fixed:
            # Sums of integers are exact in any order; those of float8 have one tile for all M.
            tile, m = config.choose_exact(device.arch), 1
        else:
            tile = config.choose(device.arch, m, spec.n, floating=self.floating, zero=zero)
        splits = config.choose_split(tile, m, spec.n, round_up(spec.k, K_ALIGN), device.sms)
        values = {"bm": tile.bm, "bn": tile.bn, "bk": tile.bk, "splits": splits, **tile.launch}
        return Chosen("w8a8", values, "exact" if where.exact else "formula", self.detail)

    def pack(
        self, weight: Weight, dtype: torch.dtype, device: torch.device, gated: bool
    ) -> PackedW8A8:
        """Codes, scales and the rounding of inputs of [N, K]."""
        assert isinstance(weight, QuantizedLinear) and weight.format.act is not None
        codes, scales = unpacked(weight, device)
        if self.floating:
            codes = codes.view(torch.float8_e4m3fn)
        rounding = _rounding(weight.format.act, device)
        return pack_w8a8(codes, scales, dtype=dtype, rounding=rounding)

    def rounding(self, weight: PackedW8A8) -> InputRounding | None:
        """As the weight's format says."""
        return weight.rounding

    def linear(
        self,
        x_MK: Tensor,
        weight: PackedW8A8,
        bias: Tensor | None,
        residual: Tensor | None,
        out: Tensor | None,
        context: ProductContext,
    ) -> Tensor:
        """-> [M, N]."""
        return self.rounded_linear(_rounded(x_MK, weight), weight, bias, residual, out, context)

    def rounded_linear(
        self,
        x: RoundedRows,
        weight: PackedW8A8,
        bias: Tensor | None,
        residual: Tensor | None,
        out: Tensor | None,
        context: ProductContext,
    ) -> Tensor:
        """-> [M, N]; sums of int8 are exact, those of float8 depend on the tile."""
        return w8a8_linear(x, weight, bias, residual, out, context.workspace, context.exact)

    def stack(self, weights: Sequence[PackedW8A8]) -> PackedW8A8 | None:
        """Row blocks of one matrix, where all round their inputs alike."""
        return stack_w8a8(weights)

    def tile_rows(
        self, weight: PackedW8A8, load: ExpertLoad, dtype: torch.dtype, context: ProductContext
    ) -> int:
        """As the launch has them."""
        return grouped_tile(weight, load, context.exact).bm

    def grouped_linear(
        self,
        x_PK: Tensor,
        weight: PackedW8A8,
        bias: Tensor | None,
        tiles: ExpertTiles,
        context: ProductContext,
    ) -> Tensor:
        """-> [P, N]."""
        x = _rounded(x_PK, weight)
        space = context.workspace
        return w8a8_linear(x, weight, bias, None, None, space, context.exact, tiles)

    def prepared(
        self, x_MK: Tensor, weight: PackedW8A8, out: Tensor, context: ProductContext
    ) -> Callable[[PackedW8A8], Tensor]:
        """The product alone, of x [M, K] that is rounded already."""
        x = _rounded(x_MK, weight)
        return lambda w: w8a8_linear(x, w, out=out, workspace=context.workspace)

    def seen(self, x_MK: Tensor, weight: PackedW8A8) -> Tensor:
        """Codes less their zero points, scaled: float64 [M, K]."""
        x = _rounded(x_MK, weight)
        codes = x.codes[:, : x_MK.shape[1]].double()
        if x.zero is not None:
            codes -= x.zero.double().reshape(-1, 1)
        return codes * x.scale.double().reshape(-1, 1)


class W8A8Kind(_RowScales):
    """Symmetric int8 weights; int8 inputs of any rounding."""

    name = "w8a8"
    peers = ("int_mm",)
    floating = False
    detail = "codes of 8 bits, activations of 8"
    cases = (
        KindCase(WeightFormat(8, -1, act=ActivationFormat())),
        KindCase(WeightFormat(8, -1, act=ActivationFormat(symmetric=False))),
    )

    def refuses(self, form: WeightFormat, arch: int) -> str | None:
        """Everywhere: other weights than symmetric int8."""
        act = form.act
        if act is None:
            return PLAIN_INPUTS
        if form.zero == "e4m3":
            return "codes are float8, not integers"
        if form.bits != 8 or form.group_size != -1 or form.zero != "none" or act.kind != "int8":
            return (
                f"activations are {act.kind} with weights of {form.bits} bits, group size "
                f"{form.group_size}, zero kind {form.zero!r}; the W8A8 kernel takes symmetric int8 "
                "weights with one scale a row"
            )
        return None

    def variants(self, arch: int) -> Iterator[Variant]:
        """Tiles by split and epilogue; row quantizers."""
        return int8_variants(arch)


class FP8Kind(_RowScales):
    """float8_e4m3fn weights and inputs."""

    name = "fp8"
    floating = True
    detail = "float8 weights and activations"
    cases = (KindCase(WeightFormat(8, -1, "e4m3", act=ActivationFormat("e4m3", top=448.0))),)

    def refuses(self, form: WeightFormat, arch: int) -> str | None:
        """Where there is no such product: other weights, and inputs that are not float8."""
        if form.zero != "e4m3":
            return "codes are not float8"
        if form.act is None or form.act.kind != "e4m3":
            return "activations are not float8"
        if not form.act.symmetric:
            return "float8 activations with a zero point; they stay in 16 bits"
        if form.group_size != -1:
            return f"float8 scales of groups of {form.group_size}; activations stay in 16 bits"
        if 0 < arch < FLOAT8_ARCH:
            return f"sm_{arch} has no float8 product; activations stay in 16 bits"
        return None

    def variants(self, arch: int) -> Iterator[Variant]:
        """Tiles by split and epilogue, and row quantizers, from sm_89 on."""
        return float8_variants(arch)


def _rounded(x_MK: Tensor, weight: PackedW8A8) -> RoundedRows:
    """The inputs [M, K] of a product, rounded as it wants them."""
    assert weight.rounding is not None
    return quantize_rows(x_MK.contiguous(), weight.rounding)


def _rounding(act: ActivationFormat, device: torch.device) -> InputRounding:
    scale = zero = None
    if act.scale is not None:
        scale = torch.tensor([act.scale], dtype=torch.float32, device=device)
    if act.kind == "e4m3":
        return InputRounding(torch.float8_e4m3fn, top=448.0, scale=scale)
    if scale is not None and not act.symmetric:
        zero = torch.tensor([act.zero], dtype=torch.int32, device=device)
    # All 256 codes where the checkpoint was calibrated for them.
    top = 127.0 if act.scale is None and act.top == 127.0 else 127.5
    return InputRounding(torch.int8, not act.symmetric, top, scale, zero)


W8A8 = W8A8Kind()
FP8 = FP8Kind()
