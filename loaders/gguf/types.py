"""The tensor types of GGUF: what a block of each holds, and the weights that it becomes."""

from __future__ import annotations

from dataclasses import dataclass

from ...kernels.formats.code_tables import E2M1, IQ4_NL
from ...kernels.formats.weight_format import CompactForm, WeightFormat


@dataclass(frozen=True, slots=True)
class TensorType:
    """How a tensor's elements are stored.

    Attributes:
        id: number in the file.
        name: the format's own name, such as ``Q4_K``.
        elements: elements of one block along the contiguous dimension.
        nbytes: bytes of one block.
        format: that of the weights which the blocks become; None where that is not implemented,
            and for plain numbers.
        layout: the function of :mod:`.blocks` that reads the blocks.
        compact: how the blocks have their scales, where that is in a byte each.
    """

    id: int
    name: str
    elements: int
    nbytes: int
    format: WeightFormat | None = None
    layout: str = ""
    compact: CompactForm | None = None

    @property
    def numbers(self) -> str:
        """``F32``, ``F16`` or ``BF16``: of plain numbers, or of the weights' scales and offsets."""
        if self.format is None:
            return self.name
        # Scales of super-blocks are products of two numbers, and bytes have another range.
        half = self.elements == self.format.group_size and self.compact is None
        return "F16" if half else "F32"


# The format counts entries in halves and halves the scales: the same numbers, all exact. Halves are
# whole numbers, so its zero has no sign.
_FP4 = tuple(entry + 0.0 for entry in E2M1)
_FP4_32, _FP4_16 = (WeightFormat(4, group, "table", _FP4) for group in (32, 16))


def _signed(*magnitudes: float) -> tuple[float, ...]:
    """Sixteen entries: magnitudes, and from the ninth on the same with a minus."""
    half = magnitudes + (0.0,) * (8 - len(magnitudes))
    return half + tuple(-entry + 0.0 for entry in half)


_IQ2 = _signed(8.0, 25.0, 43.0)
_IQ3_XXS = _signed(4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0)
_IQ3_S = _signed(1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0)
# Eighths: -1, 0 and 1 an eighth up, and an eighth down.
_IQ1 = (-7.0, 1.0, 9.0, *(0.0,) * 5, -9.0, -1.0, 7.0, *(0.0,) * 5)
# Numbers from -1 to 2. Two bits are the least that kernels have; so have signs.
_TERNARY = WeightFormat(2, 128, "int")

_TABLE = (
    TensorType(0, "F32", 1, 4),
    TensorType(1, "F16", 1, 2),
    TensorType(2, "Q4_0", 32, 18, WeightFormat(4, 32), "q4_0"),
    TensorType(3, "Q4_1", 32, 20, WeightFormat(4, 32, "float"), "q4_1"),
    TensorType(6, "Q5_0", 32, 22, WeightFormat(5, 32), "q5_0"),
    TensorType(7, "Q5_1", 32, 24, WeightFormat(5, 32, "float"), "q5_1"),
    TensorType(8, "Q8_0", 32, 34, WeightFormat(8, 32), "q8_0"),
    TensorType(9, "Q8_1", 32, 40),
    TensorType(10, "Q2_K", 256, 84, WeightFormat(2, 16, "float"), "q2_k"),
    TensorType(11, "Q3_K", 256, 110, WeightFormat(3, 16), "q3_k"),
    TensorType(12, "Q4_K", 256, 144, WeightFormat(4, 32, "float"), "q4_k"),
    TensorType(13, "Q5_K", 256, 176, WeightFormat(5, 32, "float"), "q5_k"),
    TensorType(14, "Q6_K", 256, 210, WeightFormat(6, 16), "q6_k"),
    TensorType(15, "Q8_K", 256, 292),
    TensorType(16, "IQ2_XXS", 256, 66, WeightFormat(4, 32, "table", _IQ2), "iq2_xxs"),
    TensorType(17, "IQ2_XS", 256, 74, WeightFormat(4, 16, "table", _IQ2), "iq2_xs"),
    TensorType(18, "IQ3_XXS", 256, 98, WeightFormat(4, 32, "table", _IQ3_XXS), "iq3_xxs"),
    TensorType(19, "IQ1_S", 256, 50, WeightFormat(4, 32, "table", _IQ1), "iq1_s"),
    TensorType(20, "IQ4_NL", 32, 18, WeightFormat(4, 32, "table", IQ4_NL), "q4_0"),
    TensorType(21, "IQ3_S", 256, 110, WeightFormat(4, 32, "table", _IQ3_S), "iq3_s"),
    TensorType(22, "IQ2_S", 256, 82, WeightFormat(4, 16, "table", _IQ2), "iq2_s"),
    TensorType(23, "IQ4_XS", 256, 136, WeightFormat(4, 32, "table", IQ4_NL), "iq4_xs"),
    TensorType(24, "I8", 1, 1),
    TensorType(25, "I16", 1, 2),
    TensorType(26, "I32", 1, 4),
    TensorType(27, "I64", 1, 8),
    TensorType(28, "F64", 1, 8),
    TensorType(29, "IQ1_M", 256, 56, WeightFormat(4, 16, "table", _IQ1), "iq1_m"),
    TensorType(30, "BF16", 1, 2),
    TensorType(34, "TQ1_0", 256, 54, _TERNARY, "tq1_0"),
    TensorType(35, "TQ2_0", 256, 66, _TERNARY, "tq2_0"),
    TensorType(39, "MXFP4", 32, 17, _FP4_32, "mxfp4", CompactForm("F8_E8M0")),
    TensorType(40, "NVFP4", 64, 36, _FP4_16, "nvfp4", CompactForm("F8_E4M3")),
    TensorType(41, "Q1_0", 128, 18, _TERNARY, "q1_0"),
)

BLOCK_TYPES: dict[int, TensorType] = {kind.id: kind for kind in _TABLE}

# Ids that older files used and the format has since withdrawn.
REMOVED_TYPES: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}

DENSE_TYPES = ("F32", "F16", "BF16")
CANONICAL: dict[str, WeightFormat] = {
    kind.name: kind.format for kind in _TABLE if kind.format is not None
}
"""Quantized block type -> format of the weights that it becomes."""

QUANTIZED_TYPES = tuple(CANONICAL)
SUPPORTED_TYPES = DENSE_TYPES + QUANTIZED_TYPES
