"""Paged decode and prefill against float64, on caches whose unwritten places are NaN."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from halfbyte.errors import KernelInputError
from halfbyte.kernels.attention import (
    build_prefill_table,
    check_block_tables,
    decode_attention,
    prefill_attention,
    prefill_block,
)
from halfbyte.kernels.attention import op as attention_op
from halfbyte.kernels.attention.config import (
    EXACT_CHUNK,
    decode_tile,
    length_bucket,
    prefill_tile,
    shared_memory,
    split_count,
)
from halfbyte.kernels.attention.paged import paged_cache
from halfbyte.kernels.attention.reference import paged_attention
from halfbyte.kernels.device.workspace import Workspace

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
I8, F8 = torch.int8, torch.float8_e4m3fn


def check(out, expected, dtype):
    """Probabilities and the result are rounded to the dtype: two roundings of values near 1.

    float32 leaves only the order of the sums and exp2.
    """
    bound = {F16: 1.5e-3, BF16: 1.2e-2, F32: 3e-6}[dtype]
    error = (out.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
    assert error < bound, float(error)


CASES = [
    # heads, kv heads, dim, page, dtype, window, soft cap, codes
    (4, 2, 64, 16, F16, 0, 0.0, None),
    (6, 2, 80, 32, BF16, 0, 0.0, None),
    (4, 1, 96, 16, F32, 20, 0.0, None),
    (3, 3, 128, 64, F16, 70, 5.0, None),
    (8, 1, 64, 128, BF16, 100, 0.0, None),
    (2, 1, 256, 16, BF16, 0, 30.0, None),
    (4, 2, 64, 16, F16, 50, 0.0, I8),
    (3, 1, 80, 32, BF16, 0, 0.0, I8),
    (17, 1, 64, 32, F16, 0, 0.0, None),
    (2, 1, 16, 16, F16, 0, 0.0, I8),
    (2, 1, 256, 32, F16, 40, 20.0, I8),
    (4, 2, 64, 16, F16, 50, 0.0, F8),
    (3, 1, 80, 32, BF16, 0, 0.0, F8),
    (2, 1, 256, 32, F16, 40, 20.0, F8),
]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "page", "dtype", "window", "cap", "codes"), CASES
)
def test_decode(rng, space, heads, kv_heads, dim, page, dtype, window, cap, codes, exact):
    if exact and heads > 6:
        pytest.skip("the exact form differs in its splits only")
    lengths = [1, page, page + 3, 0, 270]
    cache = paged_cache(rng, lengths, kv_heads, page, dim, dtype, codes)
    q = torch.randn(len(lengths), heads, dim, generator=rng).to(dtype)
    positions = torch.tensor(lengths, dtype=torch.int32) - 1
    rows = torch.arange(len(lengths), dtype=torch.int32)
    scale = dim**-0.5
    out = torch.full_like(q, float("nan"))
    result = decode_attention(
        q, cache.k, cache.v, cache.tables, positions, max_length=300, scale=scale, window=window,
        soft_cap=cap, exact=exact, workspace=space, out=out, debug=True, **cache.scales(),
    )  # fmt: skip
    assert result is out
    expected = paged_attention(
        q.double(), cache.true_k, cache.true_v, cache.tables, positions, rows, scale, window, cap
    )
    check(out, expected, dtype)
    assert (out[3] == 0).all()
    assert not space.counters.any()


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "page", "dtype", "window", "cap", "codes"), CASES
)
def test_prefill(rng, heads, kv_heads, dim, page, dtype, window, cap, codes):
    lengths, fresh = [1, page + 2, 110, 20], [1, 5, 27, 20]
    cache = paged_cache(rng, lengths, kv_heads, page, dim, dtype, codes)
    spans, positions, rows, begin = [], [], [], 0
    for row, (length, count) in enumerate(zip(lengths, fresh, strict=True)):
        spans.append((begin, begin + count, length - count))
        positions += range(length - count, length)
        rows += [row] * count
        begin += count
    q = torch.randn(begin, heads, dim, generator=rng).to(dtype)
    block_q = prefill_block(0, heads, kv_heads, page, dim, cache.k.element_size())
    table = build_prefill_table(spans, block_q)
    table = build_prefill_table(spans, block_q, lines=table.shape[0] + 3)
    out = torch.full_like(q, float("nan"))
    prefill_attention(
        q, cache.k, cache.v, cache.tables, table, block_q=block_q, scale=dim**-0.5, window=window,
        soft_cap=cap, out=out, debug=True, **cache.scales(),
    )  # fmt: skip
    expected = paged_attention(
        q.double(), cache.true_k, cache.true_v, cache.tables, torch.tensor(positions),
        torch.tensor(rows), dim**-0.5, window, cap,
    )  # fmt: skip
    check(out, expected, dtype)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("group", "window", "codes"), [(1, 0, None), (4, 50, None), (2, 0, I8), (3, 20, F8)]
)
def test_sinks(rng, space, group, window, codes, exact):
    """Decode in one and in several splits, and prefill: sinks of nothing, little and nearly all."""
    lengths, fresh, page, dim, dtype = [1, 35, 0, 270], [1, 5, 0, 27], 16, 64, F16
    cache = paged_cache(rng, lengths, 2, page, dim, dtype, codes)
    heads, scale = 2 * group, dim**-0.5
    sinks = torch.randn(heads, generator=rng)
    sinks[:2] = torch.tensor([float("-inf"), 6.0])
    options = {"scale": scale, "window": window, "sinks_H": sinks, **cache.scales()}

    def truth(q, positions, rows):
        true = q.double(), cache.true_k, cache.true_v, cache.tables, positions, rows
        return paged_attention(*true, scale, window, 0.0, sinks)

    q = torch.randn(len(lengths), heads, dim, generator=rng).to(dtype)
    positions = torch.tensor(lengths, dtype=torch.int32) - 1
    out = decode_attention(
        q, cache.k, cache.v, cache.tables, positions, max_length=300, exact=exact,
        workspace=space, **options,
    )  # fmt: skip
    expected = truth(q, positions, torch.arange(len(lengths)))
    check(out, expected, dtype)
    assert (out[2] == 0).all()
    alone = decode_attention(
        q[:1], cache.k, cache.v, cache.tables, positions[:1], max_length=1, exact=exact, **options
    )
    check(alone, expected[:1], dtype)
    spans, places, rows, begin = [], [], [], 0
    for row, (length, count) in enumerate(zip(lengths, fresh, strict=True)):
        spans.append((begin, begin + count, length - count))
        places += range(length - count, length)
        rows += [row] * count
        begin += count
    q = torch.randn(begin, heads, dim, generator=rng).to(dtype)
    block_q = prefill_block(0, heads, 2, page, dim, cache.k.element_size())
    table = build_prefill_table(spans, block_q)
    out = prefill_attention(q, cache.k, cache.v, cache.tables, table, block_q=block_q, **options)
    check(out, truth(q, torch.tensor(places), torch.tensor(rows)), dtype)


@pytest.mark.parametrize("splits", [1, 3])
def test_tokens_in_a_list_alone_are_written(rng, splits):
    """A step's tokens are in one tensor, whoever attends for them; a list may have gaps."""
    lengths = [270, 30, 40, 5, 280]
    cache = paged_cache(rng, lengths, 2, 16, 64, F16)
    q = torch.randn(len(lengths), 4, 64, generator=rng).to(F16)
    positions = torch.tensor(lengths, dtype=torch.int32) - 1
    rows = torch.tensor([4, 1, 2, 3, 0], dtype=torch.int32)
    positions = positions[rows.long()]
    call = partial(
        decode_attention, q, cache.k, cache.v, cache.tables, positions, scale=0.125,
        row_index_T=rows, max_length=16 if splits == 1 else 300, exact=True,
    )  # fmt: skip
    if splits == 1:
        cache.tables[:] = cache.tables[:, :1]
        positions.clamp_(max=15)
    listed = torch.tensor([3, -1, 0, 4, -1, -1], dtype=torch.int32)
    whole, out = call(), torch.full_like(q, 7.0)
    call(tokens_S=listed, out=out)
    assert torch.equal(out[[0, 3, 4]], whole[[0, 3, 4]])
    assert (out[[1, 2]] == 7.0).all()


@pytest.mark.parametrize("listed", [False, True])
def test_tokens_that_outgrow_the_workspace_take_several_launches(rng, listed):
    lengths = [270, 30, 0, 5, 300]
    cache = paged_cache(rng, lengths, 2, 16, 64, F16)
    q = torch.randn(len(lengths), 4, 64, generator=rng).to(F16)
    positions = torch.tensor(lengths, dtype=torch.int32) - 1
    chosen = torch.tensor([4, 1, -1, 0, 2], dtype=torch.int32) if listed else None

    def run(**sizes):
        return decode_attention(
            q, cache.k, cache.v, cache.tables, positions, scale=0.125, max_length=300, exact=True,
            tokens_S=chosen, out=torch.full_like(q, 7.0), workspace=Workspace(q.device, **sizes),
        )  # fmt: skip

    whole = run()
    assert torch.equal(run(counters=5), whole)
    assert torch.equal(run(partial_bytes=3 * 4 * 2 * 66 * 4), whole)


def test_exact_results_do_not_depend_on_the_batch(rng):
    lengths = [530, 30, 300, 257]
    cache = paged_cache(rng, lengths, 2, 16, 64, F16)
    q = torch.randn(4, 4, 64, generator=rng).to(F16)
    positions = torch.tensor(lengths, dtype=torch.int32) - 1

    def run(picked, max_length):
        index = torch.tensor(picked)
        return decode_attention(
            q[index], cache.k, cache.v, cache.tables, positions[index], max_length=max_length,
            scale=0.125, row_index_T=index.to(torch.int32), exact=True,
        )  # fmt: skip

    whole = run([0, 1, 2, 3], 600)
    for row, length in enumerate(lengths):
        assert torch.equal(run([row], length)[0], whole[row])
    assert torch.equal(run([1, 3], 1500), whole[[1, 3]])


def test_one_split_needs_no_workspace_and_q_may_be_a_slice_of_qkv(rng):
    cache = paged_cache(rng, [20, 5], 2, 16, 64, F16)
    qkv = torch.randn(2, 8 * 64, generator=rng).to(F16)
    q = qkv[:, : 4 * 64].unflatten(1, (4, 64))
    positions = torch.tensor([19, 4], dtype=torch.int32)
    a = decode_attention(
        q, cache.k, cache.v, cache.tables, positions, max_length=20, scale=0.1, workspace=None
    )
    b = decode_attention(
        q.contiguous(), cache.k, cache.v, cache.tables, positions, max_length=20, scale=0.1
    )
    assert torch.equal(a, b)


def test_split_count_is_bounded_and_ignores_live_lengths():
    assert split_count(132, 8, 32768, False) == 33
    assert split_count(132, 8, 512, False) == 4
    assert split_count(132, 264, 32768, False) == 1
    assert split_count(132, 1, 1, False) == 1
    for pairs in (1, 8, 512):
        assert split_count(108, pairs, 4096, True) == 4096 // EXACT_CHUNK
    assert [length_bucket(n) for n in (1, 256, 257, 5000)] == [256, 256, 512, 8192]


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100, 120])
def test_tiles_are_sane_on_every_architecture(arch):
    for group in (1, 4, 7, 8, 16, 20):
        for page in (16, 32, 64, 128):
            for width in (64, 128, 256):
                tile = decode_tile(arch, group, page, width, 2)
                assert tile.rows >= max(16, group)
                assert tile.num_warps in (1, 2, 4)
                # Buffers of all stages but the one in registers must fit beside the rest.
                buffers = (tile.num_stages - 1) * page * width * 4
                assert buffers <= max(shared_memory(arch) * 0.8, page * width * 4)
                assert prefill_tile(arch, group, page, width, 2).rows >= group


def test_prefill_table_covers_every_token_once_longest_first(rng):
    spans = [(0, 70, 5), (70, 70, 9), (70, 71, 1000), (71, 200, 0)]
    table = build_prefill_table(spans, 32, lines=12)
    assert table.shape == (12, 4) and table.dtype == torch.int32
    lines = table[table[:, 1] > 0].tolist()
    seen = sorted(
        (first + i, position + i, row) for first, n, position, row in lines for i in range(n)
    )
    assert seen == [
        (begin + i, start + i, row)
        for row, (begin, end, start) in enumerate(spans)
        for i in range(end - begin)
    ]
    ends = [n + position for _, n, position, _ in lines]
    assert ends == sorted(ends, reverse=True)
    with pytest.raises(KernelInputError, match="room is for 2"):
        build_prefill_table(spans, 32, lines=2)


def test_debug_names_the_bad_block_table_entry(rng):
    cache = paged_cache(rng, [40, 20], 1, 16, 64, F16)
    cache.tables[0, 2] = 77
    q = torch.zeros(2, 2, 64, dtype=F16)
    positions = torch.tensor([39, 19], dtype=torch.int32)
    with pytest.raises(KernelInputError, match=r"entry 2 of row 0.* is 77; expected 0\.\.6"):
        decode_attention(
            q, cache.k, cache.v, cache.tables, positions, max_length=64, scale=1.0, debug=True
        )
    with pytest.raises(KernelInputError, match="has 999 tokens in 63 blocks"):
        check_block_tables(cache.tables, torch.tensor([999]), 7, 16)
    with pytest.raises(KernelInputError, match="uses line 9"):
        check_block_tables(cache.tables, torch.tensor([1]), 7, 16, torch.tensor([9]))
    with pytest.raises(KernelInputError, match="row has 20 tokens; max_length is 8"):
        decode_attention(
            q[:1], cache.k, cache.v, cache.tables[1:], positions[1:], max_length=8, scale=1.0,
            debug=True,
        )  # fmt: skip


def test_bad_inputs_are_refused_with_numbers(rng, monkeypatch):
    cache = paged_cache(rng, [40], 2, 16, 64, F16)
    q = torch.zeros(1, 4, 64, dtype=F16)
    positions = torch.tensor([39], dtype=torch.int32)

    def run(q=q, k=cache.k, v=cache.v, tables=cache.tables, **kw):
        return decode_attention(
            q, k, v, tables, positions, **{"max_length": 40, "scale": 1.0, **kw}
        )

    with pytest.raises(KernelInputError, match="3 query heads do not divide into 2"):
        run(q=q[:, :3].contiguous())
    with pytest.raises(KernelInputError, match="head_dim is 72"):
        run(q=torch.zeros(1, 4, 72, dtype=F16))
    with pytest.raises(KernelInputError, match=r"k_cache is torch\.bfloat16"):
        run(k=cache.k.to(BF16))
    with pytest.raises(KernelInputError, match="k_scale must be given"):
        run(k=cache.k.to(torch.int8), v=cache.v.to(torch.int8))
    with pytest.raises(KernelInputError, match="scale is 0"):
        run(scale=0.0)
    with pytest.raises(KernelInputError, match=r"block_tables is torch\.int64"):
        run(tables=cache.tables.long())
    with pytest.raises(KernelInputError, match="a KV block has 8 tokens"):
        run(k=cache.k[:, :, :8].contiguous(), v=cache.v[:, :, :8].contiguous())
    monkeypatch.setattr(attention_op, "decode_splits", lambda *a: 2)
    with pytest.raises(KernelInputError, match=r"2 splits need 2112 bytes and 2 .* has 2000"):
        run(workspace=Workspace(q.device, partial_bytes=2000))
