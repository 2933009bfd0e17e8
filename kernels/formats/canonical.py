"""Canonical weights: what a checkpoint means, apart from how any file or kernel stores it.

A loader turns each tensor into either a dense ``torch.Tensor`` or a :class:`QuantizedLinear`;
a backend packs it once for its kernels. The two are different types on purpose.

Shape letters: N output features, K input features, G groups along K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from halfbyte.errors import CheckpointError

from .bit_stream import pack_codes as pack_codes
from .bit_stream import unpack_codes
from .compact import CompactNumbers, stack_numbers
from .weight_format import ActivationFormat as ActivationFormat
from .weight_format import CompactForm
from .weight_format import WeightFormat as WeightFormat
from .weight_format import ZeroKind as ZeroKind


@dataclass(slots=True)
class QuantizedLinear:
    """A weight matrix [N, K] as integer codes with one scale per group.

    Meaning: ``w = scale * (code - zero)`` for zero kinds ``none`` and ``int``,
    ``w = scale * code + zero`` for ``float``, ``w = scale * table[code]`` for ``table`` and
    ``w = scale * value(code)`` for ``e4m3``.

    Attributes:
        name: checkpoint name of the tensor, for messages.
        format: see :class:`WeightFormat`.
        codes: uint8 [N, ceil(K * bits / 8)]; a little-endian bit stream along K, so element k of a
            row occupies stream bits ``[k * bits, (k + 1) * bits)``. The last byte of a row may
            be partly used.
        scales: float tensor [N, G].
        zeros: tensor [N, G] (integer kind: float holding whole numbers, or int), or None.
        perm: int32 [K]: column k of the codes multiplies input ``x[perm[k]]``; None = identity.
        in_features: K.
        compact: the same scales and offsets as the file has them, where that takes fewer bits.
    """

    name: str
    format: WeightFormat
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    in_features: int
    perm: Tensor | None = None
    compact: CompactNumbers | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.codes.shape[0], self.in_features

    @property
    def compact_form(self) -> CompactForm | None:
        """How the file has scales and offsets where that takes fewer bits."""
        return None if self.compact is None else self.compact.form

    @property
    def nbytes(self) -> int:
        """Bytes held by codes, scales, zeros and permutation."""
        parts = (self.codes, self.scales, self.zeros, self.perm)
        return sum(t.numel() * t.element_size() for t in parts if t is not None)

    def unpack(self) -> Tensor:
        """Codes one per element: uint8 [N, K]."""
        return unpack_codes(self.codes, self.format.bits, self.in_features)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Weights [N, K] in the input's own column order; the only definition of the meaning.

        Computed in float32, rounded as the format says, and then to ``dtype``.
        """
        k = self.in_features
        group = k if self.format.group_size == -1 else self.format.group_size
        codes_NK = self.unpack()
        s_NK = _expand(self.scales, group, k)
        if self.format.zero == "table":
            # Four times as fast as to index with all of int64.
            table = torch.tensor(self.format.table, device=codes_NK.device)
            values = table.index_select(0, codes_NK.flatten().int())
            return self._natural(values.view(codes_NK.shape).mul_(s_NK), dtype)
        if self.format.zero == "e4m3":
            return self._natural(codes_NK.view(torch.float8_e4m3fn).float() * s_NK, dtype)
        q_NK = codes_NK.to(torch.float32)
        if self.format.zero == "float":
            assert self.zeros is not None
            w_NK = q_NK * s_NK + _expand(self.zeros, group, k)
        elif self.format.zero == "int":
            assert self.zeros is not None
            w_NK = (q_NK - _expand(self.zeros, group, k)) * s_NK
        else:
            w_NK = (q_NK - float(1 << (self.format.bits - 1))) * s_NK
        return self._natural(w_NK, dtype)

    def _natural(self, w_NK: Tensor, dtype: torch.dtype) -> Tensor:
        """Weights rounded as the format says, columns back in the input's own order."""
        if self.format.rounds:
            w_NK = w_NK.to(getattr(torch, self.format.rounds))
        if self.perm is not None:
            natural = torch.empty_like(w_NK)
            natural[:, self.perm.long()] = w_NK
            w_NK = natural
        return w_NK.to(dtype)

    def rows(self, start: int, stop: int) -> QuantizedLinear:
        """Rows ``start:stop`` as a view (for stacked tensors, and to convert block by block)."""
        zeros = None if self.zeros is None else self.zeros[start:stop]
        return QuantizedLinear(
            self.name,
            self.format,
            self.codes[start:stop],
            self.scales[start:stop],
            zeros,
            self.in_features,
            self.perm,
            None if self.compact is None else self.compact.rows(start, stop),
        )

    @staticmethod
    def concat(parts: Sequence[QuantizedLinear]) -> QuantizedLinear:
        """Stack weights along N. Raises :class:`CheckpointError` when formats differ."""
        first = parts[0]
        for part in parts[1:]:
            if not can_fuse((first, part)):
                raise CheckpointError(
                    f"cannot fuse {first.name} {first.format} K={first.in_features} with "
                    f"{part.name} {part.format} K={part.in_features}: formats or orders of "
                    "columns differ"
                )
        zeros = None
        if first.zeros is not None:
            zeros = torch.cat([p.zeros for p in parts if p.zeros is not None])
        return QuantizedLinear(
            "+".join(p.name for p in parts),
            first.format,
            torch.cat([p.codes for p in parts]),
            torch.cat([p.scales for p in parts]),
            zeros,
            first.in_features,
            first.perm,
            stack_numbers([p.compact for p in parts]),
        )


Weight = Tensor | QuantizedLinear


def can_fuse(parts: Sequence[Weight]) -> bool:
    """Whether the weights may be stacked along N into one matrix."""
    first = parts[0]
    if isinstance(first, QuantizedLinear):
        return all(
            isinstance(p, QuantizedLinear)
            and p.format == first.format
            and p.in_features == first.in_features
            and _same_order(p.perm, first.perm)
            for p in parts
        )
    dtype = first.dtype
    return all(isinstance(p, Tensor) and p.dtype == dtype for p in parts)


def _same_order(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two column orders agree; projections calibrated on one input share theirs."""
    if a is None or b is None:
        return a is b
    return torch.equal(a, b)


def _expand(per_group: Tensor, group: int, k: int) -> Tensor:
    """[N, G] to float32 [N, K]; the last group may be short."""
    return per_group.to(torch.float32).repeat_interleave(group, dim=1)[:, :k]
