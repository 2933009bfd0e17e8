"""Weights as files store them, and packing them in memory that was used before."""

from __future__ import annotations

import random

import numpy as np
import torch
from cpu_support import library

from halfbyte.kernels.cpu.arena import Arena
from halfbyte.kernels.cpu.enums import BlockType
from halfbyte.kernels.cpu.kinds import pack_weight
from halfbyte.kernels.cpu.pack import TiledLinear
from halfbyte.kernels.formats.canonical import QuantizedLinear, Weight
from halfbyte.kernels.formats.stored import StoredLinear
from halfbyte.loaders.gguf.blocks import convert_tensor
from halfbyte.loaders.gguf.types import BLOCK_TYPES, CANONICAL

TYPES = {t.name: t for t in BLOCK_TYPES.values()}
# Where the halves of a block lie (0 and 2, or as here), and the words of its scales.
HALVES = {name: (0, 2) for name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K")}
HALVES |= {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "MXFP4": ()}
BLOCKS = tuple(BlockType.__members__)
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def packed(weight: Weight, threads: int = 2) -> TiledLinear:
    """In memory that was not zero before."""
    arena = Arena()
    arena.empty(1).fill_(1)
    assert arena._slab is not None
    arena._slab.fill_(0xA5)
    return pack_weight(arena, library(threads), weight, None)


def blocks(name: str, n: int, k: int, rng: random.Random) -> torch.Tensor:
    """Stored rows uint8 [n, bytes]: any bits, but finite scales."""
    kind = TYPES[name]
    count = k // kind.elements
    raw = np.frombuffer(rng.randbytes(n * count * kind.nbytes), np.uint8).copy()
    raw = raw.reshape(n, count, kind.nbytes)
    for at in HALVES.get(name, (0,)):
        raw[..., at + 1] &= 0xBB  # neither infinity nor NaN
    if name == "MXFP4":
        raw[..., 0] = 112 + raw[..., 0] % 18  # exponents of numbers near 1
    return torch.from_numpy(raw.reshape(n, -1))


def stored(name: str, parts: list[torch.Tensor], k: int) -> tuple[StoredLinear, QuantizedLinear]:
    """As stored in parts, and the canonical weight."""
    n = sum(len(part) for part in parts)
    whole = convert_tensor("w", TYPES[name], (n, k), torch.cat(parts))
    form = CANONICAL.get(name)
    assert isinstance(whole, QuantizedLinear) and form is not None
    compact = TYPES[name].compact
    return StoredLinear("w", form, (n, k), name, tuple(parts), lambda: whole, compact), whole
