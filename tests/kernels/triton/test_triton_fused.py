"""Norms, embedding, RoPE with KV write and gated activations against float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from halfbyte.errors import KernelInputError
from halfbyte.kernels.device.input_rounding import InputRounding, rule_of
from halfbyte.kernels.formats.activations import quantize_activations, quantize_kv
from halfbyte.kernels.fused import embed_norm, gated_mul, rms_norm, rope_write_kv
from halfbyte.kernels.fused import reference as ref
from halfbyte.kernels.fused.outputs import RowOutputs
from halfbyte.kernels.reference import apply_rope

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def given_tensor(x: torch.Tensor | None) -> torch.Tensor:
    """An output that was asked for."""
    assert x is not None
    return x


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return torch.equal(given_tensor(a), given_tensor(b))


def check(y, expected, roundings=1.0):
    """Each rounding to the dtype costs half an ulp of the value; float32 arithmetic 1e-6."""
    eps = torch.finfo(y.dtype).eps
    bound = (0.51 * roundings * eps + 1e-6) * expected.abs() + 1e-6 + torch.finfo(y.dtype).tiny
    error = (y.double() - expected).abs()
    assert (error <= bound).all(), float((error - bound).max())


def check_extras(out: RowOutputs, group: int):
    """Sums and codes are those of the rounded values."""
    assert out.values is not None
    if group:
        assert out.sums is not None
        torch.testing.assert_close(
            out.sums.double(), ref.group_sums(out.values.double(), group), rtol=1e-5, atol=1e-4
        )


def check_codes(out: RowOutputs, values: torch.Tensor, rounding: InputRounding):
    """Codes are those of the rounded values, with zeros up to a multiple of 16."""
    want, scales = quantize_activations(values, rule_of(rounding))
    assert out.rounded is not None
    codes, zero = out.rounded.codes.float(), out.rounded.zero
    assert codes.shape[1] == -(-values.shape[1] // 16) * 16
    if zero is not None:
        codes -= zero.reshape(-1, 1)
    assert torch.equal(codes[:, : want.shape[1]], want) and not codes[:, want.shape[1] :].any()
    if rounding.scale is None:
        assert torch.equal(out.rounded.scale, scales[:, 0])


def buffers(rows, width, dtype, group):
    """Poisoned buffers."""
    return RowOutputs(
        torch.full((rows, width), float("nan"), dtype=dtype),
        torch.full((rows, -(-width // group)), float("nan")) if group else None,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 100, 256, 1000])
def test_add_rms_norm(rng, dtype, width):
    x, residual = (torch.randn(3, width, generator=rng).to(dtype) for _ in range(2))
    weight = torch.randn(width, generator=rng)
    before, given = residual.clone(), buffers(3, width, dtype, 32)
    out = rms_norm(x, weight, 1e-5, residual_TD=residual, group=32, out=given)
    assert torch.equal(residual, (x.float() + before.float()).to(dtype))
    assert out.values is given.values and out.sums is given.sums
    check(out.values, ref.rms_norm(residual.double(), weight.to(dtype).double(), 1e-5), 2.0)
    check_extras(out, 32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_of_picked_rows_in_gemmas_form(rng, dtype):
    x, weight = torch.randn(5, 72, generator=rng).to(dtype), torch.randn(72, generator=rng)
    out = rms_norm(x, weight, 1e-6, rows_S=torch.tensor([4, 0]), plus_one=True)
    check(out.values, ref.rms_norm(x[[4, 0]].double(), weight.double(), 1e-6, plus_one=True))


ROUNDINGS = (
    InputRounding(),
    InputRounding(top=127.5),
    InputRounding(asymmetric=True),
    InputRounding(top=127.5, scale=torch.tensor([0.03])),
    InputRounding(
        torch.int8, True, 127.5, torch.tensor([0.03]), torch.tensor([-7], dtype=torch.int32)
    ),
    InputRounding(torch.float8_e4m3fn, top=448.0),
    InputRounding(torch.float8_e4m3fn, top=448.0, scale=torch.tensor([0.01])),
)


@pytest.mark.parametrize("width", [96, 1203])
@pytest.mark.parametrize("rounding", ROUNDINGS, ids=range(len(ROUNDINGS)))
def test_codes_are_those_of_the_rounded_values(rng, rounding, width):
    x = torch.randn(4, 2 * width, generator=rng).bfloat16()
    x[2] = 0
    weight = torch.randn(width, generator=rng)
    for op in (
        partial(rms_norm, x[:, :width].contiguous(), weight, 1e-6),
        partial(gated_mul, x, activation="gelu_tanh"),
    ):
        alone, both = op(rounding=rounding, values=False), op(rounding=rounding)
        assert alone.values is None
        values = given_tensor(op().values)
        assert same(both.values, values)
        check_codes(alone, values, rounding)
        check_codes(both, values, rounding)


@pytest.mark.filterwarnings("ignore:.*encountered")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_rounded_rows_without_meaning_have_no_scale(rng, bad):
    x = torch.randn(3, 64, generator=rng).half()
    x[1, 9] = bad
    weight = torch.ones(32)
    for out in (
        rms_norm(x[:, :32].contiguous(), weight, 1e-6, rounding=InputRounding()),
        gated_mul(x, rounding=InputRounding()),
    ):
        assert out.rounded is not None
        assert out.rounded.scale.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_and_first_norm(rng, dtype):
    table, weight = torch.randn(9, 40, generator=rng).to(dtype), torch.randn(40, generator=rng)
    ids = torch.tensor([8, 0, 9, -1])
    residual, out = embed_norm(ids, table, weight_D=weight, eps=1e-5, scale=6.25, group=8)
    assert torch.equal(residual[:2], (table[[8, 0]].float() * 6.25).to(dtype))
    assert (residual[2:] == 0).all()
    assert out is not None
    check(out.values, ref.rms_norm(residual.double(), weight.to(dtype).double(), 1e-5), 2.0)
    check_extras(out, 8)
    alone, none = embed_norm(ids[:2], table)
    assert none is None and torch.equal(alone, table[[8, 0]])


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "clipped_swiglu"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 100, 1500])
def test_gated(rng, dtype, width, activation):
    x = (torch.randn(3, 2 * width, generator=rng) * 4).to(dtype)
    if width > 1:
        x[0, :2] = torch.tensor([-300.0, 300.0])
    given = buffers(3, width, dtype, 16)
    out = gated_mul(x, activation=activation, group=16, out=given)
    expected = ref.gated(x.double(), activation)
    # exp is good to 1e-6 of its argument's size; results below that of their factors vanish.
    check(out.values, expected + 0.0, 1.1)
    check_extras(out, 16)
    both = gated_mul(x, activation=activation, group=16, rounding=InputRounding())
    assert same(both.values, out.values) and same(both.sums, out.sums)
    check_codes(both, given_tensor(out.values), InputRounding())


ROPE = [
    # dtype, heads, kv heads, dim, half, norm, int8
    (torch.float16, 4, 2, 64, 32, False, None),
    (torch.bfloat16, 3, 1, 80, 20, True, None),
    (torch.float32, 4, 2, 96, 24, True, torch.int8),
    (torch.float16, 5, 5, 64, 32, False, torch.int8),
    (torch.bfloat16, 9, 3, 128, 64, True, torch.int8),
    (torch.float16, 4, 2, 80, 20, True, torch.float8_e4m3fn),
    (torch.bfloat16, 3, 1, 128, 64, False, torch.float8_e4m3fn),
]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("dtype", "heads", "kv_heads", "dim", "half", "norm", "codes"), ROPE)
def test_rope_and_kv_write(rng, dtype, heads, kv_heads, dim, half, norm, codes, in_place):
    # Each form of the kernel once, in place or not.
    interleaved = in_place == norm
    page, slots = 16, torch.tensor([5, -1, 16 * 5 + 15, 33])
    qkv = torch.randn(4, (heads + 2 * kv_heads) * dim, generator=rng).to(dtype)
    angles = torch.rand(4, half, generator=rng) * 6
    rope = torch.cat((angles.cos(), angles.sin()), -1)
    kind, quantized = codes or dtype, codes is not None
    cache = torch.full((6, 2, 2, kv_heads, page, dim), 96.0).to(kind)
    scales = torch.full((6, 2, kv_heads, page), -1.0)
    q_norm, k_norm = (torch.randn(dim, generator=rng) if norm else None for _ in range(2))
    original = qkv.clone().double().view(4, -1, dim)
    out = qkv[:, : heads * dim].unflatten(1, (heads, dim)) if in_place else None
    q = rope_write_kv(
        qkv, rope, slots, cache[:, 1, 0], cache[:, 1, 1], heads,
        q_norm_E=q_norm, k_norm_E=k_norm, eps=1e-6, interleaved=interleaved,
        k_scale_BJS=scales[:, 0] if quantized else None,
        v_scale_BJS=scales[:, 1] if quantized else None, out=out,
    )  # fmt: skip
    true_q, true_k, true_v = original.split((heads, kv_heads, kv_heads), 1)
    if q_norm is not None and k_norm is not None:
        true_q = ref.rms_norm(true_q, q_norm.to(dtype).double(), 1e-6)
        true_k = ref.rms_norm(true_k, k_norm.to(dtype).double(), 1e-6)
    cos, sin = rope.double().chunk(2, -1)
    true_q, true_k = (apply_rope(true, cos, sin, interleaved) for true in (true_q, true_k))
    # A rotation mixes two normed and rounded values, so errors go by the head's size.
    bound = (2.0 if norm else 1.0) * torch.finfo(dtype).eps + 1e-6
    assert (q.double() - true_q).abs().max() <= bound * true_q.abs().max()
    touched = torch.zeros(6, page, dtype=torch.bool)
    for t, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        block, offset = divmod(slot, page)
        touched[block, offset] = True
        for side, true in ((0, true_k[t]), (1, true_v[t])):
            got = cache[block, 1, side, :, offset].double()
            step = 0.0
            if quantized:
                if side:  # values are stored as they came
                    want, scale = quantize_kv(qkv[t].view(-1, dim)[-kv_heads:], kind)
                    assert torch.equal(cache[block, 1, side, :, offset].float(), want.float())
                    assert torch.equal(scales[block, side, :, offset], scale)
                got *= scales[block, side, :, offset].double().unsqueeze(-1)
                # Half a step of codes where the largest is.
                step = 0.51 / 127 if kind == torch.int8 else 16.1 / 448
            assert (got - true).abs().max() <= (bound + step) * true.abs().max()
    written = (cache[:, 1].float() != 96).any(-1).any(2).any(1)
    assert torch.equal(written, touched)
    assert (cache[:, 0].float() == 96).all()


def test_bad_inputs_are_refused_with_numbers():
    x, weight = torch.zeros(2, 64), torch.zeros(64)
    with pytest.raises(KernelInputError, match=r"weight has shape \(63,\); expected \(64,\)"):
        rms_norm(x, weight[:63], 1e-5)
    with pytest.raises(KernelInputError, match="group is 12"):
        rms_norm(x, weight, 1e-5, group=12)
    with pytest.raises(KernelInputError, match="nothing to write"):
        rms_norm(x, weight, 1e-5, values=False)
    with pytest.raises(KernelInputError, match=r"a row has 40000 values; expected 1\.\.32768"):
        rms_norm(torch.zeros(1, 40000), torch.zeros(40000), 1e-5)
    with pytest.raises(KernelInputError, match="has 63 columns"):
        gated_mul(torch.zeros(1, 63))
    with pytest.raises(KernelInputError, match="'relu'; expected one of silu"):
        gated_mul(x, activation="relu")
    cache = torch.zeros(2, 1, 16, 64)
    with pytest.raises(KernelInputError, match="rope has 66 columns"):
        rope_write_kv(
            torch.zeros(1, 192),
            torch.zeros(1, 66),
            torch.zeros(1, dtype=torch.int64),
            cache,
            cache,
            1,
        )
