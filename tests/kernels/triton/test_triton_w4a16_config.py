"""The rules that choose a W4A16 kernel; no kernel runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfbyte.kernels.device.choice import turn_splits
from halfbyte.kernels.w4a16 import config
from halfbyte.kernels.w4a16.config import Problem, choose

MIB = 1 << 20


def problem(m, rows=4096, k=4096, group=128, arch=90, **changes):
    values = {"fp16": True, "sms": 132} | changes
    return Problem(m=m, rows=rows, k=k, group=group, arch=arch, **values)


def pick(p, **options):
    return choose(p, partial_bytes=32 * MIB, counters=8192, **options)


@given(
    m=st.integers(1, 5000),
    rows=st.integers(1, 500).map(lambda n: n * 128),
    k=st.integers(1, 30000),
    group=st.sampled_from((0, 32, 64, 128, 256)),
    arch=st.sampled_from((0, 75, 80, 86, 89, 90, 100, 120)),
    exact=st.booleans(),
    sms=st.integers(1, 160),
)
def test_every_choice_can_run(m, rows, k, group, arch, exact, sms):
    p = problem(m, rows, k, group, arch, exact=exact, sms=sms)
    choice = pick(p)
    c = choice.config
    if choice.kernel != "dequantize":
        assert config.fits(rows, c)
        slices = -(-k // 128)
        assert 1 <= c.splits <= slices
        # No split is empty, and each but the last has the same number of slices.
        assert (c.splits - 1) * -(-slices // c.splits) < slices
        tiles = rows // c.bn * (1 if exact else -(-m // c.bm))
        assert c.splits == 1 or tiles * c.splits * c.bm * c.bn * 4 <= 32 * MIB
        assert c.splits == 1 or tiles <= 8192
    others = {"late", "direct", "dequantize"} - {choice.kernel}
    assert set(choice.rejected) == others
    assert all(choice.rejected.values())


def test_few_rows_scale_late_and_many_go_dense():
    kernels = [pick(problem(m, fp16=False)).kernel for m in (1, 16, 32, 33, 512, 513)]
    assert kernels == ["late", "late", "late", "direct", "direct", "dequantize"]
    assert [pick(problem(m)).kernel for m in (8, 9)] == ["late", "direct"]
    assert [pick(problem(m, arch=80)).kernel for m in (32, 33)] == ["late", "direct"]
    assert pick(problem(257, arch=80)).kernel == "dequantize"


@pytest.mark.parametrize("m", [1, 17, 33, 64])
def test_tiles_stay_at_two_warps_where_products_read_tensor_memory(m):
    assert pick(problem(m, arch=100)).config.warps == 2


def test_small_layers_are_split_until_the_machine_is_full():
    assert pick(problem(1)).config.splits > 1
    assert pick(problem(1, rows=57344 * 2)).config.splits == 1


def test_tiles_are_small_where_large_ones_leave_warps_idle():
    assert pick(problem(1)).config.bn == 64
    assert pick(problem(1, gated=True)).config.bn == 128
    assert pick(problem(1, rows=6144)).config.bn == 128
    # A table's key does not say whether a matrix is gated.
    entry = {"kernel": "late", "bm": 8, "bn": 64, "warps": 2, "stages": 4, "splits": 3}
    for gated, bn in ((False, 64), (True, 128)):
        p = problem(1, rows=6144, gated=gated)
        assert pick(p, overrides={config.table_key(p): entry}).config.bn == bn


@given(
    tiles=st.integers(1, 500),
    slices=st.integers(1, 300),
    programs=st.integers(1, 600),
    cap=st.integers(1, 40),
)
def test_splits_by_turns_end_soonest(tiles, slices, programs, cap):
    def spent(splits):
        return -(-tiles * splits // programs) * (-(-slices // splits) + 4)

    chosen = turn_splits(tiles, slices, programs, cap)
    some = range(1, max(1, min(slices // 4, cap)) + 1)
    assert chosen in some
    # Counts that leave a split empty are not asked for.
    sound = [s for s in some if -(-slices // -(-slices // s)) == s]
    assert chosen in sound
    assert spent(chosen) == min(spent(s) for s in sound)


def test_exact_does_not_look_at_the_rows_or_the_table():
    first = pick(problem(1, exact=True))
    entry = {"kernel": "direct", "bm": 64, "bn": 128, "warps": 8, "stages": 3, "splits": 1}
    for m in (2, 40, 3000):
        p = problem(m, exact=True)
        other = pick(p, overrides={config.table_key(p): entry})
        assert other.config == first.config
        assert other.source == "exact"


def test_an_override_wins_and_says_so():
    p = problem(3)
    entry = {"kernel": "direct", "bm": 16, "bn": 128, "warps": 4, "stages": 2, "splits": 7}
    choice = pick(p, overrides={config.table_key(p): entry})
    assert choice.kernel == "direct"
    assert choice.config.splits == 7
    assert choice.source == "sm90 m8 4096x4096 g128 fp16"
    assert "override" in choice.rejected["late"]


@pytest.mark.parametrize(("m", "bucket"), [(1, 8), (8, 8), (9, 16), (4096, 4096), (99999, 4096)])
def test_buckets(m, bucket):
    assert config.bucket(m) == bucket


def test_reasons_name_the_numbers():
    choice = pick(problem(700))
    assert choice.kernel == "dequantize"
    assert "700 rows" in choice.rejected["late"]
    assert "512" in choice.rejected["late"]
