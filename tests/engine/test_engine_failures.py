"""What an engine survives: failing steps, interrupts, abandoned streams, too little KV memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from halfbyte import Completion, Engine, SamplingParams
from halfbyte.engine.request import FinishReason, MemoryFault
from halfbyte.errors import EngineDeadError

TEXTS = ["The quick brown fox", "Once upon a time there was", "def f(x):\n    return", "é 東京"]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
OVERLAP = pytest.mark.parametrize("overlap", [False, True])
PLACE = pytest.mark.parametrize("place", ["launch", "draw"])


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


@pytest.mark.parametrize("error", [MemoryError("no"), torch.OutOfMemoryError("no")])
@PLACE
def test_a_lack_of_memory_is_told_as_such(
    monkeypatch: pytest.MonkeyPatch, tiny_hf: Path, place: str, error: Exception
) -> None:
    engine = Engine(tiny_hf, exact=True, max_batch=2)
    want = [done.token_ids for done in engine.generate(TEXTS[2:], GREEDY)]
    fail_once(monkeypatch, engine, place, 2, error)
    names = [engine.submit(text, GREEDY) for text in TEXTS]
    ends = drain(engine)
    assert [type(ends[name].error) for name in names[:2]] == [MemoryFault] * 2
    assert [ends[name].token_ids for name in names[2:]] == want
    assert_clean(engine)


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
        pytest.param({}, id="cpu_c"),
        pytest.param({"backend": "cpu_torch"}, id="cpu_torch", marks=pytest.mark.slow),
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
