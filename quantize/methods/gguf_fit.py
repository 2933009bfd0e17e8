"""Fits the scales of GGUF blocks, and of super-blocks with scales of their scales.

The error that counts is ``sum h_k (w_k - q_k)^2`` with h the mean square of input k, or 1. Each
group's scale and offset are searched by least squares over many first guesses (``GroupFits``).
Types of super-blocks store them as small integers: those are chosen to fit the quadratic form of
the error around each group's optimum, then each is compared with its neighbours by the error
itself, and what scales all of them is fitted anew by least squares.

Shape letters: N rows, K columns, B blocks of a row, G groups of a row, S groups of a super-block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.formats.code_tables import IQ4_NL
from ...kernels.formats.group_grid import GroupFits, GroupGrid, Search

# The smallest magnitude of a number that a file's float16 keeps.
_LEAST = 2.0**-24
# The largest number of float16.
_MOST = 65504.0
# Offsets of at most so many steps: beyond, codes would get lost beside them in float32.
_FAR = 4096.0
# Quotients of the largest scale and the largest integer, tried for what scales all of them.
_SHARES = tuple(1 + i / 48 for i in range(-3, 6))


@dataclass(frozen=True, slots=True)
class BlockRule:
    """How the blocks of a type are fitted.

    Attributes:
        grid: of a group.
        search: its first guesses.
        groups: of a super-block; 1 where blocks have float16 scales of their own.
        least: the smallest integer that scales a group of a super-block.
        most: the largest; with offsets of them, too.
    """

    grid: GroupGrid
    search: Search
    groups: int = 1
    least: int = 0
    most: int = 0


RULES: dict[str, BlockRule] = {
    "Q4_0": BlockRule(GroupGrid(32, 15, 8), Search(36, 5.0, 11.0)),
    "Q5_0": BlockRule(GroupGrid(32, 31, 16), Search(32, 12.0, 19.5)),
    "Q8_0": BlockRule(GroupGrid(32, 255, 128), Search(8, 122.0, 130.0)),
    "IQ4_NL": BlockRule(GroupGrid(32, 15, 127, table=IQ4_NL), Search(12, 90.0, 150.0)),
    "Q4_1": BlockRule(GroupGrid(32, 15, offset="free"), Search(24, 13.0, 19.0)),
    "Q5_1": BlockRule(GroupGrid(32, 31, offset="free"), Search(20, 28.5, 35.0)),
    "Q2_K": BlockRule(GroupGrid(16, 3, offset="negative"), Search(16, 2.2, 4.5), 16, 0, 15),
    "Q4_K": BlockRule(GroupGrid(32, 15, offset="negative"), Search(24, 13.0, 19.0), 8, 0, 63),
    "Q5_K": BlockRule(GroupGrid(32, 31, offset="negative"), Search(20, 28.5, 35.0), 8, 0, 63),
    "Q3_K": BlockRule(GroupGrid(16, 7, 4), Search(16, 2.5, 5.5), 16, -32, 31),
    "Q6_K": BlockRule(GroupGrid(16, 63, 32), Search(16, 29.0, 35.0), 16, -128, 127),
    "IQ4_XS": BlockRule(GroupGrid(32, 15, 127, table=IQ4_NL), Search(12, 90.0, 150.0), 8, -32, 31),
}


@dataclass(frozen=True, slots=True)
class BlockScales:
    """The numbers of blocks beside codes.

    Attributes:
        scale: float16 [N, B].
        offset: float16 [N, B]: of a block, or what scales the offsets of a super-block; None where
            the type has none.
        scales: int32 [N, B, S], integers that scale groups of super-blocks, or None.
        offsets: int32 [N, B, S], or None.
    """

    scale: Tensor
    offset: Tensor | None = None
    scales: Tensor | None = None
    offsets: Tensor | None = None

    def steps(self) -> Tensor:
        """The scale of each group, float32 [N, G]."""
        return _products(self.scale, self.scales)

    def starts(self) -> Tensor | None:
        """The offset of each group, float32 [N, G], or None. Super-blocks subtract theirs."""
        if self.offset is None:
            return None
        starts = _products(self.offset, self.offsets)
        return starts if self.offsets is None else -starts


def _products(scale_NB: Tensor, integers_NBS: Tensor | None) -> Tensor:
    if integers_NBS is None:
        return scale_NB.float()
    return (scale_NB.float().unsqueeze(-1) * integers_NBS.float()).flatten(1)


def fit_scales(
    rule: BlockRule, fits: GroupFits, weight_NK: Tensor, importance_K: Tensor
) -> BlockScales:
    """The scales of all blocks of a weight float32 [N, K], its columns counting [K]."""
    scales, offsets = fits.fit(rule.grid, rule.search, weight_NK, importance_K)
    if rule.groups > 1:
        fitting = _SuperBlocks(rule, fits, weight_NK, importance_K)
        return fitting.signed(scales) if offsets is None else fitting.affine(scales, offsets)
    if offsets is not None:
        offset = offsets.clamp(-_MOST, _MOST).half()
        far = (offset.float().abs() / _FAR).clamp_(min=_LEAST)
        return BlockScales(torch.maximum(scales, far).clamp_(max=_MOST).half(), offset)
    return BlockScales(_some(scales, rule).half())


def _some(scales: Tensor, rule: BlockRule) -> Tensor:
    """Scales that float16 holds, none of them 0 where they are divided by: not with a table.

    The codes of a group of zeros are its zero point, which no table has.
    """
    scales = scales.clamp(-_MOST, _MOST)
    if rule.grid.table:
        return scales
    return torch.where(scales.abs() < _LEAST, _LEAST, scales)


@dataclass(slots=True)
class _SuperBlocks:
    rule: BlockRule
    fits: GroupFits
    weight: Tensor
    importance: Tensor

    def _error(self, sums: Tensor) -> Tensor:
        """Of super-blocks [N, B]."""
        return self._blocks(sums[0]).sum(-1)

    def _blocks(self, x_NG: Tensor) -> Tensor:
        return x_NG.unflatten(-1, (-1, self.rule.groups))

    def _choose(self, scales: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
        """The best of choices [C, N, B, S]: which [N, B, S], and sums [5, N, B, S]."""
        flat = scales.flatten(2), None if offsets is None else offsets.flatten(2)
        best, sums = self.fits.choose(self.rule.grid, self.weight, self.importance, *flat)
        return self._blocks(best.long()), self._blocks(sums)

    def signed(self, scales_NG: Tensor) -> BlockScales:
        """Of types without offsets."""
        rule = self.rule
        s = self._blocks(scales_NG)
        _, sums = self._choose(s.unsqueeze(0), None)
        weight = sums[1]
        peak = s.gather(-1, s.abs().argmax(-1, keepdim=True)).squeeze(-1)
        scale, ints = self._integers(s, weight, peak / rule.least)
        kept: tuple[Tensor, Tensor, Tensor] | None = None
        for _ in range(2):
            choices = torch.stack([ints, ints - 1, ints + 1]).clamp_(rule.least, rule.most)
            if not rule.grid.table:
                choices = torch.where(choices == 0, 1, choices)
            best, sums = self._choose(scale.float().unsqueeze(-1) * choices.float(), None)
            ints = choices.gather(0, best.unsqueeze(0)).squeeze(0)
            error = sums[0].sum(-1)
            if kept is not None:
                better = error < kept[2]
                scale = torch.where(better, scale, kept[0])
                ints = torch.where(better.unsqueeze(-1), ints, kept[1])
                break
            kept = scale, ints, error
            f = ints.float()
            under = (f * f * sums[1]).sum(-1)
            fitted = (f * sums[2]).sum(-1) / torch.where(under > 0, under, 1)
            scale = torch.where(under > 0, _some(fitted, rule), scale.float()).half()
        return BlockScales(scale, None, ints.int())

    def affine(self, scales_NG: Tensor, offsets_NG: Tensor) -> BlockScales:
        """Of types with offsets, which are stored as what is subtracted."""
        rule = self.rule
        s, o = self._blocks(scales_NG), self._blocks(-offsets_NG)
        _, sums = self._choose(s.unsqueeze(0), -o.unsqueeze(0))
        h = self._blocks(self.importance.view(-1, rule.grid.group).sum(-1).unsqueeze(0))
        scale, ints = self._integers(s, sums[1], s.amax(-1) / rule.most)
        # What the best offset becomes where the scale is another one.
        moved = o + sums[3] / h.clamp(min=1e-30) * (scale.float().unsqueeze(-1) * ints - s)
        moved = moved.clamp_(min=0)
        start, mins = self._integers(moved, h.expand_as(moved), moved.amax(-1) / rule.most, 0)
        kept: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None = None
        for _ in range(2):
            scale = torch.maximum(scale.float(), start.float() / 64).clamp_(min=_LEAST).half()
            near = [(i, j) for i in (0, -1, 1) for j in (0, -1, 1)]
            a = torch.stack([ints + i for i, _ in near]).clamp_(1, rule.most)
            b = torch.stack([mins + j for _, j in near]).clamp_(0, rule.most)
            best, sums = self._choose(
                scale.float().unsqueeze(-1) * a.float(), -start.float().unsqueeze(-1) * b.float()
            )
            ints, mins = (x.gather(0, best.unsqueeze(0)).squeeze(0) for x in (a, b))
            error = sums[0].sum(-1)
            if kept is not None:
                better = error < kept[4]
                scale, start = (
                    torch.where(better, x, y) for x, y in zip((scale, start), kept[:2], strict=True)
                )
                ints, mins = (
                    torch.where(better.unsqueeze(-1), x, y)
                    for x, y in zip((ints, mins), kept[2:4], strict=True)
                )
                break
            kept = scale, start, ints, mins, error
            scale, start = self._refit(ints.float(), mins.float(), sums, h, scale, start)
        return BlockScales(scale, start, ints.int(), mins.int())

    def _refit(
        self, f: Tensor, m: Tensor, sums: Tensor, h: Tensor, scale: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both numbers of super-blocks [N, B] by least squares, for codes and integers as are."""
        ff, fm = (f * f * sums[1]).sum(-1), -(f * m * sums[3]).sum(-1)
        mm, fx, mx = (m * m * h).sum(-1), (f * sums[2]).sum(-1), -(m * sums[4]).sum(-1)
        det = ff * mm - fm * fm
        both = det > 1e-6 * ff * mm
        det = torch.where(both, det, 1)
        one = torch.where(both, (fx * mm - mx * fm) / det, fx / torch.where(ff > 0, ff, 1))
        two = torch.where(both, (ff * mx - fm * fx) / det, 0)
        good = (one > 0) & (two >= 0)
        one = torch.where(good, one, scale.float()).clamp_(_LEAST, _MOST).half()
        return one, torch.where(good, two, start.float()).clamp_(max=_MOST).half()

    def _integers(
        self, x_NBS: Tensor, weight_NBS: Tensor, unit_NB: Tensor, least: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """What scales integers [N, B], float16, and those, near ``x`` by a weighted square."""
        rule = self.rule
        low = rule.least if least is None else least
        # Sums go over the first dimension: whole vectors are added.
        x, weight = (t.movedim(-1, 0).contiguous() for t in (x_NBS, weight_NBS))
        best = torch.full_like(unit_NB, torch.inf)
        unit, ints = unit_NB.clone(), torch.zeros_like(x)
        weighted = weight * x
        for share in _SHARES:
            d = unit_NB * share
            q = (x * torch.where(d == 0, 0, 1 / d)).round_().clamp_(low, rule.most)
            under, over = (weight * q).mul_(q).sum(0), (weighted * q).sum(0)
            some = under > 0
            d = torch.where(some, over / torch.where(some, under, 1), d)
            # What is taken from the sum of weight x x.
            error = -d * over
            better = error < best
            best, unit = torch.where(better, error, best), torch.where(better, d, unit)
            torch.where(better, q, ints, out=ints)
        return _some(unit, rule).half(), ints.movedim(0, -1).int()
