"""The schemes of ``--quantize``: how an unquantized model is rounded to nearest on load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...kernels.formats.code_tables import NF4
from ...kernels.formats.weight_format import ActivationFormat, WeightFormat

SchemeName = Literal["w4a16", "w8a16", "w8a8", "nf4"]
"""The keys of :data:`SCHEMES`, for type checkers and for the command line."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """A way to round dense matrices to nearest.

    Attributes:
        format: what a matrix [N, K] becomes.
        meaning: the same for people.
    """

    format: WeightFormat
    meaning: str


SCHEMES: dict[SchemeName, Scheme] = {
    "w4a16": Scheme(WeightFormat(4, 128, "int"), "4 bits, groups of 128 with zero points"),
    "w8a16": Scheme(WeightFormat(8, 128), "8 bits, groups of 128, symmetric"),
    "w8a8": Scheme(
        WeightFormat(8, -1, act=ActivationFormat()),
        "8 bits, a scale for each row, symmetric; inputs to 8 bits, a scale for each token",
    ),
    "nf4": Scheme(WeightFormat(4, 64, "table", NF4), "NF4, blocks of 64"),
}
"""What ``--quantize`` offers."""
