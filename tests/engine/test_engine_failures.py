"""What an engine survives: failing steps, interrupts, abandoned streams, too little KV memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import halfbyte.engine.sampler as sampler_module
from halfbyte import Completion, Engine, SamplingParams
from halfbyte.engine.plan import StepPlan
from halfbyte.engine.request import FinishReason, TokenEvent
from halfbyte.engine.step import StepInputs
from halfbyte.errors import EngineDeadError

TEXTS = ["The quick brown fox", "Once upon a time there was", "def f(x):\n    return", "é 東京"]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
OVERLAP = pytest.mark.parametrize("overlap", [False, True])
PLACE = pytest.mark.parametrize("place", ["launch", "sample"])


def drain(engine: Engine) -> dict[str, Completion]:
    """Run off all requests; each ends once."""
    ends: dict[str, Completion] = {}
    for _ in range(5000):
        if not engine.has_work():
            return ends
        for delta in engine.step():
            assert delta.request_id not in ends
            if delta.completion is not None:
                ends[delta.request_id] = delta.completion
    raise AssertionError("the engine does not come to an end")


def fail_once(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, place: str, turn: int, error: BaseException
) -> None:
    """Make the ``turn``-th call (from 1) of the runner's method raise; later ones work."""
    runner = engine._loop.runner
    real: Callable[..., Any] = getattr(runner, place)
    calls = 0

    def call(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == turn:
            raise error
        return real(*arguments)

    monkeypatch.setattr(runner, place, call)


def assert_clean(engine: Engine) -> None:
    assert not engine.has_work()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)


@OVERLAP
@PLACE
def test_a_failing_step_ends_only_its_requests(
    monkeypatch: pytest.MonkeyPatch, tiny_hf: Path, overlap: bool, place: str
) -> None:
    engine = Engine(tiny_hf, exact=True, max_batch=2, overlap=overlap)
    want = [done.token_ids for done in engine.generate(TEXTS, GREEDY)]
    fail_once(monkeypatch, engine, place, 4, RuntimeError("device lost"))
    names = [engine.submit(text, GREEDY) for text in TEXTS]
    ends = drain(engine)
    for index, name in enumerate(names):
        done = ends[name]
        if index < 2:  # the two that ran
            assert done.finish_reason is FinishReason.ERROR
            assert done.error == "RuntimeError: device lost"
            assert done.token_ids == want[index][: len(done.token_ids)]
        else:
            assert done.token_ids == want[index] and done.error is None
    assert_clean(engine)
    assert [d.token_ids for d in engine.generate(TEXTS, GREEDY)] == want


@OVERLAP
@PLACE
@pytest.mark.parametrize("turn", [1, 2, 5])
def test_an_interrupt_in_a_step_leaves_the_engine_usable(
    monkeypatch: pytest.MonkeyPatch, tiny_hf: Path, overlap: bool, place: str, turn: int
) -> None:
    engine = Engine(tiny_hf, exact=True, overlap=overlap)
    want = [done.token_ids for done in engine.generate(TEXTS, GREEDY)]
    fail_once(monkeypatch, engine, place, turn, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        engine.generate(TEXTS, GREEDY)
    assert_clean(engine)
    assert [d.token_ids for d in engine.generate(TEXTS, GREEDY)] == want


@OVERLAP
def test_an_interrupted_stream_leaves_the_engine_usable(
    monkeypatch: pytest.MonkeyPatch, tiny_hf: Path, overlap: bool
) -> None:
    engine = Engine(tiny_hf, exact=True, overlap=overlap)
    want = engine.generate(TEXTS[0], GREEDY)[0].text
    fail_once(monkeypatch, engine, "launch", 3, KeyboardInterrupt())
    stream = engine.stream(TEXTS[0], GREEDY)
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    assert_clean(engine)
    assert "".join(d.text for d in engine.stream(TEXTS[0], GREEDY)) == want


@OVERLAP
def test_an_interrupt_tells_submitted_requests_that_they_failed(
    monkeypatch: pytest.MonkeyPatch, tiny_hf: Path, overlap: bool
) -> None:
    """Someone who steps by himself, catches the interrupt and goes on."""
    engine = Engine(tiny_hf, max_batch=2, overlap=overlap)
    fail_once(monkeypatch, engine, "launch", 2, KeyboardInterrupt())
    names = [engine.submit(text, GREEDY) for text in TEXTS]
    engine.step()
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    ends = drain(engine)
    assert ends.keys() == set(names)
    assert [ends[n].finish_reason.value for n in names] == ["error", "error", "length", "length"]
    assert_clean(engine)


@OVERLAP
def test_closing_a_stream_cancels_it_alone(tiny_hf: Path, overlap: bool) -> None:
    engine = Engine(tiny_hf, exact=True, overlap=overlap)
    want = engine.generate(TEXTS[1], GREEDY)[0]
    other = engine.submit(TEXTS[1], GREEDY)
    stream = engine.stream(TEXTS[0], GREEDY)
    for _ in range(4):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    texts: list[str] = []
    done = None
    while engine.has_work():
        for delta in engine.step():
            assert delta.request_id == other
            texts.append(delta.text)
            done = delta.completion or done
    assert "".join(texts) == want.text
    assert done is not None and done.token_ids == want.token_ids
    assert_clean(engine)
    assert engine.stats().finished["cancelled"] == 1


def test_a_stream_that_is_dropped_leaves_no_work(tiny_hf: Path) -> None:
    engine = Engine(tiny_hf)
    for delta in engine.stream(TEXTS[0], GREEDY):
        assert delta.completion is None
        break
    assert_clean(engine)


def test_a_stream_ends_when_its_request_is_cancelled_elsewhere(tiny_hf: Path) -> None:
    engine = Engine(tiny_hf)
    stream = engine.stream(TEXTS[0], GREEDY)
    first = next(stream)
    engine.cancel(first.request_id)
    *_, last = stream
    assert last.completion is not None
    assert last.completion.finish_reason is FinishReason.CANCELLED
    assert_clean(engine)


@OVERLAP
def test_an_id_is_free_as_soon_as_its_last_delta_is_out(tiny_hf: Path, overlap: bool) -> None:
    """With overlap the scheduler may hold the request for one more step."""
    engine = Engine(tiny_hf, overlap=overlap)
    (free,) = engine.generate(TEXTS[2], GREEDY)
    stops = [
        SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop=(free.text[3:6],)),
        SamplingParams(temperature=0, max_tokens=12, stop_token_ids=(free.token_ids[3],)),
        SamplingParams(temperature=0, max_tokens=2, ignore_eos=True),
    ]
    for params in stops * 2:
        engine.submit(TEXTS[2], params, request_id="again")
        done = None
        while done is None:
            for delta in engine.step():
                done = delta.completion
        assert done.token_ids == free.token_ids[: len(done.token_ids)]
    drain(engine)
    assert_clean(engine)


def random_work(seed: int) -> tuple[list[list[int]], list[SamplingParams]]:
    rng = random.Random(seed)
    prompts, params = [], []
    for _ in range(10):
        shared = [7, 8, 9] * 12 if rng.random() < 0.4 else []
        prompts.append(shared + [rng.randrange(3, 600) for _ in range(rng.randint(1, 40))])
        params.append(
            SamplingParams(
                temperature=rng.choice([0.0, 0.8]),
                top_p=rng.choice([1.0, 0.9]),
                repetition_penalty=rng.choice([1.0, 1.2]),
                seed=rng.getrandbits(60),
                max_tokens=rng.choice([1, 7, 30]),
                stop=rng.choice([(), ("e", " "), ("\n",)]),
                stop_token_ids=rng.choice([(), (rng.randrange(600),)]),
                ignore_eos=rng.random() < 0.5,
            )
        )
    return prompts, params


def long_work(seed: int) -> tuple[list[list[int]], list[SamplingParams]]:
    """Short prompts with long answers: all are admitted at once and then outgrow the memory."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(3, 600) for _ in range(rng.randint(5, 20))] for _ in range(6)]
    params = [
        SamplingParams(
            temperature=0.7 * (i % 2), seed=rng.getrandbits(60), max_tokens=60, ignore_eos=True
        )
        for i in range(6)
    ]
    return prompts, params


Answer = tuple[list[int], str, str]


def answers(
    model: Path, work: tuple[list[list[int]], list[SamplingParams]], **options: Any
) -> tuple[list[Answer], int]:
    """Tokens, text and reason of every prompt, and how often one was put back.

    The prompts arrive over time, as others are running.
    """
    prompts, params = work
    limits: dict[str, Any] = {"max_batch": 5, "max_batch_tokens": 48}
    engine = Engine(model, **limits | options)
    ends: dict[str, Completion] = {}
    names = []
    for index in range(len(prompts)):
        names.append(engine.submit(prompts[index], params[index], priority=index % 2))
        for delta in engine.step():
            if delta.completion is not None:
                ends[delta.request_id] = delta.completion
    ends |= drain(engine)
    assert_clean(engine)
    got = [(ends[n].token_ids, ends[n].text, ends[n].finish_reason.value) for n in names]
    return got, engine.stats().preemptions


# The scheduler is the same for all; tests/exact runs the slow ones with too little memory as well.
BACKENDS = pytest.mark.parametrize(
    "backend",
    [
        pytest.param({}, id="cpu_native"),
        pytest.param({"native": False}, id="torch", marks=pytest.mark.slow),
        pytest.param({"backend": "reference"}, id="reference", marks=pytest.mark.slow),
    ],
)


@BACKENDS
def test_overlap_gives_the_same_tokens(tiny_gguf: Path, backend: dict[str, Any]) -> None:
    seed = random.randrange(1 << 40)
    print("seed", seed)
    work = random_work(seed)
    plain, _ = answers(tiny_gguf, work, exact=True, **backend)
    assert answers(tiny_gguf, work, exact=True, overlap=True, **backend)[0] == plain


@OVERLAP
@BACKENDS
def test_too_little_kv_memory_gives_the_same_texts(
    tiny_gguf: Path, backend: dict[str, Any], overlap: bool
) -> None:
    """128 tokens for five texts of up to 80: most are put back and computed again."""
    seed = random.randrange(1 << 40)
    print("seed", seed)
    work = long_work(seed)
    plenty, none = answers(tiny_gguf, work, exact=True, **backend)
    options = {"kv_tokens": 128, "block_size": 16, "overlap": overlap, "max_step_ms": 0}
    little, some = answers(tiny_gguf, work, exact=True, **options, **backend)
    assert little == plenty
    assert some > 0 == none


def test_steps_that_keep_failing_end_the_engine(
    monkeypatch: pytest.MonkeyPatch, tiny_hf: Path
) -> None:
    engine = Engine(tiny_hf)

    def explode(*arguments: Any) -> Any:
        raise RuntimeError("device lost")

    monkeypatch.setattr(engine._loop.runner, "launch", explode)
    ends: list[str | None] = []
    with pytest.raises(EngineDeadError, match=r"3 steps failed in a row.*device lost"):
        for text in TEXTS:
            engine.submit(text, GREEDY)
            ends += [d.completion.error for d in engine.step() if d.completion is not None]
    assert ends == ["RuntimeError: device lost"] * 2


def break_row(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, prompt: list[int], begin: int
) -> None:
    """From position ``begin`` on, the angles of the text that begins so are NaN."""
    rows = engine._loop.runner.rows
    real = rows.gather

    def gather(plan: StepPlan) -> StepInputs:
        step = real(plan)
        rope = step.rope.clone()
        for work, span in zip(plan.work, step.spans, strict=True):
            if rows.tokens[work.row, : len(prompt)].tolist() == prompt:
                first = max(span.begin, span.begin + begin - work.start)
                rope[first : span.end] = torch.nan
        return replace(step, rope=rope)

    monkeypatch.setattr(rows, "gather", gather)


@OVERLAP
@pytest.mark.parametrize(
    "backend",
    [
        {},
        {"native": False},
        pytest.param({"backend": "reference"}, marks=pytest.mark.slow),
        pytest.param({"backend": "interpreter", "dtype": "float32"}, marks=pytest.mark.slow),
    ],
    ids=["cpu_native", "torch", "reference", "interpreter"],
)
@pytest.mark.parametrize("begin", [0, 40, 75], ids=["prefill", "chunk", "decode"])
def test_numbers_that_are_not_finite_end_their_own_request(
    monkeypatch: pytest.MonkeyPatch,
    tiny_gguf: Path,
    overlap: bool,
    backend: dict[str, Any],
    begin: int,
) -> None:
    """The others get the same tokens, and nothing of the broken text is shared."""
    engine = Engine(
        tiny_gguf,
        exact=True,
        overlap=overlap,
        max_batch_tokens=32,
        max_batch=3,
        block_size=16,
        prefix_cache=True,
        **backend,
    )
    rng = random.Random(begin)
    prompts = [[rng.randrange(3, 600) for _ in range(n)] for n in (10, 70, 25)]
    want = [engine.generate([p], GREEDY)[0].token_ids for p in prompts]
    pool = engine._loop.scheduler.pool
    pool.__init__(len(pool), 16)  # forget what is cached
    with monkeypatch.context() as patch:
        break_row(patch, engine, prompts[1], begin)
        for _ in range(2):
            done = engine.generate(prompts, GREEDY)
            assert [done[i].token_ids for i in (0, 2)] == [want[0], want[2]]
            assert done[1].finish_reason is FinishReason.ERROR
            assert "not finite numbers" in (done[1].error or "")
            assert done[1].token_ids == want[1][: max(0, begin - 70 + 1)]
            assert_clean(engine)
    (after,) = engine.generate([prompts[1]], GREEDY)
    assert after.token_ids == want[1] and after.error is None
    # The whole blocks before the first broken position, and no other.
    assert after.usage.cached_tokens <= begin // 16 * 16


@OVERLAP
def test_requests_that_fail_by_themselves_never_end_the_engine(
    monkeypatch: pytest.MonkeyPatch, tiny_hf: Path, overlap: bool
) -> None:
    """One after the other, alone or beside others, in the draw and in the text."""
    engine = Engine(tiny_hf, exact=True, overlap=overlap)
    warm = SamplingParams(temperature=0.8, seed=1, max_tokens=6, ignore_eos=True)
    bad = replace(warm, seed=666)
    want = [done.token_ids for done in engine.generate(TEXTS, warm)]
    real = sampler_module.sample_row

    def fragile(logits: Any, row: Any) -> int:
        if row.params.seed == 666:
            raise ValueError("no such thing")
        return real(logits, row)

    monkeypatch.setattr(sampler_module, "sample_row", fragile)
    for _ in range(4):
        (alone,) = engine.generate(TEXTS[0], bad)
        done = engine.generate(TEXTS, [warm, bad, warm, warm])
        for failed in (alone, done[1]):
            assert failed.finish_reason is FinishReason.ERROR
            assert failed.error == "ValueError: no such thing" and failed.token_ids == []
        assert [done[i].token_ids for i in (0, 2, 3)] == [want[i] for i in (0, 2, 3)]
    assert_clean(engine)

    process = engine._loop._output.process

    def no_text(event: TokenEvent) -> Any:
        if event.tokens and event.request_id == "bad":
            raise KeyError("no such token")
        return process(event)

    monkeypatch.setattr(engine._loop._output, "process", no_text)
    for _ in range(4):
        engine.submit(TEXTS[0], warm, request_id="bad")
        engine.submit(TEXTS[1], warm, request_id="good")
        ends = drain(engine)
        assert ends["bad"].error == "KeyError: 'no such token'"
        assert ends["good"].token_ids == want[1]
    assert_clean(engine)


def test_min_tokens_and_special_stop_strings_on_the_default_model(smollm2: Path) -> None:
    """The answers of a loop over ``Engine.logits`` in which the end ids are -inf."""
    engine = Engine(smollm2, exact=True, kv_tokens=512)
    prompt = "<|im_start|>user\nSay hi<|im_end|>\n<|im_start|>assistant\n"
    greedy = SamplingParams(temperature=0, max_tokens=32)
    (held,) = engine.generate(prompt, replace(greedy, min_tokens=30))
    assert "What brings you here today? Are you looking for inspiration" in held.text
    assert not {0, 2} & set(held.token_ids[:30])
    ends = "What brings you here today?"
    for stop in ("<|im_end|>", "?<|im_end|>"):
        asked = replace(greedy, ignore_eos=True, stop=(stop,))
        (done,) = engine.generate(prompt, asked)
        assert done.finish_reason is FinishReason.STOP and done.stop_reason == stop
        assert done.text.endswith(ends if stop[0] == "<" else ends[:-1])
        assert done.token_ids[-1] == 2 and len(done.token_ids) == 26
        assert "".join(d.text for d in engine.stream(prompt, asked)) == done.text


def test_a_small_pool_still_runs_what_fits(tiny_hf: Path) -> None:
    """Two blocks and two requests of one block each: the reserve must not hold one back."""
    with Engine(tiny_hf, max_batch=2, max_context=64, block_size=64) as engine:
        assert len(engine._loop.scheduler.pool) == 2
        for _ in range(2):
            engine.submit([5] * 10, GREEDY)
        engine.step()
        assert engine.stats().running == 2
        drain(engine)
        assert_clean(engine)
