"""Readers: what they make of a prompt, however it is cut, and though pieces come again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import get_args

import pytest
import torch
from sampling_rows import fresh_rng
from torch import Tensor

from halfbyte.engine.request import PromptReader, Sampled
from halfbyte.engine.run.readers import LogitsReader, LogprobReader, Pooling, PoolingReader
from halfbyte.errors import HalfbyteError

VOCAB = 40


def pieces(rng: random.Random, length: int, begin: int = 0) -> Iterator[tuple[int, int]]:
    """Positions ``begin`` to ``length`` in chunks; twice the prompt is put back on the way."""
    put_back = {rng.randint(begin, length) for _ in range(2)}
    at = begin
    while at < length:
        count = rng.randint(1, min(7, length - at))
        yield at, count
        at += count
        if put_back and at >= min(put_back):
            put_back.remove(min(put_back))
            at = begin


def show(reader: PromptReader, rows_TC: Tensor, rng: random.Random) -> None:
    """All chunks, in a buffer that the next one overwrites."""
    for start, count in pieces(rng, len(rows_TC), reader.begin):
        buffer = rows_TC[start : start + count].clone()
        reader.read(start, buffer)
        buffer.fill_(torch.nan)


def test_logits_are_kept_as_they_were() -> None:
    rng = fresh_rng()
    for dtype in (torch.float32, torch.bfloat16):
        logits_TV = torch.randn(rng.randint(1, 40), VOCAB).to(dtype)
        reader = LogitsReader()
        show(reader, logits_TV, rng)
        assert torch.equal(reader.logits, logits_TV.float()) and not reader.hidden
        assert reader.seen == len(logits_TV)


def test_log_probabilities_of_each_token_but_the_first() -> None:
    rng = fresh_rng()
    for _ in range(20):
        length, count = rng.randint(1, 30), rng.choice([0, 1, 5])
        ids = [rng.randrange(VOCAB) for _ in range(length)]
        logits_TV = torch.randn(length, VOCAB)
        rows = logits_TV.log_softmax(-1)
        reader = LogprobReader(ids, count)
        show(reader, logits_TV, rng)
        rated = reader.prompt()
        assert rated[0] is None and len(rated) == length
        for place, sampled in enumerate(rated[1:]):
            assert isinstance(sampled, Sampled) and sampled.token == ids[place + 1]
            assert sampled.logprob == float(rows[place, sampled.token])
            best = rows[place].topk(count)
            assert [p for _, p in sampled.top] == best.values.tolist()
        if count:
            score = reader.score()
            assert score.token_ids == ids and len(score.top_ids) == length
            assert score.logprobs == [None, *(s.logprob for s in rated if s)]
            assert score.top_ids == [None, *(s.top[0][0] for s in rated if s)]
            assert score.top_logprobs == [None, *(s.top[0][1] for s in rated if s)]


def test_log_probabilities_from_a_position_on() -> None:
    """Those of the tokens after it; nobody looks at what is before."""
    rng = fresh_rng()
    for _ in range(20):
        length = rng.randint(2, 30)
        begin = rng.randrange(length)
        ids = [rng.randrange(VOCAB) for _ in range(length)]
        logits_TV = torch.randn(length, VOCAB)
        whole, part = LogprobReader(ids, 1), LogprobReader(ids, 1, begin=begin)
        show(whole, logits_TV, rng)
        show(part, logits_TV, rng)
        assert part.prompt() == (*[None] * (begin + 1), *whole.prompt()[begin + 1 :])


POOLED: dict[Pooling, Callable[[Tensor], Tensor]] = {
    "mean": lambda x_TD: x_TD.mean(0),
    "last": lambda x_TD: x_TD[-1],
    "cls": lambda x_TD: x_TD[0],
}


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_hidden_states_are_pooled(pooling: Pooling) -> None:
    rng = fresh_rng()
    for dtype in (torch.float32, torch.bfloat16):
        states_TD = torch.randn(rng.randint(1, 60), 16).to(dtype)
        reader = PoolingReader(pooling)
        show(reader, states_TD, rng)
        want_D = POOLED[pooling](states_TD.double())
        got_D = reader.pooled(normalize=False)
        assert reader.hidden and got_D.dtype == torch.float32
        # Sums in float64, rounded once to float32.
        assert torch.allclose(got_D.double(), want_D, rtol=1e-7, atol=1e-12)
        unit_D = reader.pooled(normalize=True)
        assert float(unit_D.double().norm()) == pytest.approx(1, abs=1e-6)
        assert torch.allclose(unit_D.double(), want_D / want_D.norm(), rtol=1e-6, atol=1e-9)


def test_a_mean_of_large_numbers_keeps_the_small_ones() -> None:
    """In float32 ten thousand ones would vanish beside one large number."""
    states_TD = torch.ones(10_001, 1)
    states_TD[0] = 2.0**30
    reader = PoolingReader("mean")
    reader.read(0, states_TD)
    want = (2.0**30 + 10_000) / 10_001
    assert float(reader.pooled(normalize=False)) == pytest.approx(want, rel=1e-7)


def test_a_chunk_that_was_left_out_is_noticed() -> None:
    for reader in (LogitsReader(), LogprobReader([1] * 9, 1), PoolingReader("last")):
        reader.read(0, torch.randn(3, VOCAB))
        with pytest.raises(AssertionError, match="left out"):
            reader.read(4, torch.randn(2, VOCAB))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_is_not_read(bad: float) -> None:
    """A row of logits is as good as none with one NaN, or without a finite largest one."""
    rng = fresh_rng()
    rows = torch.randn(6, VOCAB)
    rows[3] = bad
    ids = [rng.randrange(VOCAB) for _ in range(6)]
    for reader in (LogitsReader(), LogprobReader(ids, 1), PoolingReader("mean")):
        reader.read(0, rows[:3])
        with pytest.raises(HalfbyteError, match="not finite"):
            reader.read(3, rows[3:])
        assert reader.seen == 3
