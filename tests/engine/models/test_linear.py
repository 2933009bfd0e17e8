"""Fused projections: one matrix for equal formats, several for mixed ones, on each backend."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from halfbyte.engine.backends import make_backend
from halfbyte.engine.backends.base import Ops
from halfbyte.engine.backends.cpu_c import CompiledOps
from halfbyte.engine.backends.reference import ReferenceOps
from halfbyte.engine.config import EngineConfig
from halfbyte.engine.models.projections import FusedLinear
from halfbyte.kernels.formats.canonical import QuantizedLinear, Weight, WeightFormat, pack_codes

BACKENDS = {
    "reference": EngineConfig(backend="reference"),
    "cpu_c": EngineConfig(activations="float"),
    "cpu_c-exact": EngineConfig(exact=True, activations="float"),
    "cpu_torch": EngineConfig(backend="cpu_torch"),
    "cpu_torch-float32": EngineConfig(backend="cpu_torch", dtype="float32"),
}


def quantized(n: int, k: int, bits: int, g: torch.Generator) -> QuantizedLinear:
    codes = torch.randint(0, 1 << bits, (n, k), generator=g, dtype=torch.uint8)
    scales = torch.rand(n, k // 32, generator=g) * 2.0**-bits
    return QuantizedLinear("w", WeightFormat(bits, 32), pack_codes(codes, bits), scales, None, k)


def compute(ops: Ops[Any], layer: FusedLinear[Any], x: Tensor) -> Tensor:
    """A norm before the product, as in a decoder: it picks the type of the activation buffer."""
    gain = torch.ones(x.shape[1])
    if not isinstance(ops, CompiledOps):
        return layer(ops, ops.rms_norm(x, gain, 1e-6)).clone()
    ops.begin_record()
    out = layer(ops, ops.rms_norm(x, gain, 1e-6))
    ops.end_record().run()
    return out.clone()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 9, 40])
def test_mixed_formats_side_by_side(backend: str, rows: int) -> None:
    """As in files that keep the value projection in more bits (Q4_K_M)."""
    seed = random.randrange(1 << 40)
    print("seed", seed)
    g = torch.Generator().manual_seed(seed)
    made = make_backend(BACKENDS[backend])
    ops, pack = made.ops, made.packer.pack
    dense = torch.randn(24, 64, generator=g).to(torch.float16)
    weights: list[Weight] = [quantized(48, 64, 4, g), quantized(16, 64, 6, g), dense]
    biases = [torch.randn(w.shape[0], generator=g) for w in weights]
    packed = [pack(w, b) for w, b in zip(weights, biases, strict=True)]
    layer = FusedLinear(packed)
    assert layer.nbytes == sum(p.nbytes for p in packed)
    x = torch.randn(rows, 64, generator=g)
    got = compute(ops, layer, x)
    assert got.dtype == torch.float32 and got.shape == (rows, 88)
    normed = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    values = [w.double() if isinstance(w, Tensor) else w.dequantize().double() for w in weights]
    want = normed @ torch.cat(values).T + torch.cat(biases)
    exact = backend != "cpu_torch" and (backend != "cpu_c" or rows < 24)
    if exact:
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    else:
        # Default modes round inputs, weights and scales, and the result, to bfloat16.
        limit = 4 * 2.0**-8 * (normed.abs() @ torch.cat(values).abs().T + torch.cat(biases).abs())
        assert ((got.double() - want).abs() <= limit).all()


def test_one_matrix_for_equal_formats() -> None:
    g = torch.Generator().manual_seed(5)
    ops = ReferenceOps()
    parts = [quantized(32, 64, 4, g), quantized(16, 64, 4, g)]
    whole = FusedLinear([ops.pack(QuantizedLinear.concat(parts))])
    apart = FusedLinear([ops.pack(p) for p in parts])
    x = torch.randn(3, 64, generator=g)
    torch.testing.assert_close(whole(ops, x), apart(ops, x))
