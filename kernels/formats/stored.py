"""Weights that are still as a file has them, for backends that can pack such bytes as they are.

Converting to canonical codes and from those to a kernel's layout reads and writes a model twice.
A backend that knows an encoding does it in one pass; to all others a :class:`StoredLinear` is
the canonical weight, converted when its codes are first looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .canonical import QuantizedLinear, Weight, WeightFormat
from .compact import CompactNumbers, stack_numbers
from .weight_format import CompactForm

# Encodings of codes alone, whose scales and zeros are there from the start.
WORDS = "words"
"""2-, 3-, 4- or 8-bit codes in int32 words along K, [ceil(K * bits / 32), N], the first code in the
lowest bits (GPTQ). Columns are in the file's order, whatever ``perm`` says."""
INTERLEAVED = "interleaved"
"""4-bit codes in int32 words along N, [K, N / 8]; rows 0, 2, 4, 6, 1, 3, 5, 7 of each eight are in
the nibbles from the lowest on (AWQ)."""
STREAM = "stream"
"""Rows of canonical codes, uint8 [N, ceil(K * bits / 8)], that are views of the file. Columns are
in the file's order, and bits behind the last code may be anything."""
HIGH_FIRST = "high first"
"""The same with 4-bit codes of which the first is in the high half of a byte (bitsandbytes)."""
CODES_ALONE = {WORDS: (1, 1), INTERLEAVED: (1, 8), STREAM: (0, 1), HIGH_FIRST: (0, 1)}
"""These encodings: the dimension of a part along which rows lie, and rows of an element of it."""


class StoredLinear(QuantizedLinear):
    """A :class:`QuantizedLinear` [N, K] whose missing tensors are computed when first read.

    Attributes:
        encoding: a GGUF block type (``parts`` are uint8 [N, bytes of a row]), or one of
            ``CODES_ALONE``.
        parts: stored tensors, to be stacked along N; views of the file, or of memory.
    """

    __slots__ = ("_compact_form", "_convert", "_rows", "encoding", "parts")

    def __init__(
        self,
        name: str,
        format: WeightFormat,
        shape: tuple[int, int],
        encoding: str,
        parts: tuple[Tensor, ...],
        convert: Callable[[], QuantizedLinear],
        compact: CompactForm | None = None,
    ) -> None:
        self.name, self.format = name, format
        self._rows, self.in_features = shape
        self.encoding, self.parts = encoding, parts
        self.perm = None
        self._convert, self._compact_form = convert, compact
        if compact is None:
            self.compact = None

    def __getattr__(self, name: str) -> Tensor | CompactNumbers | None:
        # Called for a slot that nothing was put into yet.
        if name not in ("codes", "scales", "zeros", "compact"):
            raise AttributeError(f"StoredLinear has no attribute {name}")
        whole = self._convert()
        self.codes, self.scales, self.zeros = whole.codes, whole.scales, whole.zeros
        self.compact = whole.compact
        return getattr(self, name)

    @classmethod
    def of_codes(
        cls,
        name: str,
        format: WeightFormat,
        shape: tuple[int, int],
        encoding: str,
        part: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        codes: Callable[[], Tensor],
        perm: Tensor | None = None,
        compact: CompactNumbers | None = None,
    ) -> StoredLinear:
        """A weight [N, K] whose codes alone are as in the file.

        Args:
            name: of the tensor, for messages.
            format: what the codes mean.
            shape: (N, K).
            encoding: one of ``CODES_ALONE``.
            part: the stored codes.
            scales: [N, G], like zeros and perm as in :class:`QuantizedLinear`.
            zeros: [N, G] or None.
            codes: makes the canonical codes, in the order of ``perm``.
            perm: int32 [K] or None.
            compact: as in :class:`QuantizedLinear`.
        """

        def convert() -> QuantizedLinear:
            return QuantizedLinear(name, format, codes(), scales, zeros, shape[1], perm, compact)

        weight = cls(name, format, shape, encoding, (part,), convert)
        weight.scales, weight.zeros, weight.perm = scales, zeros, perm
        weight.compact = compact
        return weight

    @property
    def compact_form(self) -> CompactForm | None:
        """How the file has scales and offsets; that of blocks is known before they are read."""
        known = self._compact_form
        return known or (None if self.compact is None else self.compact.form)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self._rows, self.in_features

    @staticmethod
    def stack(weights: Sequence[QuantizedLinear]) -> QuantizedLinear:
        """Stack fusable weights along N: stored ones stay so where all have one encoding."""
        first, parts = weights[0], [w for w in weights if isinstance(w, StoredLinear)]
        if not isinstance(first, StoredLinear) or len(parts) < len(weights):
            return QuantizedLinear.concat(weights)
        if any(p.encoding != first.encoding for p in parts):
            return QuantizedLinear.concat(weights)
        whole = StoredLinear(
            "+".join(p.name for p in parts),
            first.format,
            (sum(p.shape[0] for p in parts), first.in_features),
            first.encoding,
            tuple(t for p in parts for t in p.parts),
            lambda: QuantizedLinear.concat(parts),
            first._compact_form,
        )
        whole.perm = first.perm
        if first.encoding in CODES_ALONE:
            zeros = [p.zeros for p in parts if p.zeros is not None]
            whole.scales = torch.cat([p.scales for p in parts])
            whole.zeros = torch.cat(zeros) if zeros else None
            whole.compact = stack_numbers([p.compact for p in parts])
        return whole


def settled(weight: Weight) -> Weight:
    """The same weight, [N, K] or a vector [N], with all codes in memory of its own."""
    if not isinstance(weight, StoredLinear):
        return weight
    own = weight.codes, weight.scales, weight.zeros, weight.in_features, weight.perm
    return QuantizedLinear(weight.name, weight.format, *own, weight.compact)
