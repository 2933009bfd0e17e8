"""What the numbers in the fields of ops stand for, in Python and in C."""

from __future__ import annotations

from enum import IntEnum


class TileCodes(IntEnum):
    """Codes of a weight: integers of 2 to 8 bits, indices of a table, float8, dense elements."""

    BITS2 = 0
    BITS3 = 1
    BITS4 = 2
    BITS5 = 3
    BITS6 = 4
    BITS8 = 5
    TABLE = 6
    E4M3 = 7
    F32 = 8
    F16 = 9
    BF16 = 10


class WeightFetch(IntEnum):
    """How products of few rows fetch a weight ahead of its use.

    KEEP: to the first cache, through all of them: it stays for the next step. ONCE: past the outer
    caches, where it would displace what the next step needs. SECOND: to the second cache, further
    ahead: where a step displaces all that is cached anyway, the longer queue of misses counts.
    """

    KEEP = 0
    ONCE = 1
    SECOND = 2


class TileValues(IntEnum):
    """What scales the codes of a span: see the heads in ``weight.h``."""

    NONE = 0
    GROUP = 1
    K2 = 2
    K3 = 3
    K4 = 4
    K6 = 5
    XS = 6


class NumberType(IntEnum):
    """Type of the scales and offsets of groups; nested scales are codes of 8 bits."""

    F32 = 0
    F16 = 1
    BF16 = 2
    NESTED = 3
    E8M0 = 4
    E4M3 = 5


class Added(IntEnum):
    """What groups have beside a scale: nothing, an offset, or a zero point.

    Zero points are of the scales' type, or whole numbers of 8 or 4 bits.
    """

    NONE = 0
    OFFSET = 1
    FLOAT_ZERO = 2
    ZERO = 3
    ZERO4 = 4


class GateFunction(IntEnum):
    """What a gated product makes of gate and up."""

    SILU = 0
    GELU_TANH = 1
    CLIPPED_SWIGLU = 2


class CodeType(IntEnum):
    """Type of quantized activations."""

    FLOAT = 0
    BF16 = 1
    INT8 = 2


class KVType(IntEnum):
    """Type of cached keys and values."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    INT8 = 3


class BlockType(IntEnum):
    """GGUF block types that are packed as a file has them."""

    Q4_0 = 0
    Q4_1 = 1
    Q5_0 = 2
    Q5_1 = 3
    Q8_0 = 4
    IQ4_NL = 5
    Q2_K = 6
    Q3_K = 7
    Q4_K = 8
    Q5_K = 9
    Q6_K = 10
    IQ4_XS = 11
    MXFP4 = 12


ENUMS: dict[str, type[IntEnum]] = {
    "W": TileCodes,
    "V": TileValues,
    "FETCH": WeightFetch,
    "NUM": NumberType,
    "A": Added,
    "GATE": GateFunction,
    "CODES": CodeType,
    "KV": KVType,
    "S": BlockType,
}
"""Prefix of the names in C -> their values."""
