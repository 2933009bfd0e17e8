"""Scales and offsets as a file has them, where that takes fewer bits than the numbers they mean.

The canonical weight has the numbers themselves, and they are the meaning; a backend that can read
the file's own form may keep that instead. Both give the same bits.

Shape letters: N rows, G groups along K, R runs of scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .weight_format import CompactForm

_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fn: "F8_E4M3",
}


@dataclass(frozen=True, slots=True)
class FloatZeros:
    """Offsets that a file has as zero points (HQQ): ``offset = -zero * scale`` in float32.

    Attributes:
        scales: [N, G], float16, bfloat16 or float32.
        zeros: [N, G] of the same type.
    """

    scales: Tensor
    zeros: Tensor

    @property
    def form(self) -> CompactForm:
        """What headers tell of it."""
        return CompactForm(dtype=_NAMES[self.scales.dtype])

    def numbers(self) -> tuple[Tensor, Tensor | None]:
        """Scales and offsets, float32 [N, G]."""
        scales = self.scales.float()
        return scales, -self.zeros.float() * scales

    def rows(self, start: int, stop: int) -> FloatZeros:
        """Rows ``start:stop``."""
        return FloatZeros(self.scales[start:stop], self.zeros[start:stop])


@dataclass(frozen=True, slots=True)
class CodedScales:
    """Scales that are codes themselves (bitsandbytes' double quantization).

    ``scale = table[code] * factor + offset`` in float32, rounded after each step. Scales of a
    matrix are counted through, row after row, and each ``2**run_shift`` of them are a run with a
    factor and an offset of its own.

    Attributes:
        codes: uint8 [N, G].
        firsts: int32 [N], the number of each row's first scale.
        outer: float32 [R, 2], factor and offset of each run.
        table: float32 [256].
        run_shift: see above.
    """

    codes: Tensor
    firsts: Tensor
    outer: Tensor
    table: Tensor
    run_shift: int

    @staticmethod
    def of_blocks(
        codes: Tensor, factors: Tensor, offset: float, table: Tensor, run: int, rows: int
    ) -> CodedScales:
        """All scales of a matrix.

        Args:
            codes: uint8 [N G], row after row.
            factors: float32 [R].
            offset: of all runs.
            table: float32 [256].
            run: scales of a run, a power of two.
            rows: N.
        """
        groups = codes.numel() // rows
        firsts = torch.arange(rows, dtype=torch.int32) * groups
        outer = torch.stack((factors, torch.full_like(factors, offset)), dim=1)
        return CodedScales(codes.view(rows, groups), firsts, outer, table, run.bit_length() - 1)

    @property
    def form(self) -> CompactForm:
        """What headers tell of it."""
        return CompactForm(dtype="F32", run=1 << self.run_shift)

    def numbers(self) -> tuple[Tensor, Tensor | None]:
        """Scales, float32 [N, G], and no offsets."""
        places = torch.arange(self.codes.shape[1], dtype=torch.int32)
        runs = (self.firsts.unsqueeze(1) + places) >> self.run_shift
        factors, offsets = (column[runs] for column in self.outer.unbind(1))
        scales = self.table[self.codes.int()]
        scales *= factors
        scales += offsets
        return scales, None

    def rows(self, start: int, stop: int) -> CodedScales:
        """Rows ``start:stop``."""
        return replace(self, codes=self.codes[start:stop], firsts=self.firsts[start:stop])


@dataclass(frozen=True, slots=True)
class ByteScales:
    """Scales that are floats of one byte: of MXFP4, and of NVFP4, whose tensors have a factor each.

    Attributes:
        scales: float8_e8m0fnu or float8_e4m3fn [N, G], finite numbers.
        factors: float32 [N], that of the tensor which a row belongs to; None: 1.
        divides: scales are divided by their factor (compressed-tensors) where others multiply
            them (ModelOpt). Both are one rounding to float32, but not the same.
    """

    scales: Tensor
    factors: Tensor | None = None
    divides: bool = False

    @property
    def form(self) -> CompactForm:
        """What headers tell of it."""
        return CompactForm(dtype=_NAMES[self.scales.dtype])

    @property
    def multipliers(self) -> Tensor | None:
        """Float32 [N] that sums of products are multiplied by where scales are taken bare."""
        if self.factors is None or not self.divides:
            return self.factors
        return 1 / self.factors

    def numbers(self) -> tuple[Tensor, Tensor | None]:
        """Scales, float32 [N, G], and no offsets."""
        scales = self.scales.float()
        if self.factors is None:
            return scales, None
        factors = self.factors.unsqueeze(1)
        return (scales / factors if self.divides else scales * factors), None

    def rows(self, start: int, stop: int) -> ByteScales:
        """Rows ``start:stop``."""
        factors = None if self.factors is None else self.factors[start:stop]
        return ByteScales(self.scales[start:stop], factors, self.divides)


CompactNumbers = FloatZeros | CodedScales | ByteScales


def stack_numbers(parts: Sequence[CompactNumbers | None]) -> CompactNumbers | None:
    """The same of matrices stacked along N; None where they are not all of one form."""
    first = parts[0]
    if isinstance(first, ByteScales):
        return _stack_bytes([part for part in parts if isinstance(part, ByteScales)], len(parts))
    if isinstance(first, FloatZeros):
        zeros = [part for part in parts if isinstance(part, FloatZeros)]
        if len(zeros) < len(parts) or len({part.form for part in zeros}) > 1:
            return None
        return FloatZeros(
            torch.cat([part.scales for part in zeros]), torch.cat([part.zeros for part in zeros])
        )
    nested = [part for part in parts if isinstance(part, CodedScales)]
    if first is None or len(nested) < len(parts) or len({part.form for part in nested}) > 1:
        return None
    if not all(torch.equal(part.table, first.table) for part in nested):
        return None
    # Each part begins a run of its own.
    firsts, runs = [], 0
    for part in nested:
        firsts.append(part.firsts + (runs << first.run_shift))
        runs += len(part.outer)
    return replace(
        first,
        codes=torch.cat([part.codes for part in nested]),
        firsts=torch.cat(firsts),
        outer=torch.cat([part.outer for part in nested]),
    )


def _stack_bytes(parts: Sequence[ByteScales], count: int) -> ByteScales | None:
    """Scales of one byte stacked; None where others are among the ``count`` parts."""
    first = parts[0]
    if len(parts) < count or len({(part.form, part.divides) for part in parts}) > 1:
        return None
    factors = [part.factors for part in parts if part.factors is not None]
    if factors and len(factors) < count:
        return None
    # Through uint8, because torch joins no tensors of exponents.
    stacked = torch.cat([part.scales.view(torch.uint8) for part in parts])
    joined = torch.cat(factors) if factors else None
    return ByteScales(stacked.view(first.scales.dtype), joined, first.divides)
