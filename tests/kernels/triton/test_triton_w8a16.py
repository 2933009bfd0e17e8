"""W8A16: packing, every group and zero form, split-K, exactness, against float64."""

from __future__ import annotations

import pytest
import torch

from halfbyte.errors import KernelInputError
from halfbyte.kernels.device.workspace import Workspace
from halfbyte.kernels.fragments import config, product
from halfbyte.kernels.fragments.layout import pack_words, unpack_scales, unpack_words
from halfbyte.kernels.w8a16 import dequantize, gather_rows, pack_w8a16, w8a16_linear
from halfbyte.kernels.w8a16 import reference as ref
from halfbyte.kernels.w8a16.layout import unpack_w8a16

HALF = (torch.float16, torch.bfloat16)


def random_weight(rng, n, k, group, zero):
    codes = torch.randint(0, 256, (n, k), generator=rng, dtype=torch.uint8)
    shape = (n, 1 if group == -1 else -(-k // group))
    scales = torch.rand(shape, generator=rng) * 0.01 + 0.001
    zeros = None
    if zero == "e4m3":
        codes[(codes & 0x7F) == 0x7F] = 0x7E  # no number
    if zero == "int":
        zeros = torch.randint(0, 256, shape, generator=rng).float()
    elif zero == "float":
        zeros = torch.randn(shape, generator=rng) * 0.1
    packed = pack_w8a16(codes, scales, zeros, zero=zero, group=group)
    return packed, ref.dequantize(codes, scales, zeros, zero, group)


def check(y, x, w, expected):
    """One rounding to the dtype, and fp32 sums of K terms in any order.

    The interpreter truncates to bfloat16 where a GPU rounds to the nearest.
    """
    eps = torch.finfo(y.dtype).eps * (0.51 if y.dtype == torch.float16 else 1.01)
    # Codes enter as v = q - 128 and offsets apart from them: both parts can exceed their sum.
    size = x.double().abs() @ (w.double().abs() + w.double().abs().amax()).T
    error = (y.double() - expected).abs()
    assert (error <= eps * expected.abs() + 1e-6 * size + 1e-7).all(), float(error.max())


@pytest.mark.parametrize("planes", [2, 4])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (70, 97), (128, 256)])
def test_words_unpack_to_what_was_packed(rng, n, k, planes):
    codes = torch.randint(0, 256 if planes == 2 else 16, (n, k), generator=rng, dtype=torch.uint8)
    words = pack_words(codes, 256, planes)
    assert words.shape == (4, -(-k // (32 * planes)), 1024)
    assert torch.equal(unpack_words(words, n, k, planes), codes)


def test_layout_is_what_the_module_says():
    codes = torch.arange(64, dtype=torch.uint8)[None].expand(64, 64).contiguous()
    words = pack_words(codes, 128, 2)
    # Row 0, t = 1, i = 2: e = 18, 19 of planes 0 and 1; row bit 3 set is 512 words further on.
    assert words[0, 0, 1 * 4 + 2].item() == 18 | 50 << 8 | 19 << 16 | 51 << 24
    rows = torch.arange(64, dtype=torch.uint8)[:, None].expand(64, 64).contiguous()
    assert pack_words(rows, 128, 2)[0, 0, 512 + 3 * 16].item() == 0x0B0B0B0B


@pytest.mark.parametrize("dtype", HALF)
def test_all_codes_decode_exactly(dtype):
    codes = torch.arange(256, dtype=torch.uint8).view(1, 256).expand(3, 256).contiguous()
    packed = pack_w8a16(codes, torch.ones(3, 1))
    assert torch.equal(unpack_w8a16(packed), codes)
    assert torch.equal(dequantize(packed, dtype), (codes.float() - 128).to(dtype))
    signed = pack_w8a16((codes.int() - 128).to(torch.int8), torch.ones(3, 1))
    assert torch.equal(signed.words, packed.words)


@pytest.mark.exact
@pytest.mark.parametrize("dtype", HALF)
def test_all_float8_codes_decode_exactly(dtype):
    codes = torch.arange(256, dtype=torch.uint8).view(1, 256).expand(3, 256).contiguous()
    codes[:, 0x7F], codes[:, 0xFF] = 0, 0
    packed = pack_w8a16(codes, torch.ones(3, 1), zero="e4m3")
    assert torch.equal(unpack_w8a16(packed), codes)
    assert torch.equal(dequantize(packed, dtype), codes.view(torch.float8_e4m3fn).to(dtype))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("m", "n", "k", "group", "zero"),
    [
        (1, 33, 64, -1, "none"),
        (3, 130, 100, 32, "none"),
        (9, 40, 200, 64, "int"),
        (17, 70, 256, 128, "float"),
        (2, 20, 97, -1, "int"),
        (5, 16, 192, 96, "none"),
        (1, 1, 1, -1, "float"),
        (3, 40, 256, 16, "none"),
        (9, 70, 104, 16, "float"),
        (2, 20, 192, 48, "int"),
        (1, 33, 256, 128, "e4m3"),
        (9, 140, 1100, 128, "e4m3"),
        (40, 20, 97, -1, "e4m3"),
        (3, 40, 104, 16, "e4m3"),
    ],
)
def test_product(rng, space, dtype, m, n, k, group, zero):
    packed, w = random_weight(rng, n, k, group, zero)
    x = torch.randn(m, k, generator=rng).to(dtype)
    out = torch.full((m, n), float("nan"), dtype=dtype)
    y = w8a16_linear(x, packed, out=out, workspace=space)
    assert y is out
    check(y, x, w, ref.linear(x, w))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("group", [64, 16])
def test_dequantize(rng, dtype, group):
    packed, w = random_weight(rng, 70, 130, group, "int")
    dense = dequantize(packed, dtype)
    assert dense.shape == (70, 130)
    error = (dense.double() - w).abs()
    assert (error <= torch.finfo(dtype).eps * 1.01 * w.abs() + 1e-6).all()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("k", "group", "zero"), [(100, 32, "int"), (256, 16, "none"), (64, -1, "none")]
)
def test_gather_is_rows_of_the_dense_table(rng, dtype, k, group, zero):
    packed, w = random_weight(rng, 70, k, group, zero)
    ids = torch.tensor([0, 69, 13, 13, 70, -1])
    for factor in (1.0, 3.5):
        rows = gather_rows(ids, packed, dtype, factor)
        want = w[ids.clamp(0, 69)] * ((ids >= 0) & (ids < 70))[:, None] * factor
        # Two roundings; the interpreter truncates to bfloat16 unless told how to round.
        error = (rows.double() - want).abs()
        assert (error <= 1.01 * torch.finfo(dtype).eps * want.abs() + 1e-6).all()


def test_bias_residual_and_splits(rng, space, monkeypatch):
    packed, w = random_weight(rng, 130, 600, 128, "none")
    x = torch.randn(11, 600, generator=rng).half()
    bias = torch.randn(130, generator=rng).half()
    residual = torch.randn(11, 130, generator=rng).half()
    expected = ref.linear(x, w, bias, residual)
    for splits in (1, 2, 5):
        chosen = config.FragmentConfig(16, 128, 2, 4, splits)
        monkeypatch.setattr(product, "choose", lambda *a, chosen=chosen, **k: chosen)
        for _ in range(2):
            y = residual.clone()
            w8a16_linear(x, packed, bias=bias, residual=y, out=y, workspace=space)
            check(y, x, w, expected)
            assert not space.counters.any()


def test_exact_rows_do_not_depend_on_their_neighbours(rng, space):
    packed, _ = random_weight(rng, 64, 512, 32, "none")
    x = torch.randn(20, 512, generator=rng).half()
    together = w8a16_linear(x, packed, exact=True, workspace=space)
    for rows in (slice(0, 1), slice(3, 10), slice(17, 20)):
        alone = w8a16_linear(x[rows].contiguous(), packed, exact=True, workspace=space)
        assert torch.equal(alone, together[rows])


def test_many_rows_go_through_a_dense_product(rng):
    packed, w = random_weight(rng, 200, 64, 32, "float")
    x = torch.randn(600, 64, generator=rng).half()
    bias = torch.randn(200, generator=rng).half()
    # Scratch for 64 rows at a time, the last piece ragged.
    space = Workspace(torch.device("cpu"), partial_bytes=1 << 20, scratch_bytes=64 * 64 * 2)
    y = w8a16_linear(x, packed, bias=bias, workspace=space)
    expected = ref.linear(x, w, bias)
    # Weights are rounded to fp16 here, and the sum once before the bias.
    size = x.double().abs() @ w.abs().T + bias.double().abs() + expected.abs()
    assert ((y.double() - expected).abs() <= 2**-10 * size).all()


def test_scales_are_halves_only_where_that_is_exact():
    codes = torch.zeros(3, 64, dtype=torch.uint8)
    scales = torch.tensor([[1.0, 0.5], [0.25, 2.0], [3.0, 4.0]])
    packed = pack_w8a16(codes, scales, group=32)
    assert packed.scales.dtype == torch.float16 and packed.group == 32
    assert torch.equal(unpack_scales(packed.scales, 3, 2), scales)
    assert pack_w8a16(codes, scales + 1e-5, group=32).scales.dtype == torch.float32
    assert packed.nbytes == packed.words.numel() * 4 + packed.scales.numel() * 2


def test_configurations_follow_the_rules():
    for arch in (0, 80, 89, 90, 120):
        exact = [
            config.choose(
                arch,
                m,
                2,
                4096,
                64,
                132,
                exact=True,
                narrow=True,
                dense=True,
                partials=1 << 23,
                counters=8192,
            )
            for m in (1, 7, 16, 100, 5000)
        ]
        assert len(set(exact)) == 1 and exact[0].splits > 1
        for m in (1, 8, 9, 33, 128, 200):
            c = config.choose(
                arch,
                m,
                2,
                4096,
                64,
                132,
                exact=False,
                narrow=False,
                dense=True,
                partials=1 << 23,
                counters=8192,
            )
            assert not c.dense and (c.bm >= m or c.bm == 64)
    assert config.choose(
        90, 4096, 2, 4096, 64, 132, exact=False, narrow=False, dense=True, partials=1, counters=1
    ).dense
    limits = {"exact": False, "partials": 1 << 23, "counters": 8192}
    shape = 90, 64, 2, 4096, 64, 132
    assert config.choose(*shape, narrow=True, dense=True, **limits).bm == 32
    assert config.choose(*shape, narrow=False, dense=True, **limits).bm == 64
    many = config.choose(90, 4096, *shape[2:], narrow=False, dense=False, **limits)
    assert not many.dense and many.bm == 64
    assert (
        config.choose(
            90, 1, 2, 128, 64, 132, exact=False, narrow=False, dense=True, partials=10, counters=1
        ).splits
        == 1
    )


def test_input_errors_name_the_numbers():
    codes, scales = torch.zeros(4, 64, dtype=torch.uint8), torch.ones(4, 1)
    packed = pack_w8a16(codes, scales)
    with pytest.raises(KernelInputError, match=r"x has shape \(2, 65\); expected \('any', 64\)"):
        w8a16_linear(torch.ones(2, 65).half(), packed)
    with pytest.raises(KernelInputError, match="x is float32; expected float16 or bfloat16"):
        w8a16_linear(torch.ones(2, 64), packed)
    with pytest.raises(KernelInputError, match="group size 24 is not -1 or a multiple of 16"):
        pack_w8a16(codes, torch.ones(4, 3), group=24)
    with pytest.raises(KernelInputError, match=r"scales have shape \(4, 1\); expected \(4, 2\)"):
        pack_w8a16(codes, scales, group=32)
    with pytest.raises(KernelInputError, match="zero kind is 'int' but zeros are absent"):
        pack_w8a16(codes, scales, zero="int")
    assert w8a16_linear(torch.ones(0, 64).half(), packed).shape == (0, 4)
