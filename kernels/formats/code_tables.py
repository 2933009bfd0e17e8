"""What the codes of weights stand for where they index a table, in the digits of the tools.

A table is in the order of its codes. Values are decimal fractions of float32 numbers.
"""

from __future__ import annotations

NF4: tuple[float, ...] = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""NormalFloat4 of "QLoRA" (Dettmers et al., 2023): quantiles of a normal distribution scaled to
[-1, 1], with an exact zero; as bitsandbytes stores it in its files."""

_FP4_HALF = (0.0, 0.005208333333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)

FP4: tuple[float, ...] = (*_FP4_HALF, *(-value for value in _FP4_HALF))
"""bitsandbytes' own FP4, which is not E2M1: the sign is the high bit, the values are those of
three more bits, divided by the largest, 12."""

E2M1: tuple[float, ...] = (
    *(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
    *(-0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0),
)
"""The 4-bit floats of MXFP4 and NVFP4: a sign, two bits of exponent, one of mantissa (OCP
Microscaling Formats 1.0, 2023)."""

IQ4_NL: tuple[float, ...] = (
    *(-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0),
    *(1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0),
)
"""The values of GGUF's IQ4_NL and IQ4_XS."""


def counts_halves(table: tuple[float, ...]) -> bool:
    """Whether bytes hold twice each entry, as of 4-bit floats: then they are exact as bytes."""
    return all((2 * entry).is_integer() and abs(entry) < 64 for entry in table)
