"""The tensor types of GGUF: id, name, elements and bytes of one block."""

from __future__ import annotations

from dataclasses import dataclass

from ...kernels.formats.code_tables import IQ4_NL
from ...kernels.formats.weight_format import WeightFormat


@dataclass(frozen=True, slots=True)
class BlockType:
    """How a tensor's elements are stored.

    Attributes:
        id: number in the file.
        name: the format's own name, such as ``Q4_K``.
        elements: elements of one block along the contiguous dimension.
        nbytes: bytes of one block.
    """

    id: int
    name: str
    elements: int
    nbytes: int


_TABLE = (
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 40),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
)

BLOCK_TYPES: dict[int, BlockType] = {row[0]: BlockType(*row) for row in _TABLE}

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
    "Q4_0": WeightFormat(4, 32),
    "Q4_1": WeightFormat(4, 32, "float"),
    "Q5_0": WeightFormat(5, 32),
    "Q5_1": WeightFormat(5, 32, "float"),
    "Q8_0": WeightFormat(8, 32),
    "Q2_K": WeightFormat(2, 16, "float"),
    "Q3_K": WeightFormat(3, 16),
    "Q4_K": WeightFormat(4, 32, "float"),
    "Q5_K": WeightFormat(5, 32, "float"),
    "Q6_K": WeightFormat(6, 16),
    "IQ4_NL": WeightFormat(4, 32, "table", IQ4_NL),
    "IQ4_XS": WeightFormat(4, 32, "table", IQ4_NL),
}
"""Quantized block type -> format of the weights that it becomes."""

QUANTIZED_TYPES = tuple(CANONICAL)
SUPPORTED_TYPES = DENSE_TYPES + QUANTIZED_TYPES
