"""Answers with forced tokens: the text is the same, in fewer steps, whatever else happens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sampling_rows import fresh_rng
from test_sampler_forced import Line

from halfbyte import Completion, Engine, SamplingParams
from halfbyte.engine.request import FinishReason

VOCAB = 600


class Wide(Line):
    """The same over the vocabulary of the tiny model."""

    def mask(self) -> Any:
        bits = torch.zeros(608, dtype=torch.uint8)
        bits[list(self.text[self.at] if not self.ended else {2})] = 1
        weights = 2 ** torch.arange(8, dtype=torch.uint8)
        return (bits.view(-1, 8) * weights).sum(-1).to(torch.uint8).view(torch.int32).numpy()


class Text:
    """A compiled grammar of one text."""

    def __init__(self, text: Sequence[set[int]]) -> None:
        self.text = text

    def start(self) -> Any:
        return Wide(self.text)


def random_text(rng: random.Random, length: int) -> Text:
    """Places with one token, and every third or so with several."""
    return Text([set(rng.sample(range(5, VOCAB), rng.choice([1, 1, 4]))) for _ in range(length)])


Wanted = tuple[list[int], SamplingParams, Text]


def run(engine: Engine, wanted: Sequence[Wanted]) -> list[Completion]:
    """Answers, each within its grammar, in one batch."""
    loop, ends = engine._loop, {}
    names = [loop.submit(ids, params, grammar=text) for ids, params, text in wanted]  # type: ignore[arg-type]
    while engine.has_work():
        ends |= {d.request_id: d.completion for d in engine.step() if d.completion is not None}
    loop.scheduler.check()
    assert engine.stats().kv_blocks_used == 0
    return [ends[name] for name in names]


def make(model: Path, **options: Any) -> Engine:
    usual: dict[str, Any] = {"max_context": 96, "block_size": 16, "threads": 1, "max_batch": 4}
    given: dict[str, Any] = {**usual, "max_batch_tokens": 48, "max_step_ms": 0, **options}
    return Engine(model, exact=True, **given)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("kv_tokens", [0, 112])
def test_forced_answers_are_those_drawn_token_by_token(
    tiny_hf: Path, overlap: bool, kv_tokens: int
) -> None:
    """Asking for log-probabilities, nothing is forced. Also with choices, and too little memory."""
    rng = fresh_rng()
    wanted: list[Wanted] = []
    for length, most, n in ((40, None, 1), (50, 31, 1), (30, None, 3)):
        ids = [1, *(rng.randrange(5, VOCAB) for _ in range(rng.randint(5, 30)))]
        params = SamplingParams(max_tokens=most, seed=rng.getrandbits(40), n=n)
        wanted.append((ids, params, random_text(rng, length)))
    with make(tiny_hf) as engine:
        one_by_one = [(ids, replace(p, logprobs=0), text) for ids, p, text in wanted]
        want = run(engine, one_by_one)
        steps = engine.stats().steps
    with make(tiny_hf, overlap=overlap, kv_tokens=kv_tokens) as engine:
        got = run(engine, wanted)
        stats = engine.stats()
    assert bool(stats.preemptions) == bool(kv_tokens)
    if not kv_tokens:
        assert stats.steps < steps
    for done, other, (_, params, text) in zip(got, want, wanted, strict=True):
        assert done.token_ids == other.token_ids and done.text == other.text
        assert [c.token_ids for c in done.choices] == [c.token_ids for c in other.choices]
        ended = params.max_tokens is None
        assert done.finish_reason is (FinishReason.STOP if ended else FinishReason.LENGTH)
        assert len(done.token_ids) == (len(text.text) + 1 if ended else params.max_tokens)
        assert all(t in one for t, one in zip(done.token_ids, text.text, strict=False))


@pytest.mark.parametrize("overlap", [False, True])
def test_a_stop_among_forced_tokens_ends_the_answer(tiny_hf: Path, overlap: bool) -> None:
    """By an id, by a string over some of them, or by the context's end."""
    rng = fresh_rng()
    # Whole characters, as pieces of words have them and bytes have not.
    text = Text([{rng.randrange(300, VOCAB)} for _ in range(90)])
    forced = [next(iter(one)) for one in text.text]
    prompt = [1, *forced[:3]]
    with make(tiny_hf, overlap=overlap) as engine:
        (whole,) = run(engine, [(prompt, SamplingParams(max_tokens=None), text)])
        stop = SamplingParams(max_tokens=None, stop_token_ids=[forced[40]])
        (by_id,) = run(engine, [(prompt, stop, text)])
        wide = engine.tokenizer.decode(forced[20:23], continuation=True)
        (by_text,) = run(engine, [(prompt, SamplingParams(max_tokens=None, stop=wide), text)])
    place = forced.index(forced[40])
    assert whole.token_ids == [*forced, 2][:92] and whole.finish_reason is FinishReason.STOP
    assert by_id.token_ids == forced[: place + 1] and by_id.stop_reason == forced[40]
    assert by_text.stop_reason == wide and by_text.text == whole.text[: whole.text.index(wide)]
    assert by_text.token_ids == forced[: len(by_text.token_ids)] and len(by_text.token_ids) <= 23
