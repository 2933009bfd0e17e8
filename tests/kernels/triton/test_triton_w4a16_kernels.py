"""The W4A16 product against float64: every kernel, group, table form and epilogue."""

from __future__ import annotations

import pytest
import torch
from triton_w4a16_support import check, make, poisoned, tile

from halfbyte.errors import KernelInputError
from halfbyte.kernels import reference as common_reference
from halfbyte.kernels.device.parts import JOINED_PARTS
from halfbyte.kernels.w4a16 import op
from halfbyte.kernels.w4a16.cases import Always
from halfbyte.kernels.w4a16.config import W4A16Config
from halfbyte.kernels.w4a16.reference import dequantize, w4a16_linear_reference


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("zero", ["none", "int", "float"])
@pytest.mark.parametrize("group", [32, 64, 96, 128, 256, -1])
def test_late_scaling(group, zero, dtype):
    weight = make(70, 270, group, zero, half=group != 64)
    check(weight, 5, dtype, overrides=tile("late", 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("zero", ["none", "int", "float"])
@pytest.mark.parametrize(
    ("group", "planes"), [(32, 2), (64, 1), (64, 2), (128, 2), (256, 1), (-1, 1)]
)
def test_scaling_in_registers(group, planes, zero, dtype, monkeypatch):
    """One plane of codes a product, or two as where warp groups multiply."""
    monkeypatch.setattr(op, "joined_planes", lambda config, arch: planes)
    weight = make(70, 270, group, zero, half=group != 64)
    check(weight, 5, dtype, overrides=tile("direct", 16))


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("group", [32, 128])
def test_tiles_of_one_atom(group, splits):
    weight = make(140, 5 * 128 - 6, group, "int")
    entry = tile("late", 8, splits) | {"bn": 64}
    check(weight, 5, torch.float16, bias=True, residual=True, overrides=entry)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("group", "zero", "half"),
    [(32, "float", False), (64, "int", True), (128, "none", True), (-1, "int", False)],
)
def test_dequantization_is_correctly_rounded(group, zero, half, dtype):
    weight = make(70, 270, group, zero, half=half)
    got = op.dequantize(weight, dtype)[:70]
    want = dequantize(weight, torch.float32)
    if dtype == torch.float16 and zero != "float":
        assert torch.equal(got, want.half())
        return
    # The interpreter cuts bf16 off where a GPU rounds, and float32 rounds the product of an added
    # offset apart: one unit in the last place.
    last = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10
    assert torch.allclose(got.float(), want, rtol=last, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kernel", ["late", "direct", "dequantize"])
def test_epilogues(kernel, gated, bias, residual, dtype):
    weight = make(140, 130, 64, "int", gated=gated)
    entry = tile(kernel, 16)
    workspace = poisoned(scratch_bytes=128 * 130 * 2)
    check(weight, 3, dtype, bias=bias, residual=residual, overrides=entry, workspace=workspace)


@pytest.mark.parametrize("kernel", ["late", "direct"])
@pytest.mark.parametrize("splits", [2, 3, 5])
def test_splits_add_up_and_counters_return_to_zero(kernel, splits):
    weight = make(150, 5 * 128 - 6, 64, "int", gated=splits == 3)
    workspace = poisoned()
    for m in (9, 4):
        entry = tile(kernel, 8, splits)
        check(weight, m, torch.float16, bias=True, overrides=entry, workspace=workspace)


@pytest.mark.parametrize("m", [1, 3, 8])
def test_parts_are_added_in_their_order(m):
    """More splits than are loaded at once; each bit is that of the sum from the first on."""
    splits, n = JOINED_PARTS + 3, 70
    weight = make(n, splits * 128, 128, "int")
    x = torch.randn(m, weight.features).half()
    whole = poisoned()
    entry = Always(tile("late", 8, splits))
    got = op.w4a16_linear(x, weight, overrides=entry, workspace=whole)
    parts = whole.partials[: splits * 8 * 128].view(splits, 8, 128)[:, :m, :n]
    assert bool(whole.partials.view(-1, 8, 128)[:splits, m:].isnan().all()), "a dead row was stored"
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    assert torch.equal(got, total.half())


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (2, 65, 31), (17, 129, 129), (40, 3, 200)])
def test_odd_shapes_by_the_rules(m, n, k):
    for dtype in (torch.float16, torch.bfloat16):
        check(make(n, k, 32, "int"), m, dtype)
        check(make(n, k, 128, "float"), m, dtype)


def test_late_scaling_is_more_exact_than_rounded_weights():
    weight = make(64, 1024, 128, "int")
    x = torch.randn(4, 1024).half()
    want = w4a16_linear_reference(x, weight)
    out = op.w4a16_linear(x, weight, workspace=poisoned())
    # The sum carries no error above the rounding of the result, half a unit in the last place.
    assert torch.allclose(out.double(), want, rtol=2.0**-11 * 1.05, atol=1e-3 * float(want.std()))


def test_huge_padding_and_foreign_rows_do_not_leak():
    weight = make(66, 200, 64, "int")
    x = torch.randn(3, 200).half()
    alone = op.w4a16_linear(x[:1].clone(), weight, exact=True, workspace=poisoned())
    x[1:] = 6e4
    both = op.w4a16_linear(x, weight, exact=True, workspace=poisoned())
    assert torch.equal(alone[0], both[0])


def test_exact_rows_do_not_depend_on_the_batch():
    weight = make(66, 9 * 128 - 8, 64, "int")
    x = torch.randn(20, 9 * 128 - 8).half()
    workspace = poisoned()
    whole = op.w4a16_linear(x, weight, exact=True, workspace=workspace)
    for start, stop in ((0, 1), (3, 20)):
        part = op.w4a16_linear(x[start:stop].clone(), weight, exact=True, workspace=workspace)
        assert torch.equal(part, whole[start:stop])
    # A workspace with room for one token tile at a time makes the same sums, launch by launch.
    choice = op.choice_for(x, weight, exact=True, workspace=workspace)
    assert choice.config.splits > 1
    room = choice.config.splits * choice.config.bm * 128 * 4
    small = poisoned(partial_bytes=room, counters=1)
    assert torch.equal(op.w4a16_linear(x, weight, exact=True, workspace=small), whole)


def test_residual_may_be_the_output():
    weight = make(70, 128, 64, "none")
    x, r = torch.randn(2, 128).half(), torch.randn(2, 70).half()
    want = op.w4a16_linear(x, weight, residual=r)
    got = op.w4a16_linear(x, weight, residual=r, out=r)
    assert got is r
    assert torch.equal(got, want)


def test_gated_result_is_the_plain_silu_of_the_shared_reference():
    weight = make(192, 128, 32, "int", gated=True)
    x = torch.randn(2, 128).half()
    y = x.double() @ dequantize(weight).T
    want = common_reference.gated_mul(y)
    got = op.w4a16_linear(x, weight, activation="silu_mul")
    assert torch.allclose(got.double(), want, rtol=1e-2, atol=1e-3)


def test_no_rows():
    weight = make(70, 128, 64, "none")
    assert op.w4a16_linear(torch.empty(0, 128).half(), weight).shape == (0, 70)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 127).half()}, r"\(2, 127\)"),
        ({"x": torch.zeros(2, 128)}, "float32"),
        ({"x": torch.zeros(128, 2).half().T}, "strides"),
        ({"bias": torch.zeros(69).half()}, r"bias has shape \(69,\)"),
        ({"residual": torch.zeros(2, 71).half()}, r"residual has shape \(2, 71\)"),
        ({"out": torch.zeros(2, 70)}, "out is float32"),
        ({"activation": "silu_mul"}, "gated=False"),
    ],
)
def test_wrong_inputs_are_named(change, words):
    weight = make(70, 128, 64, "none")
    args = {"x": torch.zeros(2, 128).half()} | change
    with pytest.raises(KernelInputError, match=words):
        op.w4a16_linear(args.pop("x"), weight, **args)


def test_a_tile_that_does_not_divide_the_rows_is_refused():
    weight = make(70, 128, 64, "none")
    entry = tile("late", 8) | {"bn": 256}
    with pytest.raises(KernelInputError, match="tile of 256 rows"):
        check(weight, 2, torch.float16, overrides=entry)


def test_scratch_too_small_is_refused():
    weight = make(70, 256, 64, "none")
    workspace = poisoned(scratch_bytes=512)
    with pytest.raises(KernelInputError, match="scratch of 512 bytes"):
        check(weight, 2, torch.float16, overrides=tile("dequantize", 0), workspace=workspace)


def test_config_is_what_the_rules_say():
    weight = make(70, 256, 64, "none")
    x = torch.zeros(2, 256).half()
    choice = op.choice_for(x, weight, workspace=poisoned())
    assert choice.kernel == "late"
    assert choice.config == W4A16Config(8, 64, 2, 4, 1)
