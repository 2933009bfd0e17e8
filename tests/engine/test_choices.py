"""Several answers to one prompt: each is that of a request with its seed, over a shared prompt."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_engine_failures import assert_clean
from torch import Tensor

from halfbyte import Completion, Engine, SamplingParams
from halfbyte.engine.request import Delta, FinishReason, Sampled
from halfbyte.engine.run.model_runner import Forward
from halfbyte.engine.schedule.plan import StepPlan
from halfbyte.errors import RequestError

OVERLAP = pytest.mark.parametrize("overlap", [False, True])
CONTEXT = 160


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "overlap"])
def engine(request: pytest.FixtureRequest, tiny_hf: Path) -> Iterator[Engine]:
    """Of two rows: four choices do not run side by side."""
    with make(tiny_hf, overlap=request.param, max_batch=2) as made:
        yield made
        made._loop.scheduler.check()
        assert_clean(made)


def make(model: Path, **options: Any) -> Engine:
    usual: dict[str, Any] = {"max_context": CONTEXT, "block_size": 16, "threads": 1}
    given: dict[str, Any] = {**usual, "max_batch_tokens": 48, **options}
    return Engine(model, exact=True, **given)


def random_prompt(length: int = 40) -> list[int]:
    return [1, *(random.randrange(5, 600) for _ in range(length - 1))]


def warm(**fields: Any) -> SamplingParams:
    """Random parameters of several kinds; the seed is in the output of a failure."""
    given: dict[str, Any] = {
        "temperature": random.uniform(0.5, 2.0),
        "top_p": random.choice([1.0, 0.9]),
        "repetition_penalty": random.choice([1.0, 1.2]),
        "seed": random.getrandbits(60),
        "max_tokens": 9,
        "ignore_eos": True,
    }
    print("parameters", given)
    return SamplingParams(**(given | fields))


def count_computed(engine: Engine) -> list[int]:
    """Grows by the positions of each step."""
    counts: list[int] = []
    launch = engine._loop.runner.launch

    def counting(plan: StepPlan) -> Forward:
        counts.append(plan.total_tokens)
        return launch(plan)

    engine._loop.runner.launch = counting  # type: ignore[method-assign]
    return counts


def collect(engine: Engine) -> list[Delta]:
    """Run off all that was submitted."""
    deltas: list[Delta] = []
    while engine.has_work():
        deltas += engine.step()
    return deltas


def same_answer(choice: Completion, other: Completion) -> bool:
    """Text, tokens, reasons and the bits of all log-probabilities."""
    names = ("text", "token_ids", "finish_reason", "stop_reason", "seed", "logprobs")
    return all(getattr(choice, n) == getattr(other, n) for n in (*names, "text_offsets"))


def test_choices_are_requests_with_the_next_seeds(engine: Engine) -> None:
    """Beside other prompts, with stop strings, and bit for bit."""
    for extra in (
        {},
        {"mirostat": 2, "top_p": 1.0},
        {"dry_multiplier": 0.5, "xtc_probability": 0.5},
    ):
        ids, params = random_prompt(), warm(logprobs=3, stop=["e", "in"], **extra)
        assert params.seed is not None
        other = warm()
        seeded = [replace(params, seed=params.seed + i) for i in range(4)]
        want = [engine.generate([ids], one)[0] for one in seeded]
        first, done, last = engine.generate(
            [random_prompt(30), ids, ids], [other, replace(params, n=4), other]
        )
        assert len(done.choices) == 4 and not first.choices and not last.choices
        for index, (choice, one) in enumerate(zip(done.choices, want, strict=True)):
            assert choice.index == index and same_answer(choice, one)
        # The completion stands for the first of them.
        assert same_answer(done, want[0]) and done.index == 0
    # Not so that all are one: this model is nearly even at this temperature, over nine tokens.
    (done,) = engine.generate([random_prompt()], warm(temperature=2.0, top_p=1.0, n=4))
    assert len({tuple(choice.token_ids) for choice in done.choices}) > 1


def test_the_prompt_counts_once(tiny_hf: Path) -> None:
    with make(tiny_hf) as engine:
        ids = random_prompt(40)
        (done,) = engine.generate([ids], warm(n=3, max_tokens=4))
        assert done.usage.prompt_tokens == 40 and done.usage.cached_tokens == 0
        assert done.usage.completion_tokens == 12 and done.usage.total_tokens == 52
        assert [c.usage.completion_tokens for c in done.choices] == [4] * 3
        stats = engine.stats()
        assert (stats.prompt_tokens, stats.generation_tokens) == (40, 12)
        assert stats.finished == {"length": 1}
        (again,) = engine.generate([ids], warm(n=2, max_tokens=4))
        # Two whole blocks of 16 tokens, whoever of the choices finds them.
        assert again.usage.cached_tokens == 32 and engine.stats().cached_tokens == 32


def test_greedy_choices_are_all_the_same(engine: Engine) -> None:
    (done,) = engine.generate([random_prompt()], n=3, temperature=0, max_tokens=6, seed=5)
    assert len({tuple(choice.token_ids) for choice in done.choices}) == 1
    assert {choice.seed for choice in done.choices} == {None}


@OVERLAP
def test_choices_share_a_prompt_without_a_prefix_cache(tiny_hf: Path, overlap: bool) -> None:
    ids, params = random_prompt(), warm()
    assert params.seed is not None
    with make(tiny_hf, overlap=overlap, prefix_cache=False, max_batch=8) as engine:
        seeded = [replace(params, seed=params.seed + i) for i in range(4)]
        want = [engine.generate([ids], one)[0].token_ids for one in seeded]
        counts = count_computed(engine)
        (done,) = engine.generate([ids], params, n=4)
        assert [choice.token_ids for choice in done.choices] == want
        # The prompt, its last token for each of the others, and the answers.
        assert sum(counts) == 40 + 3 * 1 + 4 * 8
        assert_clean(engine)


def test_preempted_choices_are_the_same(tiny_hf: Path) -> None:
    ids, params = random_prompt(20), warm(max_tokens=28, logprobs=0)
    with make(tiny_hf, max_batch=8) as roomy:
        (want,) = roomy.generate([ids], params, n=4)
    # Six blocks, of which each choice needs three. No bound of a step's time: who is put back
    # shall not hang on the machine's speed.
    few: dict[str, Any] = {"kv_tokens": 96, "max_context": 64, "max_step_ms": 0}
    for overlap in (False, True):
        with make(tiny_hf, max_batch=8, overlap=overlap, **few) as engine:
            (done,) = engine.generate([ids], params, n=4)
            assert engine.stats().preemptions > 0
            assert all(map(same_answer, done.choices, want.choices))
            engine._loop.scheduler.check()
            assert_clean(engine)


def test_the_best_of_several_come_first(engine: Engine) -> None:
    """By their mean log-probability, which they show only if asked."""
    ids = random_prompt()
    params = warm(max_tokens=None, stop=["e", "a", "in"], logprobs_mode="processed")
    (every,) = engine.generate([ids], replace(params, max_tokens=12), n=6, logprobs=0)

    def mean(choice: Completion) -> float:
        return sum(s.logprob or 0.0 for s in choice.logprobs or ()) / len(choice.token_ids)

    ranked = sorted(every.choices, key=lambda choice: -mean(choice))
    limited = replace(params, max_tokens=12, best_of=6)
    for n in (1, 3):
        (done,) = engine.generate([ids], limited, n=n)
        choices = done.choices if n > 1 else (done,)
        assert [c.token_ids for c in choices] == [c.token_ids for c in ranked[:n]]
        assert [c.seed for c in choices] == [c.seed for c in ranked[:n]]
        assert [c.index for c in choices] == list(range(n))
        assert all(c.logprobs is None and c.text_offsets is None for c in (done, *choices))
        total = sum(len(c.token_ids) for c in every.choices)
        assert done.usage.completion_tokens == total and done.usage.prompt_tokens == len(ids)
    (shown,) = engine.generate([ids], limited, n=2, logprobs=2)
    assert [len(s.top) for c in shown.choices for s in c.logprobs or ()]
    assert all(map(same_rating, shown.choices, ranked))


def same_rating(one: Completion, other: Completion) -> bool:
    """The same tokens with the same log-probabilities."""
    rated = [[(s.token, s.logprob) for s in c.logprobs or ()] for c in (one, other)]
    return rated[0] == rated[1] and len(rated[0]) > 0


class Failing:
    """A processor that fails for a text that has begun with one of these tokens."""

    def __init__(self, length: int, firsts: set[int]) -> None:
        self.length, self.firsts = length, firsts

    def __call__(self, ids: Sequence[int], logits_V: Tensor) -> Tensor:
        if len(ids) > self.length and ids[self.length] in self.firsts:
            raise ValueError("not this one")
        return logits_V


def test_a_choice_that_fails_fails_alone_and_is_never_the_best(engine: Engine) -> None:
    ids, params = random_prompt(), warm(temperature=3.0, top_p=1.0)
    (want,) = engine.generate([ids], params, n=4)
    chosen = {choice.token_ids[0] for choice in want.choices[:2]}
    bad = [choice.token_ids[0] in chosen for choice in want.choices]
    failing = replace(params, processors=[Failing(len(ids), chosen)], n=4)
    (done,) = engine.generate([ids], failing)
    for choice, fails, whole in zip(done.choices, bad, want.choices, strict=True):
        if fails:
            assert choice.finish_reason is FinishReason.ERROR
            assert choice.error == "processors[0] raised ValueError: not this one"
            assert choice.token_ids == whole.token_ids[:1]
        else:
            assert same_answer(choice, whole) and choice.error is None
    assert done.finish_reason is FinishReason.ERROR  # it stands for the first
    if not all(bad):
        (best,) = engine.generate([ids], replace(failing, n=1, best_of=4))
        assert best.error is None and best.finish_reason is FinishReason.LENGTH


def test_a_stream_of_choices(engine: Engine) -> None:
    """Each delta says whose it is; each choice ends once, the whole at the very end."""
    ids, params = random_prompt(), warm(n=3, logprobs=1, stop=["e"])
    (want,) = engine.generate([ids], params)
    *rest, last = engine.stream(ids, params)
    assert all(delta.completion is None for delta in rest)
    assert last.completion is not None
    assert all(map(same_answer, last.completion.choices, want.choices))
    for index, choice in enumerate(last.completion.choices):
        own = [delta for delta in (*rest, last) if delta.index == index]
        assert "".join(delta.text for delta in own) == choice.text
        assert [t for delta in own for t in delta.token_ids] == choice.token_ids
        assert tuple(s for delta in own for s in delta.logprobs) == choice.logprobs
        assert [delta.finish for delta in own if delta.finish] == [choice.finish_reason]
        assert own[-1].finish is not None and own[-1].stop_reason == choice.stop_reason
    assert len({delta.request_id for delta in (*rest, last)}) == 1


def test_choices_are_cancelled_together(engine: Engine) -> None:
    """While one runs and the others wait, and when all run."""
    for steps in (0, 1, 2, 6):
        name = engine.submit(random_prompt(60), warm(n=4, max_tokens=30))
        deltas = [delta for _ in range(steps) for delta in engine.step()]
        engine.cancel(name)
        deltas += collect(engine)
        (done,) = [delta.completion for delta in deltas if delta.completion is not None]
        assert len(done.choices) == 4
        assert {c.finish_reason for c in done.choices} == {FinishReason.CANCELLED}
        assert done.usage.prompt_tokens == 60
        assert sum(delta.finish is not None for delta in deltas) == 4
        engine._loop.scheduler.check()
        assert_clean(engine)


def test_a_closed_stream_cancels_all_choices(engine: Engine) -> None:
    before = engine.stats().finished.get("cancelled", 0)
    stream = engine.stream(random_prompt(), warm(n=4, max_tokens=40))
    next(stream)
    stream.close()
    assert_clean(engine)
    assert engine.stats().finished["cancelled"] == before + 1


def test_an_id_may_come_again_as_soon_as_all_choices_are_done(engine: Engine) -> None:
    """Although, with overlap, the last step of one of them may still be in flight."""
    for seed in range(4):
        # Each choice ends at another token, so that each of them is the last one at times.
        params = warm(n=3, seed=seed, max_tokens=12, stop_token_ids=[*range(5, 150)])
        for _ in range(2):
            engine.submit(random_prompt(10), params, request_id="same")
            with pytest.raises(RequestError, match="'same' is in use"):
                engine.submit(random_prompt(10), params, request_id="same")
            while not any(delta.completion for delta in engine.step()):
                pass
    collect(engine)


def test_choices_of_no_tokens(engine: Engine) -> None:
    (done,) = engine.generate([random_prompt(20)], n=3, max_tokens=0)
    assert [choice.token_ids for choice in done.choices] == [[]] * 3
    assert {choice.finish_reason for choice in done.choices} == {FinishReason.LENGTH}
    assert done.usage.prompt_tokens == 20 == done.usage.total_tokens
    (best,) = engine.generate([random_prompt(20)], n=2, best_of=3, max_tokens=0)
    assert len(best.choices) == 2 and best.text == ""


def test_the_prompt_is_rated_once_for_all_choices(tiny_hf: Path) -> None:
    ids = random_prompt(50)
    with make(tiny_hf, max_batch=8) as engine:
        (alone,) = engine.generate([ids], max_tokens=1, prompt_logprobs=2)
        counts = count_computed(engine)
        (done,) = engine.generate([ids], warm(n=3, best_of=4, prompt_logprobs=2, max_tokens=3))
    assert done.prompt_logprobs == alone.prompt_logprobs
    # The first choice computes what is cached, too; the others the last token alone.
    assert sum(counts) == 50 + 3 * 1 + 4 * 2
    rated: Callable[[Sampled | None], bool] = lambda one: one is not None  # noqa: E731
    assert [*map(rated, done.prompt_logprobs or ())] == [False, *[True] * 49]
