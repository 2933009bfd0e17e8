"""Sampler: what a row draws depends on nothing but that row."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from halfbyte.engine.backends import make_ops
from halfbyte.engine.config import EngineConfig
from halfbyte.engine.request import SamplingParams
from halfbyte.engine.sampler import Sampler
from halfbyte.engine.sampling import RowSampling
from halfbyte.kernels import reference as ref

VOCAB = 64


def fresh_seed() -> int:
    seed = random.SystemRandom().randrange(1 << 40)
    print("seed", seed)
    return seed


def sampler(valid: int = VOCAB) -> Sampler:
    return Sampler(valid, make_ops(EngineConfig(backend="reference")))


def row(text: list[int], prompt: int = 1, seed: int = 3, **params: Any) -> RowSampling:
    return RowSampling(SamplingParams(**params), seed, len(text), torch.tensor(text), prompt)


def random_row(rng: random.Random) -> RowSampling:
    text = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 30))]
    return row(
        text,
        rng.randint(1, len(text)),
        rng.getrandbits(63),
        temperature=rng.choice([0.0, 0.3, 1.0, 2.5]),
        top_k=rng.choice([0, 0, 1, 10]),
        top_p=rng.choice([1.0, 0.9, 0.2]),
        min_p=rng.choice([0.0, 0.05]),
        repetition_penalty=rng.choice([1.0, 1.3]),
        presence_penalty=rng.choice([0.0, 0.7]),
        frequency_penalty=rng.choice([0.0, -0.4]),
    )


def logits_of(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def test_a_row_draws_the_same_in_any_batch() -> None:
    seed = fresh_seed()
    rng = random.Random(seed)
    for turn in range(60):
        rows = [random_row(rng) for _ in range(rng.randint(2, 9))]
        logits = logits_of(len(rows), seed + turn)
        together = sampler()(logits, rows)
        for i, one in enumerate(rows):
            assert sampler()(logits[i : i + 1], [one]) == [together[i]], one
        order = rng.sample(range(len(rows)), len(rows))
        shuffled = sampler()(logits[order], [rows[i] for i in order])
        assert shuffled == [together[i] for i in order]


def test_draws_vary_with_seed_and_position() -> None:
    logits = torch.zeros(1, VOCAB)
    by_seed = {sampler()(logits, [row([1], seed=s)])[0] for s in range(40)}
    by_position = {sampler()(logits, [row([1] * n)])[0] for n in range(1, 40)}
    assert len(by_seed) > 15 and len(by_position) > 15


@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_padding_of_the_vocabulary_is_never_drawn(temperature: float, penalty: float) -> None:
    """Rows of the embedding beyond the tokenizer's ids may have the best logits of all."""
    logits = torch.zeros(1, VOCAB)
    logits[:, 50:] = 100.0
    for position in range(1, 100):
        one = row([3] * position, temperature=temperature, repetition_penalty=penalty)
        assert sampler(valid=50)(logits, [one])[0] < 50


@pytest.mark.parametrize("backend", ["reference", "cpu_native", "interpreter"])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
def test_suppressed_tokens_are_never_drawn(backend: Any, temperature: float) -> None:
    """Although their logits are the best; 60 is beyond the valid ids, which is no error."""
    few = Sampler(50, make_ops(EngineConfig(backend=backend)), {3, 7, 60})
    for top_k in (0, 2):
        logits = torch.zeros(4, VOCAB)
        logits[:, [3, 7]] = 100.0
        rows = [row([3] * n, temperature=temperature, top_k=top_k) for n in range(1, 5)]
        drawn = few(logits.clone(), rows)
        assert not {3, 7} & set(drawn) and all(0 <= token < 50 for token in drawn)
        allowed = logits.clone()
        allowed[:, [3, 7]] = -1e9
        assert drawn == sampler(50)(allowed, rows)


def test_prompt_ids_beyond_the_tokenizer_do_not_disturb_penalties() -> None:
    """A prompt of token ids may hold rows that have no token."""
    one = row([3, 60, 61, 2], 3, temperature=0.0, repetition_penalty=2.0, presence_penalty=1.0)
    logits = torch.zeros(1, VOCAB)
    logits[0, 7] = 1.0
    assert sampler(valid=50)(logits, [one]) == [7]


def test_greedy_takes_the_first_of_equal_tokens() -> None:
    logits = torch.zeros(3, VOCAB)
    logits[:, 20], logits[:, 40] = 5.0, 5.0
    greedy, warm = row([1], temperature=0.0), row([1], temperature=0.0, presence_penalty=0.1)
    assert sampler()(logits, [greedy] * 3) == [20] * 3
    assert sampler()(logits[:2], [greedy, row([1])])[0] == 20
    assert sampler()(logits[:1], [warm]) == [20]


def test_greedy_with_penalties_is_the_argmax_of_penalized_logits() -> None:
    seed = fresh_seed()
    rng = random.Random(seed)
    for turn in range(50):
        text = [rng.randrange(VOCAB) for _ in range(20)]
        logits = logits_of(1, seed + turn)
        one = row(
            text,
            12,
            temperature=0.0,
            repetition_penalty=1.4,
            presence_penalty=0.8,
            frequency_penalty=0.5,
        )
        counts = Counter(text[12:])
        scores = []
        for token, logit in enumerate(logits[0].tolist()):
            if token in text:
                logit = logit / 1.4 if logit > 0 else logit * 1.4
            scores.append(logit - 0.8 * (token in counts) - 0.5 * counts[token])
        ranked = sorted(range(VOCAB), key=lambda i: -scores[i])
        if scores[ranked[0]] - scores[ranked[1]] > 1e-4:
            assert sampler()(logits, [one]) == [ranked[0]]


def test_a_strong_penalty_forbids_repetition() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 5] = 1.0
    text = [9]
    for _ in range(10):
        one = row(text, 1, temperature=0.0, frequency_penalty=2.0)
        text.append(sampler()(logits, [one])[0])
    assert len(set(text[1:])) == 10


def test_presence_and_frequency_count_the_output_alone() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 5] = 1.0
    in_prompt = row([5, 5, 5], 3, temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0)
    assert sampler()(logits, [in_prompt]) == [5]
    in_output = row([5, 5, 5], 2, temperature=0.0, presence_penalty=2.0)
    assert sampler()(logits, [in_output]) != [5]
    repeated = row([5, 5, 5], 3, temperature=0.0, repetition_penalty=2.0)
    logits[0, 6] = 0.8
    assert sampler()(logits, [repeated]) == [6]


def test_the_draw_is_that_of_the_reference_op() -> None:
    seed = fresh_seed()
    logits = logits_of(1, seed)
    for position in range(1, 50):
        one = row([1] * position, seed=seed, temperature=0.8, top_k=20, top_p=0.9, min_p=0.01)
        want = ref.sample(logits[0], 0.8, 20, 0.9, 0.01, seed, position)
        assert sampler()(logits, [one]) == [want]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_lower_precision(dtype: torch.dtype) -> None:
    """The reference backend may compute in 16 bits; probabilities are float32 all the same."""
    logits = logits_of(2, fresh_seed()).to(dtype)
    rows = [row([1, 2], temperature=0.7, top_p=0.8), row([4], temperature=0.0)]
    assert sampler()(logits, rows) == sampler()(logits.float(), rows)


def test_the_sampling_kernel_draws_what_the_host_draws() -> None:
    """All filters and penalties at once, greedy rows among them, in batches of changing size."""
    seed = fresh_seed()
    rng = random.Random(seed)
    device = Sampler(VOCAB, make_ops(EngineConfig(backend="interpreter")))
    for turn in range(12):
        rows = [random_row(rng) for _ in range(rng.randint(1, 6))]
        logits = logits_of(len(rows), seed + turn)
        assert device(logits, rows) == sampler()(logits, rows), rows
