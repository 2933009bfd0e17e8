"""The reference ops against formulas written out anew, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from seeds import fresh_seed
from statistics_support import generator

from halfbyte.kernels import reference as ref
from halfbyte.kernels.formats.activations import quantize_activations
from halfbyte.kernels.formats.canonical import ActivationFormat

# float64 results of a few hundred terms: rounding stays far below this.
EXACT: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-12}


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("width", [1, 7, 64, 577])
def test_rms_norm(width: int) -> None:
    seed = fresh_seed()
    x, gain = normal(3, width, seed=seed), normal(width, seed=seed + 1)
    want = torch.empty_like(x)
    for row in range(3):
        square = math.fsum(float(v) ** 2 for v in x[row]) / width
        want[row] = x[row] * gain / math.sqrt(square + 1e-5)
    torch.testing.assert_close(ref.rms_norm(x, gain, 1e-5), want, **EXACT)


def test_rms_norm_of_bfloat16_is_computed_in_float32() -> None:
    """Squares of 300 bfloat16 values would lose their sum in 8 bits."""
    seed = fresh_seed()
    x = normal(4, 300, seed=seed, dtype=torch.bfloat16)
    gain = torch.ones(300)
    out = ref.rms_norm(x, gain, 0.0)
    want = ref.rms_norm(x.double(), gain.double(), 0.0)
    assert out.dtype == torch.bfloat16
    # Half a unit in the last of 8 bits, and nothing from the sum.
    torch.testing.assert_close(out.double(), want, rtol=2**-8, atol=0)


def test_rms_norm_of_zeros_is_zero() -> None:
    assert ref.rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-6).abs().max() == 0


def test_linear_and_silu() -> None:
    seed = fresh_seed()
    x, w, b = normal(3, 11, seed=seed), normal(5, 11, seed=seed + 1), normal(5, seed=seed + 2)
    want = np.einsum("tk,nk->tn", x.numpy(), w.numpy()) + b.numpy()
    torch.testing.assert_close(ref.linear(x, w, b), torch.from_numpy(want), **EXACT)
    gate_up = normal(2, 6, seed=seed + 3) * 20
    gate, up = gate_up.numpy()[:, :3], gate_up.numpy()[:, 3:]
    want = gate / (1 + np.exp(-gate)) * up
    torch.testing.assert_close(ref.gated_mul(gate_up), torch.from_numpy(want), **EXACT)


def test_clipped_swiglu() -> None:
    gate_up = normal(4, 40, seed=fresh_seed()) * 8
    gate, up = np.minimum(gate_up.numpy()[:, :20], 7), np.clip(gate_up.numpy()[:, 20:], -7, 7)
    want = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
    got = ref.gated_mul(gate_up, "clipped_swiglu")
    torch.testing.assert_close(got, torch.from_numpy(want), **EXACT)


@pytest.mark.parametrize(("dim", "rotary"), [(2, 2), (8, 8), (20, 20), (64, 64), (16, 8)])
def test_rope_turns_pairs_as_complex_numbers(dim: int, rotary: int) -> None:
    """Dimension i and i + F are real and imaginary part of z; z becomes z e^(i angle)."""
    seed = fresh_seed()
    x, half = normal(5, 3, dim, seed=seed), rotary // 2
    positions = torch.tensor([0, 1, 2, 77, 131071], dtype=torch.float64)
    angles = positions[:, None] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) * 2 / rotary)
    out = ref.apply_rope(x, angles.cos(), angles.sin())
    z = torch.complex(x[..., :half], x[..., half:rotary])
    turned = z * torch.polar(torch.ones_like(angles), angles)[:, None]
    torch.testing.assert_close(out[..., :half], turned.real, **EXACT)
    torch.testing.assert_close(out[..., half:rotary], turned.imag, **EXACT)
    assert torch.equal(out[..., rotary:], x[..., rotary:])
    assert torch.equal(out[0], x[0])
    beside = ref.apply_rope(x, angles.cos(), angles.sin(), interleaved=True)
    pairs = torch.view_as_complex(x[..., :rotary].unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None])
    torch.testing.assert_close(beside[..., :rotary], turned.flatten(-2), **EXACT)
    assert torch.equal(beside[..., rotary:], x[..., rotary:])


def test_rope_scores_depend_on_the_distance_only() -> None:
    seed = fresh_seed()
    q, k = normal(1, 1, 32, seed=seed), normal(1, 1, 32, seed=seed + 1)

    def score(a: int, b: int) -> torch.Tensor:
        frequencies = 10000.0 ** (-torch.arange(16, dtype=torch.float64) / 16)
        turned = [
            ref.apply_rope(x, (p * frequencies).cos()[None], (p * frequencies).sin()[None])
            for x, p in ((q, a), (k, b))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(10, 3), score(1010, 1003), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("window", [0, 1, 3, 50])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (7, 1)])
def test_attention(heads: int, kv_heads: int, window: int) -> None:
    """Written out per query and head; queries start anywhere in the text."""
    seed = fresh_seed()
    length, dim, scale = 23, 8, 0.31
    positions = torch.tensor([17, 18, 19, 22])
    q = normal(4, heads, dim, seed=seed)
    k, v = (
        normal(kv_heads, length, dim, seed=seed + 1),
        normal(kv_heads, length, dim, seed=seed + 2),
    )
    out = ref.attend_row(q, k, v, positions, scale, window)
    for t, at in enumerate(positions.tolist()):
        seen = [p for p in range(length) if p <= at and (not window or at - p < window)]
        assert len(seen) == (min(window, at + 1) if window else at + 1)
        for head in range(heads):
            keys, values = k[head // (heads // kv_heads)], v[head // (heads // kv_heads)]
            weights = [math.exp(scale * float(q[t, head] @ keys[p])) for p in seen]
            want = sum(w * values[p] for w, p in zip(weights, seen, strict=True)) / sum(weights)
            torch.testing.assert_close(out[t, head], want, **EXACT)


@pytest.mark.parametrize("size", [-math.inf, -50.0, 0.0, 5.0, 500.0])
def test_attention_with_sinks(size: float) -> None:
    """Written out: a sink is in the sum of weights, and adds nothing to that of values."""
    seed = fresh_seed()
    heads, kv_heads, length, dim, scale = 6, 2, 9, 8, 0.31
    positions = torch.tensor([0, 4, 8])
    q = normal(3, heads, dim, seed=seed)
    k = normal(kv_heads, length, dim, seed=seed + 1)
    v = normal(kv_heads, length, dim, seed=seed + 2)
    sinks = size + normal(heads, seed=seed + 3)
    out = ref.attend_row(q, k, v, positions, scale, 3, 0.0, sinks)
    for t, at in enumerate(positions.tolist()):
        for head in range(heads):
            keys, values = k[head // 3], v[head // 3]
            seen = range(max(0, at - 2), at + 1)
            weights = [math.exp(scale * float(q[t, head] @ keys[p])) for p in seen]
            mass = math.exp(float(sinks[head])) + sum(weights)
            want = sum(w * values[p] for w, p in zip(weights, seen, strict=True)) / mass
            torch.testing.assert_close(out[t, head], want, **EXACT)


def test_attention_survives_huge_scores() -> None:
    """The largest score is subtracted before the exponential."""
    q = torch.full((1, 1, 4), 1e3)
    k, v = torch.full((1, 2, 4), 1e3), torch.tensor([[[1.0] * 4, [3.0] * 4]])
    out = ref.attend_row(q, k, v, torch.tensor([1]), 1.0)
    torch.testing.assert_close(out, torch.full((1, 1, 4), 2.0))


def test_kv_memory_round_trip() -> None:
    seed = fresh_seed()
    j, size, e = 2, 4, 3
    k_cache = torch.full((5, j, size, e), math.nan)
    v_cache = k_cache.clone()
    table = torch.tensor([3, 0, 4], dtype=torch.int32)
    k, v = normal(10, j, e, seed=seed).float(), normal(10, j, e, seed=seed + 1).float()
    slots = torch.tensor([int(table[p // size]) * size + p % size for p in range(10)])
    ref.write_kv(k, v, k_cache, v_cache, slots)
    for cache, want in ((k_cache, k), (v_cache, v)):
        assert torch.equal(ref.gather_kv(cache, table, 10), want.transpose(0, 1))
        assert torch.equal(ref.gather_kv(cache, table, 5), want[:5].transpose(0, 1))
        # Blocks of others and the rest of the last block are untouched.
        assert cache[[1, 2]].isnan().all() and cache[4, :, 2:].isnan().all()


def nearest_e4m3(v: float) -> float:
    """By search among all float8_e4m3fn numbers; of two as near, the one with an even fraction."""
    sizes = [2.0**-9 * f for f in range(8)]
    sizes += [2.0 ** (e - 7) * (1 + f / 8) for e in range(1, 16) for f in range(8)][:-1]
    # Neighbours in the list differ in the last bit of their codes.
    best = min(range(len(sizes)), key=lambda i: (abs(sizes[i] - abs(v)), i % 2))
    return math.copysign(sizes[best], v)


@pytest.mark.parametrize("top", [127.5, 127.0])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale", [None, 0.0173])
def test_int8_inputs(scale: float | None, symmetric: bool, top: float) -> None:
    """Scalar by scalar in numpy's float32, with Python's own rounding to even."""
    static_zero = 0 if symmetric or scale is None else -37
    rule = ActivationFormat("int8", symmetric, top, scale, static_zero)
    x = normal(6, 50, seed=fresh_seed(), dtype=torch.float32)
    x[1] = 0
    x[2] = x[2].abs() + 3
    x[3] = -x[3].abs() - 3
    x[4] = (torch.arange(50) - 25 + 0.5) * 0.0173
    x[5, :3] = torch.tensor([127.5, 0.5, 1.5])
    codes, scales = quantize_activations(x, rule)
    for row in range(6):
        values = x[row].numpy()
        low, high = min(values.min(), np.float32(0)), max(values.max(), np.float32(0))
        s, zero = np.float32(scale or 0), static_zero
        if scale is None:
            reach = max(high, -low) if symmetric else high - low
            s = np.float32(reach) / np.float32(top if symmetric else 255)
            s = s if s else np.float32(1)
            zero = 0 if symmetric else round(float(np.float32(-128) - low / s))
        want = []
        for v in values:
            clamped = min(max(v / s + np.float32(zero), np.float32(-128)), np.float32(127))
            want.append(round(float(clamped)) - zero)
        assert codes[row].tolist() == want
        assert float(scales[row]) == float(s)
    assert codes.dtype == scales.dtype == torch.float32 and scales.shape == (6, 1)


@pytest.mark.parametrize("scale", [None, 0.0041])
def test_float8_inputs(scale: float | None) -> None:
    rule = ActivationFormat("e4m3", top=448.0, scale=scale)
    x = normal(5, 60, seed=fresh_seed(), dtype=torch.float32)
    x[1] = 0
    x[2] *= 2.0 ** -(torch.arange(60) % 20)
    # With either scale: halfway between neighbours, subnormals included, and beyond the top.
    x[3] = 0.0041 * 2.0**-10 * (torch.arange(60) + 1)
    x[4] = torch.tensor(448.0) * 2.0 ** -torch.arange(60)
    codes, scales = quantize_activations(x, rule)
    for row in range(5):
        largest = np.abs(x[row].numpy()).max()
        s = np.float32(scale or largest / np.float32(448) or 1)
        scaled = np.clip(x[row].numpy() / s, np.float32(-448), np.float32(448))
        assert codes[row].tolist() == [nearest_e4m3(float(v)) for v in scaled]
        assert float(scales[row]) == float(s)


def test_quantized_linear() -> None:
    seed = fresh_seed()
    x, w, b = normal(3, 11, seed=seed), normal(5, 11, seed=seed + 1), normal(5, seed=seed + 2)
    rule = ActivationFormat(symmetric=False)
    codes, scales = quantize_activations(x, rule)
    want = (codes.double() * scales.double()) @ w.T + b
    torch.testing.assert_close(ref.quantized_linear(x, w, b, rule), want, **EXACT)
    # Eight bits of an input of this size are off by a step of 1 / 50 at the most.
    assert (want - ref.linear(x, w, b)).abs().max() < 0.02 * w.abs().sum(1).max()
    half = ref.quantized_linear(x.half(), w, None, rule)
    assert half.dtype == torch.float16
