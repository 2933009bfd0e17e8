"""Every kind of weight that the Triton kernels carry, in the order in which they are asked."""

from __future__ import annotations

from typing import Any

from .codebook.kind import CODEBOOK
from .dense.kind import DENSE
from .kind import TritonKind
from .w4a8.kind import W4A8
from .w4a16.kind import W4A16
from .w8a8.kind import FP8, W8A8
from .w8a16.kind import W8A16

# What multiplies float8 by float8 is asked before what reads float8 for inputs of 16 bits.
KINDS: tuple[TritonKind[Any], ...] = (W4A16, CODEBOOK, W4A8, W8A8, FP8, W8A16, DENSE)
