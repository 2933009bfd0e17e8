"""Codebook weights: NF4, FP4 and tables of rows, blocks of every kind, against float64."""

from __future__ import annotations

import pytest
import torch

from halfbyte.errors import KernelInputError
from halfbyte.kernels.codebook import codebook_linear, dequantize, pack_codebook
from halfbyte.kernels.codebook import reference as ref
from halfbyte.kernels.codebook.layout import unpack_codebook, without_signs
from halfbyte.kernels.formats.code_tables import E2M1, FP4, NF4
from halfbyte.kernels.fragments import config
from halfbyte.kernels.w8a16.reference import linear

HALF = (torch.float16, torch.bfloat16)


def check(y, x, w, expected):
    """One rounding to the dtype, and fp32 sums; the interpreter truncates to bfloat16."""
    eps = torch.finfo(y.dtype).eps * (0.51 if y.dtype == torch.float16 else 1.01)
    error = (y.double() - expected).abs()
    bound = eps * expected.abs() + 2e-6 * (x.double().abs() @ w.abs().T) + 1e-7
    assert (error <= bound).all(), float((error - bound).max())


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("m", "n", "k", "block", "table"),
    [
        (1, 33, 128, 64, NF4),
        (3, 130, 192, 32, FP4),
        (9, 20, 256, 4096, NF4),  # 16 rows share a scale
        (17, 70, 512, 128, NF4),
        (2, 8, 160, 64, FP4),  # blocks straddle rows, in pieces of 32
        (5, 40, 100, -1, None),
    ],
)
def test_product(rng, space, dtype, m, n, k, block, table):
    codes = torch.randint(0, 16, (n, k), generator=rng, dtype=torch.uint8)
    count = n if block == -1 else -(-n * k // block)
    scales = torch.rand(count, generator=rng) + 0.1
    values = torch.randn(n, 16, generator=rng) if table is None else torch.tensor(table)
    packed = pack_codebook(codes, scales, values, block=block)
    assert torch.equal(unpack_codebook(packed), codes)
    w = ref.dequantize(codes, scales, values, block, dtype)
    x = torch.randn(m, k, generator=rng).to(dtype)
    bias = torch.randn(n, generator=rng).to(dtype)
    out = torch.full((m, n), float("nan"), dtype=dtype)
    y = codebook_linear(x, packed, bias=bias, residual=None, out=out, workspace=space)
    assert y is out
    check(y, x, w, linear(x, w, bias))
    dense, limits = dequantize(packed, dtype), torch.finfo(dtype)
    # Below the smallest normal number the distance of numbers is the same everywhere.
    bound = limits.eps * (1.01 * w.abs() + limits.smallest_normal)
    assert ((dense.double() - w).abs() <= bound).all()


def byte_case(rng, kind, n, k, group):
    """(codes [N, K], scales of one byte, factors or None, what they mean in float64)."""
    codes = torch.randint(0, 16, (n, k), generator=rng, dtype=torch.uint8)
    shape, factors = (n, -(-k // group)), None
    if kind == torch.float8_e8m0fnu:
        raw = torch.randint(100, 134, shape, generator=rng, dtype=torch.uint8)
        raw[0, 0] = 0  # subnormal
        scales = torch.exp2(raw.double() - 127)
    else:
        raw = torch.randint(0, 127, shape, generator=rng, dtype=torch.uint8)
        factors = torch.rand(n, generator=rng) * 1e-2 + 1e-3
        scales = raw.view(kind).double() * factors.double()[:, None]
    w = torch.tensor(E2M1, dtype=torch.float64)[codes.long()]
    return codes, raw.view(kind), factors, w * scales.repeat_interleave(group, 1)[:, :k]


MX, NV = torch.float8_e8m0fnu, torch.float8_e4m3fn


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("group", [16, 32])
@pytest.mark.parametrize("kind", [MX, NV], ids=["e8m0", "e4m3"])
def test_products_with_scales_of_a_byte(rng, space, kind, group, dtype):
    """Drawn shapes: ragged rows, K that ends inside of a word of scales, of a slice, of a group."""
    for _ in range(3):
        n, k, m = (int(torch.randint(1, top, (), generator=rng)) for top in (150, 700, 40))
        codes, scales, factors, w = byte_case(rng, kind, n, k, group)
        packed = pack_codebook(codes, scales, E2M1, block=group, factors=factors)
        assert torch.equal(unpack_codebook(packed), codes)
        x = torch.randn(m, k, generator=rng).to(dtype)
        bias = torch.randn(n, generator=rng).to(dtype)
        for exact in (False, True):
            y = codebook_linear(x, packed, bias=bias, exact=exact, workspace=space)
            check(y, x, w, linear(x, w, bias))


@pytest.mark.parametrize("dtype", HALF)
def test_exponents_beyond_float16_scale_sums(rng, space, dtype, monkeypatch):
    """Weights that float16 rounds to 0, or cannot hold, at numbers of rows that go dense."""
    codes, scales, _, _ = byte_case(rng, MX, 70, 256, 32)
    raw = scales.view(torch.uint8)
    raw[:35], raw[35:] = 96, 146  # 2**-31, 2**19
    w = torch.tensor(E2M1, dtype=torch.float64)[codes.long()]
    w *= torch.exp2(raw.double() - 127).repeat_interleave(32, 1)
    x = torch.randn(40, 256, generator=rng).to(dtype)
    x[:, :] *= torch.tensor(2.0**-16)
    packed = pack_codebook(codes, scales, E2M1, block=32)
    monkeypatch.setattr(config, "crossover", lambda arch: 8)
    y = codebook_linear(x, packed, workspace=space)
    want = x.double() @ w.T
    # Small ones are subnormal in float16.
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    error = (y.double() - want).abs()
    sizes = x.double().abs() @ w.abs().T
    assert (error <= 2 * torch.finfo(dtype).eps * sizes + least).all()


@pytest.mark.exact
def test_every_exponent_and_code_is_exact_in_bfloat16(space):
    """The least scale is a subnormal number; inputs of 1024 make all results normal ones."""
    raw = torch.arange(243, dtype=torch.uint8)[:, None]
    codes = torch.arange(16, dtype=torch.uint8).repeat(2).expand(243, 32).contiguous()
    packed = pack_codebook(codes, raw.view(MX), E2M1, block=32)
    want = torch.tensor(E2M1, dtype=torch.float64)[codes.long()] * torch.exp2(raw.double() - 127)
    y = codebook_linear(1024 * torch.eye(32).bfloat16(), packed, workspace=space)
    assert torch.equal(y.double().T, 1024 * want)


@pytest.mark.exact
@pytest.mark.parametrize(("kind", "group"), [(MX, 32), (NV, 16)], ids=["mxfp4", "nvfp4"])
def test_scales_of_a_byte_take_a_byte(rng, kind, group):
    n, k = 128, 4096
    codes, scales, factors, _ = byte_case(rng, kind, n, k, group)
    packed = pack_codebook(codes, scales, E2M1, block=group, factors=factors)
    # Each row has the scales of one slice more, which are read ahead.
    spare, own = 128 // group, 4 * (factors is not None)
    assert packed.nbytes == n * (k // 2 + k // group + spare + own) + 4 * 16


def test_bytes_that_do_not_fit_are_refused(rng):
    codes, scales, factors, _ = byte_case(rng, NV, 4, 64, 16)
    with pytest.raises(KernelInputError, match="groups of 64 with scales of e4m3"):
        pack_codebook(codes, scales, E2M1, block=64, factors=factors)
    with pytest.raises(KernelInputError, match=r"scales have shape \(4, 4\); expected \(4, 2\)"):
        pack_codebook(codes, scales, E2M1, block=32, factors=factors)
    with pytest.raises(KernelInputError, match="factors of rows are those of e4m3 scales"):
        pack_codebook(codes, scales, E2M1, block=16)


@pytest.mark.exact
@pytest.mark.parametrize("group", [16, 32])
def test_codes_take_over_the_signs_of_scales(rng, group):
    n, k = 9, 104
    codes = torch.randint(0, 16, (n, k), generator=rng, dtype=torch.uint8)
    raw = torch.randint(0, 127, (n, -(-k // group)), generator=rng, dtype=torch.uint8)
    raw |= torch.randint(0, 2, raw.shape, generator=rng, dtype=torch.uint8) << 7
    found, scales = without_signs(codes, raw.view(NV), group)
    assert not (scales.view(torch.uint8) & 0x80).any()
    table = torch.tensor(E2M1)
    meant = [
        table[c.long()] * s.float().repeat_interleave(group, 1)[:, :k]
        for c, s in ((codes, raw.view(NV)), (found, scales))
    ]
    assert torch.equal(*meant)
    with pytest.raises(KernelInputError, match="e4m3 scales have signs"):
        pack_codebook(codes, raw.view(NV), E2M1, block=group, factors=torch.ones(n))


def test_registers_hold_the_bytes_of_the_table():
    packed = pack_codebook(torch.zeros(1, 32, dtype=torch.uint8), torch.ones(1), NF4, block=32)
    table = torch.tensor(NF4)
    for lut, dtype in ((packed.lut_fp16, torch.float16), (packed.lut_bf16, torch.bfloat16)):
        words = [w & 0xFFFFFFFF for w in lut[0].tolist()]
        for code in range(16):
            low = words[code // 4] >> (8 * (code % 4)) & 0xFF
            high = words[4 + code // 4] >> (8 * (code % 4)) & 0xFF
            want = int(table[code].to(dtype).view(torch.int16).item()) & 0xFFFF
            assert high << 8 | low == want


def test_register_lookup_picks_every_entry():
    """The prmt sequence of decode.py, step by step, for all pairs of neighbouring codes."""
    low, high = list(range(100, 116)), list(range(200, 216))

    def prmt(a, b, selector):
        source = [*a, *b]
        return [source[selector >> (4 * i) & 7] for i in range(4)]

    for first in range(16):
        for second in range(16):
            word = first | second << 4 | (15 - first) << 8 | (15 - second) << 12
            s, b = word & 0x7777, word >> 1 & 0x4444 | 0x3210
            picked = []
            for t in (low, high):
                x, y = prmt(t[0:4], t[4:8], s), prmt(t[8:12], t[12:16], s)
                picked.append(prmt(x, y, b))
            plane0 = prmt(picked[0], picked[1], 0x5140)
            plane1 = prmt(picked[0], picked[1], 0x7362)
            assert plane0 == [100 + first, 200 + first, 100 + second, 200 + second]
            assert plane1[0::2] == [115 - first, 115 - second]


def test_exact_rows_do_not_depend_on_their_neighbours(rng, space):
    codes = torch.randint(0, 16, (64, 512), generator=rng, dtype=torch.uint8)
    packed = pack_codebook(codes, torch.rand(512, generator=rng), block=64)
    x = torch.randn(20, 512, generator=rng).half()
    together = codebook_linear(x, packed, exact=True, workspace=space)
    alone = codebook_linear(x[18:].contiguous(), packed, exact=True, workspace=space)
    assert torch.equal(alone, together[18:])


def test_input_errors_name_the_numbers():
    codes = torch.zeros(4, 64, dtype=torch.uint8)
    with pytest.raises(KernelInputError, match="3 scales; expected 4 for block 64"):
        pack_codebook(codes, torch.ones(3))
    with pytest.raises(KernelInputError, match="codes go up to 16"):
        pack_codebook(codes + 16, torch.ones(4))
    with pytest.raises(KernelInputError, match=r"table has shape \(1, 8\)"):
        pack_codebook(codes, torch.ones(4), torch.ones(8))
    with pytest.raises(KernelInputError, match="K is 40 with blocks of 64: pieces of 8"):
        pack_codebook(torch.zeros(8, 40, dtype=torch.uint8), torch.ones(5))
