"""From the label of a stored weight to the canonical format that it becomes when it is loaded."""

from __future__ import annotations

import re

from ..loaders.canonical import WeightFormat, ZeroKind
from ..loaders.gguf_blocks import canonical_format

_BITS = re.compile(r"\b([2-8])-bit\b|\bW([2-8])A(?:8|16)\b|\bint([48])\b", re.IGNORECASE)
_GROUP = re.compile(r"\b(?:g|blocks of )(-1|\d{1,5})\b")
_FLOAT8 = re.compile(r"\b(?:fp8|float8|e4m3)\b", re.IGNORECASE)
_TABLE = re.compile(r"\b(?:nf4|fp4)\b", re.IGNORECASE)
_OFFSET = re.compile(r"\b(?:HQQ|gemv_fast)\b", re.IGNORECASE)
# Codes that become dense when they are loaded.
_DENSE = re.compile(r"\bas b?float\d*\b")
_ASYMMETRIC = re.compile(r"\basym", re.IGNORECASE)

# Blocks of bitsandbytes' tables, where a label names none.
_TABLE_GROUP = 64


def stored_format(label: str) -> WeightFormat | None:
    """What is known of a weight's canonical format by its label; None for dense weights.

    Labels are those of GGUF types (``Q4_K``) and of quantized modules, which name bits, group and
    symmetry: ``GPTQ 4-bit g128 sym``, ``8-bit channel sym, inputs int8 per token``, ``NF4 blocks of
    64``. No group means one scale a row. Activation formats and column orders are left out.
    """
    known = canonical_format(label)
    if known is not None:
        return known
    if _DENSE.search(label):
        return None
    label = label.partition(", inputs ")[0]
    found = _GROUP.search(label)
    group = int(found[1]) if found else -1
    if _FLOAT8.search(label):
        return WeightFormat(8, group, "e4m3")
    if _TABLE.search(label):
        return WeightFormat(4, group if found else _TABLE_GROUP, "table", (0.0,) * 16)
    bits = _BITS.search(label)
    if bits is None:
        return None
    zero: ZeroKind = "int" if _ASYMMETRIC.search(label) else "none"
    if _OFFSET.search(label):
        zero = "float"
    return WeightFormat(int(bits[1] or bits[2] or bits[3]), group, zero)
