"""Codes that index a table: NF4 and FP4 as bitsandbytes has them, and Lloyd-Max tables.

NF4 and FP4 take the nearest entry after division by the largest magnitude of a block (Dettmers et
al., "QLoRA", arXiv 2305.14314). Double quantization turns those magnitudes, less their mean, into
8-bit codes with a scale for each 256. A Lloyd-Max table is made for one matrix and is what all its
groups index.

Shape letters: N rows, K columns, G groups along K, B blocks of a flattened matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from halfbyte.errors import QuantizeError

from ...kernels.formats.canonical import QuantizedLinear, WeightFormat, pack_codes
from ...kernels.formats.code_tables import FP4, NF4
from ...kernels.formats.compact import CodedScales
from ...loaders.hf.methods.bnb_state import LEAST_GROUP
from ...loaders.model.rtn import rtn_table
from ..hessian import Hessian
from ..lloyd_max import lloyd_max, nearest_entries

_TABLES = {"nf4": NF4, "fp4": FP4}
NESTED_BLOCK = 256
"""Scales that share one, in double quantization."""


@dataclass(frozen=True, slots=True)
class NestedScales:
    """Scales of blocks as double quantization keeps them.

    Attributes:
        codes: uint8 [B].
        absmax: float32 [ceil(B / 256)], the largest magnitude of 256 scales less the offset.
        table: float32 [256], what codes stand for.
        offset: the mean of all scales.
    """

    codes: Tensor
    absmax: Tensor
    table: Tensor
    offset: float

    def values(self) -> Tensor:
        """The scales, float32 [B], bit for bit as a reader of the file has them."""
        told = self.codes, self.absmax, self.offset, self.table, NESTED_BLOCK, 1
        return CodedScales.of_blocks(*told).numbers()[0].flatten()


class NestedLinear(QuantizedLinear):
    """A :class:`QuantizedLinear` [N, K] whose scales are those of :class:`NestedScales`.

    Attributes:
        nested: what a file holds for them; blocks are those of the flattened matrix.
        block: weights of one.
    """

    __slots__ = ("block", "nested")

    def __init__(self, plain: QuantizedLinear, nested: NestedScales, block: int) -> None:
        super().__init__(
            plain.name, plain.format, plain.codes, plain.scales, plain.zeros, plain.in_features
        )
        self.nested, self.block = nested, block


def nest_scales(scales_B: Tensor) -> NestedScales:
    """Double quantization of positive scales, float32 [B]."""
    offset = scales_B.mean()
    table = _dynamic_table()
    blocks = -(-len(scales_B) // NESTED_BLOCK)
    x = torch.zeros(blocks * NESTED_BLOCK)
    x[: len(scales_B)] = scales_B - offset
    x = x.view(blocks, NESTED_BLOCK)
    absmax = x.abs().amax(1)
    codes = nearest_entries((x * (1 / absmax.clamp(min=1e-38))[:, None]).clamp(-1, 1), table)
    return NestedScales(codes.view(-1)[: len(scales_B)], absmax, table, float(offset))


@cache
def _dynamic_table() -> Tensor:
    """Decades from 1e-6 to 1, each of twice as many values as the one below it, float32 [256].

    Source: Dettmers, "8-bit approximations for parallelism in deep learning", arXiv 1511.04561.
    """
    parts = [torch.tensor([0.0, 1.0])]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, (1 << decade) + 1)
        values = 10.0 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)
        parts += [values, -values]
    return torch.cat(parts).sort().values


@dataclass(frozen=True, slots=True)
class BlockTableQuantizer:
    """bitsandbytes' NF4 and FP4.

    Attributes:
        kind: which table.
        block: neighbours in the flattened matrix that share a scale, a power of two from 32 on.
        double: scales are codes, too; :class:`NestedLinear` has them.
        calibrated: it wants no inputs.
    """

    kind: Literal["nf4", "fp4"] = "nf4"
    block: int = 64
    double: bool = True
    calibrated: bool = False

    def quantize(self, name: str, weight_NK: Tensor, hessian: Hessian | None) -> QuantizedLinear:
        """See :class:`.base.Quantizer`; [N, K].

        Raises QuantizeError where blocks cross the ends of rows within 32 columns.
        """
        n, k = weight_NK.shape
        group = math.gcd(self.block, k)
        if group % LEAST_GROUP:
            raise QuantizeError(
                f"{name} has rows of {k} weights, which blocks of {self.block} cut into pieces of "
                f"{group}; expected a multiple of {LEAST_GROUP}",
                hint="leave this matrix dense, or quantize it with a scale for each group",
            )
        # Where blocks cross rows, one long row; else rows, which need less memory at once.
        rows = weight_NK if group == self.block else weight_NK.reshape(1, -1)
        found = rtn_table(name, rows, self.block, _TABLES[self.kind])
        scales, nested = found.scales.reshape(-1), None
        if self.double:
            nested = nest_scales(scales)
            scales = nested.values()
        again = self.block // group
        scales = scales.repeat_interleave(again)[: n * k // group].view(n, -1)
        form = WeightFormat(4, group, "table", _TABLES[self.kind])
        plain = QuantizedLinear(name, form, found.codes.view(n, -1), scales, None, k)
        return plain if nested is None else NestedLinear(plain, nested, self.block)


@dataclass(frozen=True, slots=True)
class LloydMaxQuantizer:
    """A Lloyd-Max table for each matrix, weighted by what errors cost.

    Groups are divided by their scales, so that one table fits all. Table, scales (by least squares)
    and codes are found in turn. With inputs, an error counts as much as the mean square of the
    input that it meets.

    Attributes:
        bits: of a code; kernels read tables of 2 to 4 bits (on GPUs 4), others run as floats.
        group: columns that share a scale; -1 = all.
        rounds: how often all three are found.
        calibrated: it wants inputs.
    """

    bits: int = 4
    group: int = 64
    rounds: int = 4
    calibrated: bool = True

    def quantize(self, name: str, weight_NK: Tensor, hessian: Hessian | None) -> QuantizedLinear:
        """See :class:`.base.Quantizer`; [N, K]. Raises QuantizeError for weights that are not
        finite.
        """
        n, k = weight_NK.shape
        size = k if self.group == -1 else min(self.group, k)
        groups, pad = -(-k // size), -k % size
        importance = torch.ones(k) if hessian is None else hessian.mean().diagonal()
        # Dead inputs cost nothing, but their weights are to be numbers of the right size.
        importance = importance.clamp(min=1e-6 * float(importance.mean()) or 1.0)
        h = torch.nn.functional.pad(importance, (0, pad)).view(groups, size)
        w = torch.nn.functional.pad(weight_NK.float(), (0, pad)).view(n, groups, size)
        scales = w.abs().amax(-1, keepdim=True).half().float()
        table, codes = self._nearest(w, scales, h, None)
        for _ in range(self.rounds - 1):
            values = table[codes.int()]
            squares = (h * values.square()).sum(-1, keepdim=True)
            fitted = ((h * w * values).sum(-1, keepdim=True) / squares.clamp(min=1e-30)).half()
            scales = torch.where(fitted > 0, fitted.float(), scales)
            table, codes = self._nearest(w, scales, h, table)
        packed = pack_codes(codes.view(n, -1)[:, :k].contiguous(), self.bits)
        form = WeightFormat(self.bits, self.group, "table", tuple(table.tolist()))
        return QuantizedLinear(name, form, packed, scales.view(n, groups).half(), None, k)

    def _nearest(
        self, w_NGS: Tensor, scales_NG1: Tensor, h_GS: Tensor, table_L: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The best table for groups of S weights over their scales, from another, and codes."""
        x = w_NGS / torch.where(scales_NG1 == 0, 1.0, scales_NG1)
        table_L = lloyd_max(x, 1 << self.bits, h_GS * scales_NG1.square(), table_L)
        return table_L, nearest_entries(x, table_L)
