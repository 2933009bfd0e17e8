"""RMSNorm, RoPE with KV write and the gated activation of the C kernels against float64."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from cpu_support import BF16, F32, make_ops, modes, needs_compiler, run, tokens
from seeds import fresh_seed
from torch import Tensor

from halfbyte.engine.backends.base import Activation, AttentionShape
from halfbyte.engine.run.kv_cache import KVCache, LayerKV, StateSpec
from halfbyte.engine.run.step import RowSpan, StepInputs
from halfbyte.kernels import reference as ref
from halfbyte.kernels.formats.activations import quantize_kv

pytestmark = needs_compiler

WIDTHS = [1, 2, 15, 16, 17, 40, 576, 577]


def assert_near(got: Tensor, want: Tensor, relative: float) -> None:
    """Within ``relative``, or one unit of bfloat16 where the op fills such a buffer."""
    unit = 2 * BF16 if got.dtype == torch.bfloat16 else 0.0
    excess = (got.double() - want).abs() - (relative + unit) * want.abs() - 1e-30
    assert not got.isnan().any() and excess.max() <= 0, f"off by {float(excess.max())}"


def assert_padding_is_zero(out: Tensor) -> None:
    """Large products read whole blocks of 32 by 32, so what pads a bfloat16 matrix must be zero."""
    rows, width = out.shape
    stride = out.stride(0)
    assert stride % 32 == 0 and stride - width < 32
    whole = out.as_strided((-(-rows // 32) * 32, stride), (stride, 1)).clone()
    whole[:rows, :width] = 0
    assert (whole == 0).all()


@pytest.mark.parametrize("exact", modes())
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(width: int, exact: bool) -> None:
    seed = fresh_seed()
    ops = make_ops(exact=exact)
    gain = tokens(seed, 1, width)[0]
    for t in (1, 2, 9, 24, 33, 70):
        # Rows of very different size: each is normed by itself.
        x = tokens(seed + t, t, width) * torch.logspace(-3, 3, t).unsqueeze(1)
        ops.begin_record()
        out = ops.rms_norm(x, gain, 1e-5)
        program = ops.end_record()
        out.as_strided((t, out.stride(0)), (out.stride(0), 1)).fill_(torch.nan)
        program.run()
        # A float32 sum of squares, a root and three products.
        want = ref.rms_norm(x.double(), gain.double(), 1e-5)
        assert_near(out, want, (width / 2 + 8) * F32)
        if out.dtype == torch.bfloat16:
            assert t >= ops.gemm_rows
            assert_padding_is_zero(out)


@pytest.mark.parametrize("exact", modes())
def test_rms_norm_of_chosen_rows(exact: bool) -> None:
    seed = fresh_seed()
    ops = make_ops(exact=exact)
    x, gain = tokens(seed, 50, 96), tokens(seed + 1, 1, 96)[0]
    for count in (0, 1, 3, 40):
        picks = [random.Random(seed + count).randrange(50) for _ in range(count)]
        rows = torch.tensor(picks, dtype=torch.int64)
        got = run(ops, ops.rms_norm, x, gain, 1e-6, rows)
        assert got.shape == (count, 96)
        if count:
            want = ref.rms_norm(x[rows].double(), gain.double(), 1e-6)
            assert_near(got, want, 60 * F32)


@pytest.mark.parametrize("exact", modes())
@pytest.mark.parametrize("width", WIDTHS)
def test_silu_mul(width: int, exact: bool) -> None:
    seed = fresh_seed()
    ops = make_ops(exact=exact)
    for t in (1, 2, 9, 24, 33, 70):
        x = tokens(seed + t, t, 2 * width) * 4
        ops.begin_record()
        out = ops.gated_mul(x)
        program = ops.end_record()
        out.as_strided((t, out.stride(0)), (out.stride(0), 1)).fill_(torch.nan)
        program.run()
        # The exponential's relative error is below 2e-7, the rest are three roundings; where
        # 1 + e**-g cancels nothing, this is the relative error of the result.
        assert_near(out, ref.gated_mul(x.double()), 6e-7)
        if out.dtype == torch.bfloat16:
            assert_padding_is_zero(out)


@pytest.mark.parametrize("exact", modes())
@pytest.mark.parametrize("width", WIDTHS)
def test_gelu_mul(width: int, exact: bool) -> None:
    seed = fresh_seed()
    ops = make_ops(exact=exact)
    for t in (1, 9, 33):
        x = tokens(seed + t, t, 2 * width) * 2
        ops.begin_record()
        out = ops.gated_mul(x, "gelu_tanh")
        program = ops.end_record()
        out.as_strided((t, out.stride(0)), (out.stride(0), 1)).fill_(torch.nan)
        program.run()
        # Beyond silu's roundings the exponent, below 90 in size, is off by four of its own.
        unit = 2 * BF16 if out.dtype == torch.bfloat16 else 0.0
        gate, up = x.double().chunk(2, -1)
        inner = 1.5957691216057308 * (gate + 0.044715 * gate**3)
        want = gate / (1 + torch.exp(-inner)) * up
        slack = (6e-7 + unit + 4 * F32 * inner.abs()) * want.abs() + 1e-36 * up.abs()
        excess = (out.double() - want).abs() - slack
        assert not out.isnan().any() and excess.max() <= 0, f"off by {float(excess.max())}"
        torch.testing.assert_close(want, ref.gated_mul(x.double(), "gelu_tanh"))
        if out.dtype == torch.bfloat16:
            assert_padding_is_zero(out)


@pytest.mark.parametrize("exact", modes())
@pytest.mark.parametrize("width", WIDTHS)
def test_clipped_swiglu_mul(width: int, exact: bool) -> None:
    """Many gates and ups beyond the limits of 7, on both sides."""
    seed = fresh_seed()
    ops = make_ops(exact=exact)
    for t in (1, 9, 33):
        x = tokens(seed + t, t, 2 * width) * 6
        ops.begin_record()
        out = ops.gated_mul(x, "clipped_swiglu")
        program = ops.end_record()
        out.as_strided((t, out.stride(0)), (out.stride(0), 1)).fill_(torch.nan)
        program.run()
        gate, up = x.double().chunk(2, -1)
        gate, up = gate.clamp(max=7), up.clamp(-7, 7)
        want = gate / (1 + torch.exp(-1.702 * gate)) * (up + 1)
        # As for silu, with an exponent below 90 in size that is rounded, and up + 1.
        unit = 2 * BF16 if out.dtype == torch.bfloat16 else 0.0
        slack = (8e-7 + unit + 4 * F32 * (1.702 * gate).abs()) * want.abs()
        slack += 2 * F32 * gate.abs() + 1e-36
        excess = (out.double() - want).abs() - slack
        assert not out.isnan().any() and excess.max() <= 0, f"off by {float(excess.max())}"
        torch.testing.assert_close(want, ref.gated_mul(x.double(), "clipped_swiglu"))
        if out.dtype == torch.bfloat16:
            assert_padding_is_zero(out)


@pytest.mark.parametrize("width", WIDTHS)
def test_add(width: int) -> None:
    seed = fresh_seed()
    ops = make_ops()
    for t in (1, 2, 33):
        wide = torch.full((t, width + 5), 7.25)
        residual = wide[:, 2 : width + 2].copy_(tokens(seed + t, t, width))
        before, x = residual.clone(), tokens(seed + 9, t, width)
        run(ops, ops.add, x, residual)
        assert torch.equal(residual, before + x)
        # A norm may hand over bfloat16, with rows padded.
        half = torch.full((t, width + 3), torch.nan, dtype=torch.bfloat16)[:, :width].copy_(x)
        before = residual.clone()
        run(ops, ops.add, half, residual)
        assert torch.equal(residual, before + half.float())
        assert (wide[:, :2] == 7.25).all() and (wide[:, width + 2 :] == 7.25).all()


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "clipped_swiglu"])
@pytest.mark.parametrize("exact", modes())
@pytest.mark.parametrize("t", [1, 40])
def test_gated_mul_at_the_ends(t: int, exact: bool, activation: Activation) -> None:
    """Gates from -1e30 to 1e30: the result tends to 0 on one side and to gate * up on the other."""
    ops = make_ops(exact=exact)
    ends = [
        0.0,
        1e-30,
        1.0,
        20.0,
        80.0,
        86.9,
        87.1,
        88.0,
        88.8,
        90.0,
        100.0,
        127.0,
        300.0,
        1e4,
        1e30,
    ]
    gates = torch.tensor(ends + [-g for g in ends])
    up = torch.linspace(-3, 3, len(gates))
    x = torch.cat((gates, up)).repeat(t, 1)
    got = run(ops, ops.gated_mul, x, activation)
    want = ref.gated_mul(x.double(), activation)
    unit = 2 * BF16 if got.dtype == torch.bfloat16 else 1e-6
    assert not got.isnan().any()
    # Below -87 the true value, under 1e-35, may come out as zero.
    excess = (got.double() - want).abs() - unit * want.abs() - 1e-35
    bad = (excess > 0).nonzero()[:, 1].unique().tolist()
    assert not bad, [(float(gates[i]), float(got[0, i]), float(want[0, i])) for i in bad]


def cache(kv_heads: int, dim: int, size: int, dtype: torch.dtype = torch.float32) -> list[LayerKV]:
    """Two layers of five blocks, all NaN; codes are -128, which nothing becomes."""
    side = (kv_heads, dim)
    kv = KVCache([StateSpec((side, side))] * 2, 5, size, dtype)
    for state in kv.states:
        for kept in state.tokens:
            kept.fill_(-128 if kept.dtype == torch.int8 else torch.nan)
    return [LayerKV(*state.tokens) for state in kv.states]


@pytest.mark.parametrize("width", WIDTHS)
def test_center(width: int) -> None:
    seed = fresh_seed()
    ops = make_ops()
    for t in (1, 2, 33):
        wide = torch.full((t, width + 5), 7.25)
        x = wide[:, 2 : width + 2].copy_(tokens(seed + t, t, width) + 3.0)
        before = x.double()
        run(ops, ops.center, x)
        error = (x - (before - before.mean(-1, keepdim=True))).abs().max()
        # A float32 sum, a quotient and a difference.
        assert error <= (width + 8) * F32 * before.abs().max()
        assert (wide[:, :2] == 7.25).all() and (wide[:, width + 2 :] == 7.25).all()


@pytest.mark.parametrize("norms", ["none", "per head", "whole"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "rotary", "size"),
    [
        (1, 1, 16, 16, 16),
        (6, 2, 20, 20, 16),
        (9, 3, 64, 64, 64),
        (7, 1, 80, 40, 32),
        (8, 8, 128, 128, 128),
        (4, 2, 64, 22, 16),
    ],
)
def test_rope_and_kv_write(
    heads: int, kv_heads: int, dim: int, rotary: int, size: int, norms: str
) -> None:
    seed = fresh_seed()
    rng = random.Random(seed)
    ops = make_ops()
    widths = (heads, kv_heads) if norms == "whole" else (1, 1)
    q_gain, k_gain = (tokens(seed + 7 + n, 1, n * dim)[0] for n in widths)
    gains = (None, None) if norms == "none" else (q_gain, k_gain)
    interleaved = rng.random() < 0.5
    shape = AttentionShape(
        *(heads, kv_heads, dim, 1.0, 0, gains[0], gains[1], 1e-6), interleaved=interleaved
    )
    for t in (1, 2, 11, 40):
        kv = cache(kv_heads, dim, size)
        qkv = tokens(seed + t, t, (heads + 2 * kv_heads) * dim)
        slots = torch.tensor(rng.sample(range(5 * size), t))
        angles = torch.rand(t, rotary // 2, dtype=torch.float64) * 6
        rope = torch.cat((angles.cos(), angles.sin()), -1).float()
        index = torch.arange(t, dtype=torch.int32)
        table = torch.zeros(1, 1, dtype=torch.int32)
        step = StepInputs(index.long(), index, rope, slots, index, table, [RowSpan(0, t, 0)], None)
        factors = tokens(seed, 1, t)[0] if rng.random() < 0.5 else None
        step.query_factors = factors
        given = qkv.clone()  # norms of whole rows are written into it
        q = run(ops, ops.rope_write_kv, given, shape, kv[1], step)
        want_q, want_k, want_v = qkv.double().view(t, -1, dim).split((heads, kv_heads, kv_heads), 1)
        if norms != "none":
            own_q, own_k = (x.flatten(1) if norms == "whole" else x for x in (want_q, want_k))
            want_q = ref.rms_norm(own_q, q_gain.double(), 1e-6).view_as(want_q)
            want_k = ref.rms_norm(own_k, k_gain.double(), 1e-6).view_as(want_k)
        cos, sin = rope.double().chunk(2, -1)
        # Two products and a sum of magnitudes of a few, after a norm of 1024 terms at most, whose
        # squares are summed in lanes.
        close: dict[str, Any] = {"rtol": 70 * F32, "atol": 70 * F32 * 5}
        rotated = ref.apply_rope(want_q, cos, sin, interleaved)
        if factors is not None:
            rotated = rotated * factors.double()[:, None, None]
        torch.testing.assert_close(q.double(), rotated, **close)
        k_want = torch.full_like(kv[1].k, torch.nan, dtype=torch.float64)
        v_want = k_want.clone()
        rotated = ref.apply_rope(want_k, cos, sin, interleaved)
        ref.write_kv(rotated, want_v, k_want, v_want, slots)
        # Equal NaN included: nothing but the slots is written.
        torch.testing.assert_close(kv[1].k.double(), k_want, equal_nan=True, **close)
        assert torch.equal(kv[1].v.nan_to_num(9e9), v_want.float().nan_to_num(9e9))
        assert kv[0].k.isnan().all() and kv[0].v.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8], ids=str)
def test_keys_and_values_are_rounded_bit_for_bit(dtype: torch.dtype) -> None:
    """What a float32 cache gets, rounded by torch: zeros, the smallest, what overflows, no numbers.

    Each number of a row has a size of its own; some rows have one size.
    """
    seed = fresh_seed()
    rng = random.Random(seed)
    ops = make_ops()
    for dim, size in ((16, 16), (20, 32), (64, 64), (rng.choice([80, 128]), 16)):
        kv_heads, t = rng.choice([1, 2, 3]), 24
        shape = AttentionShape(kv_heads, kv_heads, dim, 1.0)
        qkv = tokens(seed + dim, t, 3 * kv_heads * dim)
        powers = torch.randint(-30, 18, qkv.shape, generator=torch.Generator().manual_seed(seed))
        powers[: t // 2] = powers[: t // 2, :1]
        qkv *= 2.0**powers
        heads = qkv.view(t, -1, dim)
        heads[3] = 0.0
        heads[4, :, rng.randrange(dim)] = torch.nan
        heads[5, :, rng.randrange(dim)] = -torch.inf
        slots = torch.tensor(rng.sample(range(5 * size), t))
        rope = torch.cat((torch.ones(t, dim // 2), torch.zeros(t, dim // 2)), -1)
        index = torch.arange(t, dtype=torch.int32)
        table = torch.zeros(1, 1, dtype=torch.int32)
        step = StepInputs(index.long(), index, rope, slots, index, table, [RowSpan(0, t, 0)], None)
        plain, kept = cache(kv_heads, dim, size)[1], cache(kv_heads, dim, size, dtype)[1]
        run(ops, ops.rope_write_kv, qkv, shape, plain, step)
        run(ops, ops.rope_write_kv, qkv, shape, kept, step)
        written = torch.zeros(5 * size, dtype=torch.bool)
        written[slots] = True
        written = written.view(5, size)
        for whole, got, scale in ((plain.k, kept.k, kept.k_scale), (plain.v, kept.v, kept.v_scale)):
            rows, got = whole.transpose(1, 2)[written], got.transpose(1, 2)
            if scale is None:
                assert torch.equal(got[written].nan_to_num(7.0), rows.to(dtype).nan_to_num(7.0))
                assert torch.equal(got[written].isnan(), rows.isnan())
                assert got[~written].isnan().all()
                continue
            codes, scales = quantize_kv(rows)
            scale, finite = scale.transpose(1, 2), scales.isfinite()
            assert (~finite).sum() == 2 * kv_heads and (scales == 1).any()
            assert torch.equal(got[written][finite], codes[finite])
            assert torch.equal(scale[written].nan_to_num(-1.0), scales.nan_to_num(-1.0))
            assert (got[~written] == -128).all() and scale[~written].isnan().all()


@pytest.mark.exact
def test_exact_bits_of_norm_rope_and_gate_do_not_depend_on_the_batch() -> None:
    seed = fresh_seed()
    x, gain = tokens(seed, 40, 576), tokens(seed + 1, 1, 576)[0]
    gate = tokens(seed + 2, 40, 600) * 5
    alone: dict[int, list[Tensor]] = {}
    for threads in (1, 2):
        ops = make_ops(exact=True, threads=threads)
        norm, act = run(ops, ops.rms_norm, x, gain, 1e-5), run(ops, ops.gated_mul, gate)
        gelu = run(ops, ops.gated_mul, gate, "gelu_tanh")
        for i in range(40):
            assert torch.equal(run(ops, ops.rms_norm, x[i : i + 1], gain, 1e-5)[0], norm[i])
            assert torch.equal(run(ops, ops.gated_mul, gate[i : i + 1])[0], act[i])
            assert torch.equal(run(ops, ops.gated_mul, gate[i : i + 1], "gelu_tanh")[0], gelu[i])
        alone[threads] = [norm, act, gelu]
    assert all(torch.equal(a, b) for a, b in zip(alone[1], alone[2], strict=True))
