"""Some megabytes of random numbers, written again and again until a tensor is full."""

from __future__ import annotations

import random
from typing import IO

PATTERN_BYTES = 4 << 20
_BIAS = 15  # of a half's exponent


def repeat(file: IO[bytes], pattern: bytes, size: int) -> None:
    """Write ``size`` bytes of a pattern."""
    while size > 0:
        size -= file.write(pattern[:size])


def set_exponents(raw: bytearray, first: int, stride: int, exponent: int, keep: int) -> None:
    """Give halves among random bytes their exponent: absolute values from 2^e to 2^(e+1).

    Args:
        raw: bytes, changed in place.
        first: where the first half begins.
        stride: bytes from one half to the next.
        exponent: e, from -14 to 15.
        keep: bits of the high byte that stay random: 0x03 makes halves positive, 0x83 does not.
    """
    bits = (exponent + _BIAS) << 2
    high = raw[first + 1 :: stride]
    raw[first + 1 :: stride] = high.translate(bytes(b & keep | bits for b in range(256)))


def random_halves(seed: int, exponent: int, *, signed: bool) -> bytes:
    """A pattern of halves whose absolute values lie from 2^exponent to twice that."""
    raw = bytearray(random.Random(seed).randbytes(PATTERN_BYTES))
    set_exponents(raw, 0, 2, exponent, 0x83 if signed else 0x03)
    return bytes(raw)
