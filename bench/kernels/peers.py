"""Other people's kernels for the same products, where this machine has them.

Each function returns a call for :mod:`.measure`, or raises: what cannot be had is a line in the
report and no failure. Peers get weights in their own layout with random content.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .measure import Launch

GROUP = 128


class Absent(Exception):
    """A peer does not take this case."""


def cublas(n: int, k: int, copies: int, device: torch.device) -> Callable[[Tensor], Launch]:
    """``torch.mm`` in the dtype of x [M, K]; weights are shared by all M."""
    w = [torch.randn(n, k, device=device, dtype=torch.float16) for _ in range(copies)]

    def bind(x_MK: Tensor) -> Launch:
        weights = w if x_MK.dtype == torch.float16 else [t.to(x_MK.dtype) for t in w]
        out = x_MK.new_empty(x_MK.shape[0], n)
        return lambda index: torch.mm(x_MK, weights[index % len(weights)].T, out=out)

    return bind


def tinygemm(n: int, k: int, copies: int, device: torch.device) -> Callable[[Tensor], Launch]:
    """``torch._weight_int4pack_mm``: bf16 activations, groups of 128, for x [M, K]."""
    if k % 128 or n % 8:
        raise Absent(f"needs K in 128s and N in 8s, not {n} x {k}")
    shape = (n // 8, k // 128, 32, 4)
    limit = 1 << 31
    w = [
        torch.randint(-limit, limit, shape, device=device, dtype=torch.int32) for _ in range(copies)
    ]
    table = torch.randn(k // GROUP, n, 2, device=device).to(torch.bfloat16)

    def bind(x_MK: Tensor) -> Launch:
        if x_MK.shape[0] > 256:
            raise Absent("made for few rows; not timed above 256")
        x = x_MK.to(torch.bfloat16)
        run = torch.ops.aten._weight_int4pack_mm
        return lambda index: run(x, w[index % len(w)], GROUP, table)

    return bind


def int_mm(n: int, k: int, copies: int, device: torch.device) -> Callable[[Tensor], Launch]:
    """``torch._int_mm``: int8 products without scales, for x [M, K]."""
    w = [torch.randint(-127, 128, (n, k), device=device, dtype=torch.int8) for _ in range(copies)]

    def bind(x_MK: Tensor) -> Launch:
        if x_MK.shape[0] <= 16:
            raise Absent("takes no fewer than 17 rows")
        x = torch.randint(-127, 128, x_MK.shape, device=device, dtype=torch.int8)
        out = torch.empty(x.shape[0], n, device=device, dtype=torch.int32)
        return lambda index: torch.ops.aten._int_mm.out(x, w[index % len(w)].T, out=out)

    return bind


def gemlite(n: int, k: int, copies: int, device: torch.device) -> Callable[[Tensor], Launch]:
    """gemlite's A16W4 layer, groups of 128, for x [M, K]; it tunes itself at its first call."""
    module: Any = importlib.import_module("gemlite.core")
    half = module.DType.FP16
    layers = []
    for _ in range(copies):
        layer = module.GemLiteLinear(4, GROUP, k, n, half, half)
        codes = torch.randint(0, 16, (n, k), device=device, dtype=torch.uint8)
        scales = torch.rand(n, k // GROUP, device=device).to(torch.float16) * 0.01
        layer.pack(codes, scales, torch.full_like(scales, 8.0), None)
        layers.append(layer)

    def bind(x_MK: Tensor) -> Launch:
        x = x_MK.to(torch.float16)
        return lambda index: layers[index % len(layers)](x)

    return bind


def marlin(n: int, k: int, copies: int, device: torch.device) -> Callable[[Tensor], Launch]:
    """Marlin's product, symmetric groups of 128, for x [M, K]."""
    module: Any = importlib.import_module("marlin")
    limit = 1 << 31
    w = [
        torch.randint(-limit, limit, (k // 16, n * 2), device=device, dtype=torch.int32)
        for _ in range(copies)
    ]
    scales = torch.rand(k // GROUP, n, device=device).to(torch.float16) * 0.01
    locks = torch.zeros(n // 128 * 16, device=device, dtype=torch.int32)

    def bind(x_MK: Tensor) -> Launch:
        x = x_MK.to(torch.float16)
        out = x.new_empty(x.shape[0], n)
        return lambda index: module.mul(x, w[index % len(w)], out, scales, locks)

    return bind


Maker = Callable[[int, int, int, torch.device], Callable[[Tensor], Launch]]

DENSE_PEER = "cublas"
"""The peer of every kind: a dense product."""
PEERS: dict[str, tuple[Maker, float]] = {
    DENSE_PEER: (cublas, 2.0),
    "tinygemm": (tinygemm, 0.53),
    "gemlite": (gemlite, 0.53),
    "marlin": (marlin, 0.52),
    "int_mm": (int_mm, 1.0),
}
"""Peers by name, with bytes a weight, which say how many copies exceed the cache."""
