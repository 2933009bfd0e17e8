"""Paged attention of the C kernels against float64, over poisoned memory, and bit by bit."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pytest
import torch
from cpu_support import make_ops, needs_compiler, run
from seeds import fresh_seed
from statistics_support import generator
from torch import Tensor

from halfbyte.engine.backends.base import AttentionShape
from halfbyte.engine.backends.cpu_c import CompiledOps
from halfbyte.engine.run.kv_cache import KVCache, LayerKV, StateSpec
from halfbyte.engine.run.step import RowSpan, StepInputs
from halfbyte.kernels import reference as ref
from halfbyte.kernels.formats.activations import dequantize_kv, quantize_kv

pytestmark = needs_compiler

KV_TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]
CONTEXTS = [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300]
# Scores are float32 sums of E products of N(0, 1) numbers, scaled to about N(0, 1): an error of
# some sqrt(E) * 2**-24 = 7e-7 each. Ten times that is still far below a key left out, 1 / 300.
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


@dataclass
class Text:
    """Queries, keys and values of one text: q [L, H, E], k and v [J, L, E]."""

    q: Tensor
    k: Tensor
    v: Tensor

    @property
    def length(self) -> int:
        return self.q.shape[0]

    @cached_property
    def rounded(self) -> list[tuple[Tensor, Tensor]]:
        """Codes [L, J, E] and scales [L, J] of the keys and of the values in an int8 cache."""
        return [quantize_kv(x.transpose(0, 1)) for x in (self.k, self.v)]


def make_text(length: int, shape: AttentionShape, seed: int) -> Text:
    g = generator(seed)
    kv = (2, shape.kv_heads, length, shape.head_dim)
    keys = torch.randn(kv, generator=g)
    return Text(torch.randn(length, shape.heads, shape.head_dim, generator=g), keys[0], keys[1])


class Memory:
    """A KV cache of NaN, or of large codes with NaN scales, in which texts take shuffled blocks."""

    def __init__(
        self, shape: AttentionShape, blocks: int, size: int, seed: int, dtype: torch.dtype
    ) -> None:
        side = (shape.kv_heads, shape.head_dim)
        cache = KVCache([StateSpec((side, side))] * 2, blocks, size, dtype)
        self.kv = LayerKV(*cache.states[1].tokens)
        self.size = size
        for state in cache.states:
            for kept in state.tokens:
                kept.fill_(-128 if kept.dtype == torch.int8 else torch.nan)
        # Block 0 stays NaN: tables are padded with it.
        self.free = list(range(1, blocks))
        random.Random(seed).shuffle(self.free)

    def place(self, text: Text, length: int) -> list[int]:
        """The first ``length`` keys and values in memory; returns the block table."""
        table = [self.free.pop() for _ in range(-(-length // self.size))]
        slots = torch.tensor(table).repeat_interleave(self.size)[:length] * self.size
        slots += torch.arange(length) % self.size
        k, v = (x[:, :length].transpose(0, 1) for x in (text.k, text.v))
        if self.kv.k_scale is not None and self.kv.v_scale is not None:
            (k, k_scale), (v, v_scale) = [(c[:length], s[:length]) for c, s in text.rounded]
            ref.write_scales(k_scale, v_scale, self.kv.k_scale, self.kv.v_scale, slots)
        ref.write_kv(k, v, self.kv.k, self.kv.v, slots)
        return table


def make_step(rows: list[tuple[list[int], int, int]], width: int) -> StepInputs:
    """Rows of (block table, first position, count), tables padded to ``width``."""
    tables = torch.zeros(len(rows), width, dtype=torch.int32)
    positions, index, spans, begin = [], [], [], 0
    for number, (table, start, count) in enumerate(rows):
        tables[number, : len(table)] = torch.tensor(table)
        positions += range(start, start + count)
        index += [number] * count
        spans.append(RowSpan(begin, begin + count, start))
        begin += count
    p = torch.tensor(positions, dtype=torch.int32)
    return StepInputs(
        p.long(),
        p,
        torch.empty(0),
        p.long(),
        torch.tensor(index, dtype=torch.int32),
        tables,
        spans,
        None,
    )


def attend(
    ops: CompiledOps,
    shape: AttentionShape,
    pieces: list[tuple[Text, int, int]],
    size: int,
    seed: int,
    kv: torch.dtype,
) -> list[Tensor]:
    """Attention of one step over (text, first position, count); keys beyond are NaN."""
    need = sum(-(-(start + count) // size) for _, start, count in pieces)
    memory = Memory(shape, need + 3, size, seed, kv)
    rows = [(memory.place(text, start + count), start, count) for text, start, count in pieces]
    step = make_step(rows, max(len(table) for table, _, _ in rows) + seed % 3)
    q = torch.cat([text.q[start : start + count] for text, start, count in pieces])
    out = run(ops, ops.attention, q, shape, memory.kv, step)
    assert out.shape == (len(q), shape.heads * shape.head_dim)
    return list(out.view(q.shape).split([count for _, _, count in pieces]))


def kept(x: Tensor, kv: torch.dtype) -> Tensor:
    """What a cache of a type says of keys or values, float64."""
    if kv == torch.int8:
        return dequantize_kv(*quantize_kv(x), torch.float64)
    return x.to(kv).double()


def truth(shape: AttentionShape, text: Text, start: int, count: int, kv: torch.dtype) -> Tensor:
    end = start + count
    k, v = kept(text.k[:, :end], kv), kept(text.v[:, :end], kv)
    positions = torch.arange(start, end)
    q = text.q[start:end].double()
    rest = shape.window, shape.softcap, shape.sinks
    return ref.attend_row(q, k, v, positions, shape.scale, *rest)


def check(
    ops: CompiledOps,
    shape: AttentionShape,
    pieces: list[tuple[Text, int, int]],
    size: int,
    seed: int,
    kv: torch.dtype | None = None,
) -> None:
    """Against float64 on what a cache holds, of a type that is drawn when not given."""
    kv = kv or random.Random(seed + len(pieces) + pieces[0][2]).choice(KV_TYPES)
    got = attend(ops, shape, pieces, size, seed, kv)
    for out, (text, start, count) in zip(got, pieces, strict=True):
        torch.testing.assert_close(out.double(), truth(shape, text, start, count, kv), **CLOSE)


def shape_of(
    heads: int, kv_heads: int, dim: int, window: int = 0, softcap: float = 0.0
) -> AttentionShape:
    return AttentionShape(heads, kv_heads, dim, dim**-0.5, window, softcap=softcap)


@pytest.mark.parametrize("dim", [16, 20, 64, 80, 128])
@pytest.mark.parametrize("group", [1, 2, 3, 7, 8])
def test_decode_and_prefill_at_every_length(group: int, dim: int) -> None:
    """The last token alone, and the whole text at once."""
    seed = fresh_seed()
    ops, shape = make_ops(), shape_of(2 * group, 2, dim)
    size = [16, 32, 64, 128][seed % 4]
    for length in CONTEXTS:
        text = make_text(length, shape, seed + length)
        kv = KV_TYPES[(seed + length) % 4]
        check(ops, shape, [(text, length - 1, 1)], size, seed, kv)
        check(ops, shape, [(text, 0, length)], size, seed, kv)


@pytest.mark.parametrize("tokens", [1, 16, 80])
@pytest.mark.parametrize("kv", KV_TYPES, ids=str)
def test_many_keys(kv: torch.dtype, tokens: int) -> None:
    """More than two spans of keys: as pieces of a partition, as spans, and in one go."""
    seed = fresh_seed()
    rng = random.Random(seed)
    group, dim = rng.choice([1, 3, 6, 7]), rng.choice([16, 40, 64])
    window = rng.choice([0, 0, rng.randint(1, 2600)])
    shape, length = shape_of(2 * group, 2, dim, window), rng.randint(2100, 2700)
    text = make_text(length, shape, seed)
    size = rng.choice([16, 32, 64, 128])
    check(make_ops(), shape, [(text, length - tokens, tokens)], size, seed, kv)


@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 100, 128, 129, 1000])
@pytest.mark.parametrize("size", [16, 64])
def test_windows(window: int, size: int) -> None:
    seed = fresh_seed()
    ops, shape = make_ops(), shape_of(6, 2, 32, window)
    for length in (1, 16, 40, 129, 300):
        text = make_text(length, shape, seed + length)
        check(ops, shape, [(text, length - 1, 1)], size, seed)
        check(ops, shape, [(text, 0, length)], size, seed)
        start = length // 3
        check(ops, shape, [(text, start, length - start)], size, seed)


@pytest.mark.parametrize("softcap", [0.5, 5.0, 50.0])
@pytest.mark.parametrize("window", [0, 17])
def test_soft_caps(softcap: float, window: int) -> None:
    """Scores of a few, so that caps bend them little, much and flat."""
    seed = fresh_seed()
    ops, shape = make_ops(), shape_of(6, 2, 40, window, softcap)
    for length in (1, 17, 129, 300):
        text = make_text(length, shape, seed + length)
        text.k *= 3
        check(ops, shape, [(text, length - 1, 1)], 16, seed)
        check(ops, shape, [(text, 0, length)], 64, seed)
        crowd = [(text, length - 1, 1)] * 9 + [(text, length // 2, length - length // 2)]
        check(ops, shape, crowd, 32, seed)


@pytest.mark.parametrize("window", [0, 17])
def test_sinks(window: int) -> None:
    """Heads whose sink takes nothing, little, about as much as a key, and nearly everything."""
    seed = fresh_seed()
    sinks = torch.tensor([-torch.inf, -1e30, -5.0, 0.0, 5.0, 200.0])
    sinks[3] += torch.randn((), generator=generator(seed))
    shape = replace(shape_of(6, 2, 40, window), sinks=sinks)
    for length in (1, 17, 129, 300):
        text = make_text(length, shape, seed + length)
        check(make_ops(), shape, [(text, length - 1, 1)], 16, seed)
        check(make_ops(), shape, [(text, 0, length)], 64, seed)
        crowd = [(text, length - 1, 1)] * 9 + [(text, length // 2, length - length // 2)]
        check(make_ops(), shape, crowd, 32, seed)


@pytest.mark.exact
def test_a_sink_that_takes_nothing_changes_no_bit() -> None:
    seed = fresh_seed()
    shape = shape_of(6, 2, 32)
    without = replace(shape, sinks=torch.tensor([-torch.inf, -1e4] * 3))
    for length, count in ((1, 1), (300, 1), (300, 40), (2100, 1)):
        text = make_text(length, shape, seed + length)
        pieces = [(text, length - count, count)]
        got = [attend(make_ops(), s, pieces, 16, seed, torch.float32) for s in (shape, without)]
        assert torch.equal(got[0][0], got[1][0])


@pytest.mark.exact
def test_sinks_do_not_see_the_batch() -> None:
    """Decode, a chunk, a whole prompt and a crowd: the same bits."""
    seed = fresh_seed()
    g = generator(seed)
    shape = replace(shape_of(6, 2, 32), sinks=3 * torch.randn(6, generator=g))
    for length in (40, 300, 1200):
        text, kv = make_text(length, shape, seed), torch.float16
        whole = attend(make_ops(), shape, [(text, 0, length)], 16, seed, kv)[0]
        (alone,) = attend(make_ops(), shape, [(text, length - 1, 1)], 32, seed, kv)
        half = length // 2
        crowd = [(text, length - 1, 1)] * 9 + [(text, half, length - half)]
        mixed = attend(make_ops(), shape, crowd, 64, seed, kv)
        assert torch.equal(whole[-1:], alone) and torch.equal(alone, mixed[0])
        assert torch.equal(whole[half:], mixed[-1])


@pytest.mark.parametrize("window", [0, 48])
def test_mixed_batches(window: int) -> None:
    """Decoding rows, chunks that start anywhere and whole prompts in one step."""
    seed = fresh_seed()
    rng = random.Random(seed)
    for turn in range(40):
        group, dim = rng.choice([1, 2, 3, 4, 7]), rng.choice([16, 20, 64])
        shape = shape_of(group * rng.choice([1, 2, 3]), 1, dim, window)
        shape = shape_of(shape.heads, shape.heads // group, dim, window)
        pieces = []
        for _ in range(rng.randint(1, 12)):
            length = rng.choice(CONTEXTS)
            start = rng.choice([0, length - 1, rng.randrange(length)])
            if turn % 4 == 0:
                start = length - 1  # pure decode
            pieces.append((make_text(length, shape, rng.getrandbits(40)), start, length - start))
        check(make_ops(), shape, pieces, rng.choice([16, 32, 64, 128]), seed + turn)


def test_large_scores() -> None:
    """Keys 40 times longer: most weights vanish, nothing overflows."""
    seed = fresh_seed()
    ops, shape = make_ops(), shape_of(4, 2, 64)
    text = make_text(200, shape, seed)
    text.k *= 40
    for start in (0, 199):
        (got,) = attend(ops, shape, [(text, start, 200 - start)], 64, seed, torch.float16)
        want = truth(shape, text, start, 200 - start, torch.float16)
        # Scores of about 100 carry errors of 100 * 8 * 2**-24, and so do their exponentials.
        torch.testing.assert_close(got.double(), want, rtol=5e-4, atol=5e-4)


@pytest.mark.exact
@pytest.mark.parametrize(
    ("window", "softcap", "kv"),
    [
        (0, 0.0, torch.float16),
        (20, 0.0, torch.bfloat16),
        (130, 0.0, torch.int8),
        (130, 5.0, torch.float32),
    ],
)
@pytest.mark.parametrize(("group", "dim"), [(1, 64), (3, 64), (7, 20), (8, 128), (2, 80)])
def test_decode_prefill_and_chunks_give_the_same_bits(
    group: int, dim: int, window: int, softcap: float, kv: torch.dtype
) -> None:
    seed = fresh_seed()
    rng = random.Random(seed)
    shape = shape_of(2 * group, 2, dim, window, softcap)
    length = 300
    text, other = make_text(length, shape, seed), make_text(170, shape, seed + 1)
    wholes = []
    for threads in (1, 2):
        ops = make_ops(exact=True, threads=threads)
        (whole,) = attend(ops, shape, [(text, 0, length)], 64, seed, kv)
        wholes.append(whole)
        for size, chunk in ((16, 16), (64, 50), (128, 129), (32, 37)):
            for start in range(0, length, chunk):
                count = min(chunk, length - start)
                (got,) = attend(ops, shape, [(text, start, count)], size, seed + start, kv)
                assert torch.equal(got, whole[start : start + count]), (size, start)
        for position in [0, 1, 15, 16, 127, 128, 299, *rng.sample(range(length), 4)]:
            (got,) = attend(ops, shape, [(text, position, 1)], 32, seed + position, kv)
            assert torch.equal(got[0], whole[position]), position
            # Among others: few rows split their keys over threads, many rows do not.
            for count in (3, 12):
                crowd = [(other, rng.randrange(170), 1) for _ in range(count)]
                got, *_ = attend(ops, shape, [(text, position, 1), *crowd], 16, seed, kv)
                assert torch.equal(got[0], whole[position]), (position, count)
            crowd = [(other, 3, 140), (text, position, 1), (other, 100, 9)]
            assert torch.equal(attend(ops, shape, crowd, 64, seed, kv)[1][0], whole[position])
    assert torch.equal(*wholes)


@pytest.mark.exact
@pytest.mark.parametrize("kv", KV_TYPES, ids=str)
def test_bits_do_not_depend_on_how_many_keys_are_split(kv: torch.dtype) -> None:
    """Over several spans: single tokens, few and many in a step, one thread and three."""
    seed = fresh_seed()
    rng = random.Random(seed)
    group, dim = rng.choice([1, 3, 7]), rng.choice([16, 20, 64])
    shape = shape_of(group, 1, dim, rng.choice([0, rng.randint(1000, 2400)]))
    length = rng.randint(2060, 2500)
    text, other = make_text(length, shape, seed), make_text(60, shape, seed + 1)
    (whole,) = attend(make_ops(exact=True), shape, [(text, length - 80, 80)], 64, seed, kv)
    for threads in (1, 3):
        ops = make_ops(exact=True, threads=threads)
        for count in (1, 9, 40):
            position = rng.randint(length - 80, length - count)
            want = whole[position - length + 80 :][:count]
            for crowd in ([], [(other, 40, 1)] * 20, [(other, 0, 60)] * 2):
                got, *_ = attend(ops, shape, [(text, position, count), *crowd], 32, seed, kv)
                assert torch.equal(got, want), (threads, count, len(crowd))
