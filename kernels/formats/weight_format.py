"""How the codes of a weight become numbers, apart from how they are stored; no torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

ZeroKind = Literal["none", "int", "float", "table", "e4m3"]
Rounded = Literal["", "float16", "bfloat16"]
InputRule = Literal["float", "int8-block32", "int8-token"]
"""How a run may take the inputs of weights whose format leaves them alone: as they are, or rounded
by :func:`~.activations.quantize_blocks` or :func:`~.activations.quantize_tokens`."""


@dataclass(frozen=True, slots=True)
class ActivationFormat:
    """How the input of a linear layer is rounded before the product (W8A8).

    ``q = round(clamp(x / scale + zero, low, high))`` with ties to even, and the product sees
    ``scale * (q - zero)``. int8 uses the range -128 to 127.

    Attributes:
        kind: ``int8``, or ``e4m3`` (float8, saturating).
        symmetric: no zero point.
        top: a dynamic symmetric scale is the row's largest magnitude over this: 127.5
            (compressed-tensors), 127, or 448 for e4m3. A dynamic asymmetric one is
            ``(max(x, 0) - min(x, 0)) / 255`` with ``zero = round(-128 - min(x, 0) / scale)``.
        scale: static scale of the whole tensor; None means a scale for each token. 0 in formats
            that were made from headers alone, which do not have it.
        zero: static zero point, a whole number from -128 to 127.
    """

    kind: Literal["int8", "e4m3"] = "int8"
    symmetric: bool = True
    top: float = 127.5
    scale: float | None = None
    zero: int = 0

    @property
    def name(self) -> str:
        """``int8-token``, ``int8-tensor``, ``e4m3-token`` or ``e4m3-tensor``."""
        return f"{self.kind}-{'token' if self.scale is None else 'tensor'}"


TOKEN_RULE = ActivationFormat(top=127.0)
"""``int8-token`` for a format that leaves inputs alone, see :meth:`WeightFormat.under`."""


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """Storage-independent format; two projections may be fused only when these are equal.

    Attributes:
        bits: bits of one code, 2 to 8.
        group_size: weights along K that share a scale; -1 means one group over all of K.
        zero: how a code becomes a number before scaling: ``none`` = symmetric, the zero point is
            ``2 ** (bits - 1)``; ``int`` = ``zeros`` holds true zero points; ``float`` =
            ``zeros`` holds an offset added after scaling; ``table`` = the code indexes
            ``table``; ``e4m3`` = the byte is a float8_e4m3fn.
        table: 2 ** bits values of kind ``table``, else empty.
        act: how activations are quantized (W8A8), or None when they are not.
        permuted: columns were reordered at load (act-order); ``perm`` says how.
        rounds: type to which the format's own tool rounds each weight, "" for none. Part of the
            meaning; a 16-bit kernel that reads codes rounds anyway and may leave it out.
    """

    bits: int
    group_size: int
    zero: ZeroKind = "none"
    table: tuple[float, ...] = ()
    act: ActivationFormat | None = None
    permuted: bool = False
    rounds: Rounded = ""

    def under(self, rule: InputRule) -> WeightFormat:
        """The format in a run with a rule, which says so where inputs are rounded by token."""
        chosen = rule == "int8-token" and self.act is None
        return replace(self, act=TOKEN_RULE) if chosen else self


@dataclass(frozen=True, slots=True)
class CompactForm:
    """How a file has the scales and offsets of groups, where they take fewer bits than loaded.

    Attributes:
        dtype: ``F32``, ``F16`` or ``BF16``: of scales and of zero points, whose product with its
            sign changed is the offset. Without a meaning for nested scales. ``F8_E8M0`` or
            ``F8_E4M3``: of scales of one byte (MXFP4, NVFP4), without offsets.
        run: scales are codes of 8 bits, and so many that follow each other share a factor and an
            offset; 0: they are not.
    """

    dtype: str
    run: int = 0

    @property
    def byte(self) -> bool:
        """Scales are floats of one byte."""
        return self.dtype in BYTE_SCALES


BYTE_SCALES = ("F8_E8M0", "F8_E4M3")
"""Types of scales of one byte: a power of two, and a float of three bits of mantissa."""


def no_whole_numbers(form: WeightFormat) -> str | None:
    """None where codes are integers, or indices of a table; else what they are."""
    return "codes are float8, not integers" if form.zero == "e4m3" else None


def input_rounding(form: WeightFormat | None, rule: InputRule) -> str:
    """How the inputs of a weight are rounded, by name.

    ``float`` for dense weights; what the format itself asks for, such as ``int8-token``; else the
    rule that the run chose.
    """
    if form is None:
        return "float"
    return rule if form.act is None else form.act.name
