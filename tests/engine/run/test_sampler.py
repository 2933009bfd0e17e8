"""Sampler: what a row draws depends on nothing but that row."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from seeds import fresh_seed
from torch import Tensor

import halfbyte.engine.run.sampler as sampler_module
from halfbyte.engine.backends import make_backend
from halfbyte.engine.config import EngineConfig
from halfbyte.engine.params import SamplingParams
from halfbyte.engine.request import Sampled
from halfbyte.engine.run.sampler import BROKEN, Sampler
from halfbyte.engine.run.sampling import RowSampling, sample_row
from halfbyte.kernels import reference as ref

VOCAB = 64


def sampler(valid: int = VOCAB, backend: Any = "reference", **more: Any) -> Sampler:
    return Sampler(valid, make_backend(EngineConfig(backend=backend)).drawer, **more)


def draw(made: Sampler, logits: Tensor, rows: Sequence[RowSampling]) -> list[int | str]:
    """The one token of each row, of which nobody asked the log-probability, or its error."""
    drawn = made(logits, rows)
    assert all(isinstance(one, str) or one == (Sampled(one[0].token),) for one in drawn), drawn
    return [one if isinstance(one, str) else one[0].token for one in drawn]


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
        logit_bias=rng.choice([{}, {}, {3: 4.0, 7: -100.0}]),
        dry_multiplier=rng.choice([0.0, 0.0, 0.8]),
    )


def nudged(one: RowSampling, by: float) -> RowSampling:
    params = one.params
    top_p = params.top_p if params.top_p == 1.0 else params.top_p + by
    return replace(one, params=replace(params, top_p=top_p))


def logits_of(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def test_a_row_draws_the_same_in_any_batch() -> None:
    seed = fresh_seed()
    rng = random.Random(seed)
    for turn in range(60):
        rows = [random_row(rng) for _ in range(rng.randint(2, 9))]
        logits = logits_of(len(rows), seed + turn)
        together = draw(sampler(), logits, rows)
        for i, one in enumerate(rows):
            assert draw(sampler(), logits[i : i + 1], [one]) == [together[i]], one
        order = rng.sample(range(len(rows)), len(rows))
        shuffled = draw(sampler(), logits[order], [rows[i] for i in order])
        assert shuffled == [together[i] for i in order]


def test_draws_vary_with_seed_and_position() -> None:
    logits = torch.zeros(1, VOCAB)
    by_seed = {draw(sampler(), logits, [row([1], seed=s)])[0] for s in range(40)}
    by_position = {draw(sampler(), logits, [row([1] * n)])[0] for n in range(1, 40)}
    assert len(by_seed) > 15 and len(by_position) > 15


@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_padding_of_the_vocabulary_is_never_drawn(temperature: float, penalty: float) -> None:
    """Rows of the embedding beyond the tokenizer's ids may have the best logits of all."""
    logits = torch.zeros(1, VOCAB)
    logits[:, 50:] = 100.0
    for position in range(1, 100):
        one = row([3] * position, temperature=temperature, repetition_penalty=penalty)
        assert draw(sampler(valid=50), logits, [one])[0] in range(50)


@pytest.mark.parametrize("backend", ["reference", "auto", "interpreter"])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
def test_suppressed_tokens_are_never_drawn(backend: Any, temperature: float) -> None:
    """Although their logits are the best; 60 is beyond the valid ids, which is no error."""
    few = Sampler(50, make_backend(EngineConfig(backend=backend)).drawer, {3, 7, 60})
    for top_k in (0, 2):
        logits = torch.zeros(4, VOCAB)
        logits[:, [3, 7]] = 100.0
        rows = [row([3] * n, temperature=temperature, top_k=top_k) for n in range(1, 5)]
        drawn = draw(few, logits.clone(), rows)
        assert not {3, 7} & set(drawn) and all(token in range(50) for token in drawn)
        allowed = logits.clone()
        allowed[:, [3, 7]] = -1e9
        assert drawn == draw(sampler(50), allowed, rows)


def test_prompt_ids_beyond_the_tokenizer_do_not_disturb_penalties() -> None:
    """A prompt of token ids may hold rows that have no token."""
    one = row([3, 60, 61, 2], 3, temperature=0.0, repetition_penalty=2.0, presence_penalty=1.0)
    logits = torch.zeros(1, VOCAB)
    logits[0, 7] = 1.0
    assert draw(sampler(valid=50), logits, [one]) == [7]


def test_greedy_takes_the_first_of_equal_tokens() -> None:
    logits = torch.zeros(3, VOCAB)
    logits[:, 20], logits[:, 40] = 5.0, 5.0
    greedy, warm = row([1], temperature=0.0), row([1], temperature=0.0, presence_penalty=0.1)
    assert draw(sampler(), logits, [greedy] * 3) == [20] * 3
    assert draw(sampler(), logits[:2], [greedy, row([1])])[0] == 20
    assert draw(sampler(), logits[:1], [warm]) == [20]


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
            assert draw(sampler(), logits, [one]) == [ranked[0]]


def test_a_strong_penalty_forbids_repetition() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 5] = 1.0
    text: list[Any] = [9]
    for _ in range(10):
        one = row(text, 1, temperature=0.0, frequency_penalty=2.0)
        text += draw(sampler(), logits, [one])
    assert len(set(text[1:])) == 10


def test_presence_and_frequency_count_the_output_alone() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 5] = 1.0
    in_prompt = row([5, 5, 5], 3, temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0)
    assert draw(sampler(), logits, [in_prompt]) == [5]
    in_output = row([5, 5, 5], 2, temperature=0.0, presence_penalty=2.0)
    assert draw(sampler(), logits, [in_output]) != [5]
    repeated = row([5, 5, 5], 3, temperature=0.0, repetition_penalty=2.0)
    logits[0, 6] = 0.8
    assert draw(sampler(), logits, [repeated]) == [6]


def test_the_draw_is_that_of_the_reference_op() -> None:
    seed = fresh_seed()
    logits = logits_of(1, seed)
    for position in range(1, 50):
        one = row([1] * position, seed=seed, temperature=0.8, top_k=20, top_p=0.9, min_p=0.01)
        want = ref.sample(logits[0], 0.8, 20, 0.9, 0.01, seed, position)
        assert draw(sampler(), logits, [one]) == [want]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_lower_precision(dtype: torch.dtype) -> None:
    """The reference backend may compute in 16 bits; probabilities are float32 all the same."""
    logits = logits_of(2, fresh_seed()).to(dtype)
    rows = [row([1, 2], temperature=0.7, top_p=0.8), row([4], temperature=0.0)]
    assert draw(sampler(), logits, rows) == draw(sampler(), logits.float(), rows)


BACKENDS = pytest.mark.parametrize("backend", ["reference", "auto", "interpreter"])
EXTREMES: dict[str, list[float]] = {
    "temperature": [0.0, 5e-324, 1e-300, 1e-45, 1e-6, 100.0],
    "top_k": [-1, 0, 1, (1 << 31) - 1],
    "top_p": [0.0, 5e-324, 1e-45, 1e-9, 1.0],
    "min_p": [0.0, 5e-324, 1e-45, 1.0],
    "repetition_penalty": [0.01, 1.0, 100.0],
    "presence_penalty": [-2.0, 0.0, 2.0],
    "frequency_penalty": [-2.0, 0.0, 2.0],
    "seed": [-(1 << 63), -2, 0, (1 << 63) - 1],
}


@BACKENDS
def test_every_legal_extreme_draws_a_token(backend: Any) -> None:
    """Large logits, long texts, every field at its ends, alone and all at random."""
    seed = fresh_seed()
    rng = random.Random(seed)
    made = sampler(backend=backend)
    drawn: list[dict[str, Any]] = [{n: v} for n, values in EXTREMES.items() for v in values]
    drawn += [{n: rng.choice(v) for n, v in EXTREMES.items()} for _ in range(30)]
    for size in (1.0, 1e4, 1e30):
        logits = logits_of(len(drawn), seed) * size
        rows = [row([3] * 40 + [5], 1, **given) for given in drawn]
        got = draw(made, logits.clone(), rows)
        for token, given in zip(got, drawn, strict=True):
            assert isinstance(token, int) and 0 <= token < VOCAB, (size, given)


def test_top_p_zero_is_greedy() -> None:
    """Of two equal tokens the first is taken, as at temperature 0."""
    logits = torch.zeros(20, VOCAB)
    logits[:, [20, 40]] = 5.0
    rows = [row([1] * n, top_p=0.0, temperature=2.0) for n in range(1, 21)]
    assert draw(sampler(), logits, rows) == [20] * 20


@BACKENDS
@pytest.mark.parametrize("kind", ["greedy", "warm", "mixed"])
def test_broken_logits_are_the_fault_of_their_row_alone(backend: Any, kind: str) -> None:
    seed = fresh_seed()
    rng = random.Random(seed)
    made = sampler(backend=backend)
    logits = logits_of(6, seed)
    heat = {"greedy": [0.0], "warm": [0.9], "mixed": [0.0, 0.9]}[kind]
    rows = [row([1, 2], seed=i, temperature=heat[i % len(heat)]) for i in range(6)]
    want = draw(made, logits.clone(), rows)
    logits[1, rng.randrange(VOCAB)] = torch.nan
    logits[3] = torch.nan
    logits[4] = -torch.inf
    got = draw(made, logits, rows)
    assert [got[i] for i in (0, 2, 5)] == [want[i] for i in (0, 2, 5)]
    assert [got[i] for i in (1, 3, 4)] == [BROKEN] * 3


def test_a_row_whose_draw_raises_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = fresh_seed()
    logits = logits_of(4, seed)
    rows = [row([1, 2], seed=i) for i in range(4)]
    want = draw(sampler(), logits.clone(), rows)

    def fragile(logits_V: Tensor, one: RowSampling) -> int:
        if one.seed == 2:
            raise ValueError("no such thing")
        return sample_row(logits_V, one)

    monkeypatch.setattr(sampler_module, "sample_row", fragile)
    assert draw(sampler(), logits.clone(), rows) == [
        *want[:2],
        "ValueError: no such thing",
        want[3],
    ]
    # Alone it fails, too, and it is no failure of the step.
    assert draw(sampler(), logits[2:3].clone(), rows[2:3]) == ["ValueError: no such thing"]


def test_a_device_that_fails_for_every_row_is_no_fault_of_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = sampler()

    def lost(*arguments: Any) -> Any:
        raise RuntimeError("device lost")

    monkeypatch.setattr(made.drawer, "argmax", lost)
    with pytest.raises(RuntimeError, match="device lost"):
        draw(made, logits_of(2, 1), [row([1], temperature=0.0)] * 2)


@BACKENDS
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_min_tokens_forbids_what_would_end_the_text(backend: Any, temperature: float) -> None:
    """End ids and stop ids, until so many tokens are there; equal to a draw without them."""
    seed = fresh_seed()
    made = sampler(50, backend, end_tokens=(4, 60))
    for generated in range(4):
        logits = logits_of(3, seed + generated)
        logits[:, [4, 9]] = 50.0
        text = [1] * (2 + generated)
        common: dict[str, Any] = {"temperature": temperature, "min_tokens": 2}
        rows = [
            row(text, 2, stop_token_ids=(9, 61), **common),
            row(text, 2, stop_token_ids=(9,), ignore_eos=True, **common),
            row(text, 2, temperature=temperature),
        ]
        masked = logits.clone()
        if generated < 2:
            masked[0, [4, 9]] = masked[1, 9] = -torch.inf
        free = [row(text, 2, temperature=temperature)] * 3
        assert draw(made, logits, rows) == draw(sampler(50), masked, free), generated


@BACKENDS
def test_where_all_tokens_would_end_the_text_one_is_drawn(backend: Any) -> None:
    made = sampler(backend=backend, end_tokens=(4,))
    logits = logits_of(2, fresh_seed())
    want = logits.argmax(-1).tolist()
    logits[range(2), want] += 1.0  # no two are the best
    all_of_them = tuple(range(VOCAB))
    rows = [
        row([1], temperature=t, top_k=1, min_tokens=5, stop_token_ids=all_of_them)
        for t in (0.0, 1.0)
    ]
    assert draw(made, logits, rows) == want
    assert draw(made, torch.full((2, VOCAB), torch.nan), rows) == [BROKEN] * 2


@pytest.mark.parametrize("backend", ["interpreter", "auto"])
def test_the_backend_draws_what_the_host_draws(backend: Any) -> None:
    """All filters and penalties at once, greedy rows among them, in batches of changing size."""
    seed = fresh_seed()
    rng = random.Random(seed)
    device = sampler(backend=backend)
    for turn in range(12):
        rows = [random_row(rng) for _ in range(rng.randint(1, 6))]
        logits = logits_of(len(rows), seed + turn)
        drawn = draw(device, logits, rows)
        # Where top_p is within rounding of a token's edge, either side of it is right.
        right = [
            draw(sampler(), logits, [nudged(one, x) for one in rows]) for x in (-3e-6, 0.0, 3e-6)
        ]
        for i, one in enumerate(rows):
            assert drawn[i] in {tokens[i] for tokens in right}, one
