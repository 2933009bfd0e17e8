"""Extremes of every sampling field: refused by name, answered, or ended alone; nothing is held."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine_failures import assert_clean
from torch import Tensor

from halfbyte import Completion, Engine, SamplingParams
from halfbyte.engine.param_table import INT63, Param
from halfbyte.engine.params import table
from halfbyte.engine.request import FinishReason
from halfbyte.errors import RequestError

PROMPT = [1, 50, 60, 70]
OTHER = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(tiny_hf: Path) -> Iterator[Engine]:
    with Engine(tiny_hf, exact=True, max_batch=8, block_size=16, threads=1) as made:
        yield made


@pytest.fixture(scope="module")
def alone(engine: Engine) -> list[int]:
    """What a greedy neighbour draws when nobody is beside it."""
    return engine.generate([PROMPT], OTHER)[0].token_ids


@pytest.fixture
def answer(engine: Engine, alone: list[int]) -> Iterator[Callable[..., Completion]]:
    """Answers a prompt between two neighbours, who must not notice."""

    def run(**fields: Any) -> Completion:
        params = SamplingParams(**{"max_tokens": 3, "seed": 5, **fields})
        first, done, last = engine.generate([PROMPT] * 3, [OTHER, params, OTHER])
        assert first.token_ids == last.token_ids == alone
        json.dumps(done.to_dict(), allow_nan=False)
        return done

    yield run
    engine._loop.scheduler.check()
    assert_clean(engine)


# What a field needs beside it to have an effect, and to be allowed.
BESIDE: dict[str, dict[str, Any]] = {
    "dynatemp_range": {"temperature": 100},
    "dynatemp_exponent": {"dynatemp_range": 0.5},
    "xtc_probability": {"xtc_threshold": 0.001},
    "xtc_threshold": {"xtc_probability": 1.0},
    "mirostat_tau": {"mirostat": 2},
    "mirostat_eta": {"mirostat": 2},
    "dry_base": {"dry_multiplier": 100.0, "dry_allowed_length": 1},
    "dry_allowed_length": {"dry_multiplier": 100.0},
    "dry_penalty_last_n": {"dry_multiplier": 100.0, "dry_allowed_length": 1},
    "min_tokens": {"max_tokens": None},
    "prompt_logprobs": {"logprobs": 20},
}
NUMBERS = {name: p for name, p in table().items() if p.kind in ("number", "whole")}


def inside(name: str, param: Param) -> list[Any]:
    """Values of the range, those at its ends above all."""
    low, high = param.low, param.high
    if param.kind == "whole":
        # Many answers, or a long one, say no more than some.
        ends = {int(low), min(int(high), 9) if name in ("n", "best_of") else int(high)}
        return [*ends, *([None] if param.optional else [])]
    tiny = [v for v in (-0.0, 5e-324, 1e-300, 1e-30) if low <= v <= high]
    return [low, high, math.nextafter(low, high), math.nextafter(high, low), *tiny]


@pytest.mark.parametrize("name", NUMBERS)
def test_the_ends_of_a_range_give_answers(answer: Callable[..., Completion], name: str) -> None:
    for value in inside(name, NUMBERS[name]):
        if name == "mirostat" and value == 1:
            continue
        done = answer(**{**BESIDE.get(name, {}), name: value})
        assert done.error is None, value
        assert done.token_ids or done.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("name", NUMBERS)
def test_beyond_its_range_a_number_is_refused_by_name(name: str) -> None:
    param = NUMBERS[name]
    beyond = [param.low - 1, param.high + 1, math.nan, math.inf, -math.inf, 10**400, True, "1", []]
    beyond += [None] if not param.optional else []
    beyond += [param.low + 0.5] if param.kind == "whole" else []
    for value in beyond:
        with pytest.raises(RequestError) as refused:
            SamplingParams(**{name: value})
        assert refused.value.param == name
        assert refused.value.message.startswith(f"{name} is ")
        assert f"{param.high:g}" in refused.value.message or str(param.high) in str(refused.value)


LONE = "\ud800"
REFUSED: list[tuple[str, Any, str]] = [
    ("stop", [f"x{i}" for i in range(10_000)], "10000 entries; at most 64"),
    ("stop", "a" * 1025, "1 to 1024"),
    ("stop", [""], "1 to 1024"),
    ("stop", [LONE], "surrogate"),
    ("stop", [b"a"], "expected strings"),
    ("stop_token_ids", [7] * 1025, "1025 entries; at most 1024"),
    ("stop_token_ids", [600], "600; the vocabulary ends at 599"),
    ("bad_words", ["a"] * 65, "65 entries; at most 64"),
    ("bad_words", [LONE], "surrogate"),
    ("dry_sequence_breakers", ["a", LONE], "surrogate"),
    ("dry_sequence_breakers", None, "list"),
    ("logit_bias", {i: 1.0 for i in range(100_000)}, "100000 entries; at most 1024"),
    ("logit_bias", {600: 1.0}, "600; the vocabulary ends at 599"),
    ("logit_bias", {-1: 1.0}, "-1; expected a token id"),
    ("logit_bias", {"9" * 5000: 1.0}, "expected a token id"),
    ("logit_bias", {"٣": 1.0}, "expected a token id"),
    ("logit_bias", {5: math.nan}, "[-100, 100]"),
    ("logit_bias", {5: -math.inf}, "[-100, 100]"),
    ("logit_bias", [(5, 1.0)], "mapping"),
    ("allowed_token_ids", [], "empty"),
    ("allowed_token_ids", [5, 600], "600; the vocabulary ends at 599"),
    ("allowed_token_ids", [5] * (1 << 18) + [5], "262145 entries; at most 262144"),
    ("allowed_token_ids", {5}, "list"),
    ("mirostat", 1, "expected 0 or 2"),
    ("dynatemp_range", 1.5, "more than temperature 1"),
    ("processors", [5], "callables"),
    ("processors", [lambda ids, logits: logits] * 17, "at most 16"),
    ("grammar", "root ::= x", "GrammarSpec"),
    ("ignore_eos", 1, "True or False"),
    ("logprobs_mode", [], "'raw' or 'processed'"),
]


@pytest.mark.parametrize(
    ("name", "value", "says"), REFUSED, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(REFUSED)]
)
def test_what_cannot_be_obeyed_is_refused_by_name(
    answer: Callable[..., Completion], name: str, value: Any, says: str
) -> None:
    with pytest.raises(RequestError) as refused:
        answer(**{"dry_multiplier": 1.0, name: value})
    assert refused.value.param == name
    assert name in refused.value.message and says in str(refused.value)


@pytest.mark.parametrize(
    "name", ["top_k", "top_n_sigma", "typical_p", "top_p", "min_p", "xtc_probability"]
)
def test_mirostat_stands_alone(name: str) -> None:
    given: dict[str, Any] = {name: 1 if name == "top_k" else 0.5}
    with pytest.raises(RequestError, match="beside mirostat") as refused:
        SamplingParams(mirostat=2, **given)
    assert refused.value.param == name


def same(value: float) -> Callable[[Sequence[int], Tensor], Tensor]:
    return lambda ids, logits_V: torch.full_like(logits_V, value)


def only(*tokens: int) -> Callable[[Sequence[int], Tensor], Tensor]:
    return lambda ids, logits_V: same(-math.inf)(ids, logits_V).index_fill(
        0, torch.tensor(tokens), 0.0
    )


ANSWERED: dict[str, tuple[dict[str, Any], set[int]]] = {
    "an end alone": ({"allowed_token_ids": [2], "min_tokens": 3}, {2}),
    "an end alone by a processor": ({"processors": [only(2)], "min_tokens": 3}, {2}),
    "an end where a bad word is": (
        {"allowed_token_ids": [320, 281, 2], "bad_words": ["in"], "min_tokens": 2},
        {2},
    ),
    "biased away, but alone": ({"allowed_token_ids": [5], "logit_bias": {5: -100}}, {5}),
    "all biased away": ({"logit_bias": {i: -100 for i in range(600)}}, set(range(600))),
    "a mask over processors": ({"allowed_token_ids": [5, 6], "processors": [same(0.0)]}, {5, 6}),
    "any is above no threshold": (
        {"xtc_probability": 1.0, "xtc_threshold": 0.0, "allowed_token_ids": [5, 6]},
        {5, 6},
    ),
    "equal, in sigmas": ({"top_n_sigma": 1e-300, "processors": [only(5, 6)]}, {5, 6}),
    "equal, typical": ({"typical_p": 0.0, "processors": [only(5, 6)]}, {5, 6}),
    "equal, excluded": ({"xtc_probability": 1.0, "processors": [only(5, 6)]}, {5, 6}),
    "equal, in mirostat": (
        {"mirostat": 2, "mirostat_tau": 0, "processors": [only(5, 6)]},
        {5, 6},
    ),
    "one token": (
        {
            "dynatemp_range": 1.0,
            "top_n_sigma": 1.0,
            "typical_p": 0.5,
            "xtc_probability": 1.0,
            "xtc_threshold": 0.0,
            "allowed_token_ids": [7],
        },
        {7},
    ),
    "huge": ({"processors": [same(3e38)], "allowed_token_ids": [5, 6]}, {5, 6}),
    "double": ({"processors": [lambda ids, x: x.double()], "allowed_token_ids": [5]}, {5}),
    "with a gradient": (
        {"processors": [lambda ids, x: torch.nn.Parameter(x) * 2], "allowed_token_ids": [5]},
        {5},
    ),
    "expanded": ({"processors": [lambda ids, x: torch.zeros(1).expand(600)]}, set(range(600))),
    "long bad words": (
        {"bad_words": [f"{i} the quick brown fox " * 40 for i in range(64)]},
        set(range(600)),
    ),
    "odd breakers": (
        {"dry_multiplier": 1, "dry_sequence_breakers": ["\0", "👩", " ", "▁", "\U0010ffff" * 1024]},
        set(range(600)),
    ),
    "log-probabilities of what is masked": (
        {"logprobs": 20, "logprobs_mode": "processed", "allowed_token_ids": [5, 6]},
        {5, 6},
    ),
    "no grammar": ({"grammar": None, "typical_p": 0.5, "allowed_token_ids": [5, 6]}, {5, 6}),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_odd_wishes_are_obeyed(answer: Callable[..., Completion], name: str) -> None:
    fields, allowed = ANSWERED[name]
    done = answer(**fields)
    assert done.error is None and done.token_ids and set(done.token_ids) <= allowed


class MuteError(Exception):
    """An error whose text fails."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def raising(error: BaseException) -> Callable[[Sequence[int], Tensor], Tensor]:
    def process(ids: Sequence[int], logits_V: Tensor) -> Tensor:
        raise error

    return process


FAILING: dict[str, tuple[dict[str, Any], str]] = {
    "nothing allowed": (
        {"allowed_token_ids": [320, 281], "bad_words": ["in"]},
        "no token may be drawn here",
    ),
    "nothing left": ({"processors": [same(-math.inf)]}, "no token may be drawn here"),
    "nothing likeliest": (
        {"processors": [same(-math.inf)], "temperature": 0},
        "no token may be drawn here",
    ),
    "raises": (
        {"processors": [raising(ValueError("boom"))]},
        "processors[0] raised ValueError: boom",
    ),
    "raises what has no text": ({"processors": [raising(MuteError())]}, "MuteError"),
    "exits": ({"processors": [raising(SystemExit(3))]}, "processors[0] raised SystemExit: 3"),
    "ends a generator": ({"processors": [raising(StopIteration())]}, "StopIteration"),
    "NaN": ({"processors": [same(0.0), same(math.nan)]}, "processors[1] gave a logit of nan"),
    "infinite": ({"processors": [same(math.inf)]}, "processors[0] gave a logit of inf"),
    "too large": (
        {"processors": [lambda ids, x: x.double() * 1e300]},
        "processors[0] gave a logit of inf",
    ),
    "short": ({"processors": [lambda ids, x: x[:5]]}, "gave (5,) torch.float32; expected"),
    "deep": ({"processors": [lambda ids, x: x[None]]}, "gave (1, 600) torch.float32"),
    "nothing": ({"processors": [lambda ids, x: None]}, "gave None; expected float logits (600,)"),
    "whole": ({"processors": [lambda ids, x: x.long()]}, "gave (600,) torch.int64"),
    "an array": ({"processors": [lambda ids, x: x.numpy()]}, "expected float logits (600,)"),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_request_fails_alone_and_says_why(answer: Callable[..., Completion], name: str) -> None:
    fields, says = FAILING[name]
    done = answer(**fields)
    assert done.finish_reason is FinishReason.ERROR and done.token_ids == []
    assert says in (done.error or "")


def test_every_choice_has_its_own_seed(engine: Engine) -> None:
    """Those around -1, which would draw one, and at the end of the range, too."""
    for seed in (-3, -2, INT63 - 1):
        (done,) = engine.generate([PROMPT], n=4, seed=seed, max_tokens=6, ignore_eos=True)
        assert len({tuple(choice.token_ids) for choice in done.choices}) == 4
        assert None not in {choice.seed for choice in done.choices}


def test_long_lists_are_read_once_for_all_choices(
    monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    """128 choices with the longest lists would else hold up the others for many seconds."""
    spelt: list[str] = []
    encode = engine.tokenizer.encode

    def counting(text: str, **options: Any) -> list[int]:
        spelt.append(text)
        return encode(text, **options)

    monkeypatch.setattr(engine.tokenizer, "encode", counting)
    words = [f"{random.getrandbits(64)}" for _ in range(5)]
    (done,) = engine.generate([PROMPT], bad_words=words, n=8, max_tokens=1)
    assert len(done.choices) == 8 and 0 < len(spelt) <= 4 * len(words)
