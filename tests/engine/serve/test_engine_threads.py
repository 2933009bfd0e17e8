"""Several threads on one `Engine`: correct, in turn, and none of them starves."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from halfbyte import Completion, Engine, SamplingParams
from halfbyte.errors import EngineDeadError

PROMPTS = ["The quick brown fox", "Once upon a time", "def f(x):", "é 東京", "1 2 3", "a"]


@pytest.fixture
def engine(tiny_hf: Path) -> Iterator[Engine]:
    """Exact: a prompt answers the same whoever is in the batch with it."""
    with Engine(tiny_hf, exact=True, max_batch=3, max_batch_tokens=48) as made:
        yield made
        assert not made.has_work() and made.stats().kv_blocks_used == 0


def in_threads(jobs: list[Callable[[], None]]) -> None:
    """Run all at once; the first error of any is raised here."""
    errors: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def test_every_thread_gets_its_own_answers(
    engine: Engine, record_property: Callable[[str, Any], None]
) -> None:
    """All entry points at once, many times; each answer is the one the prompt gets alone."""
    seed = random.randrange(1 << 32)
    record_property("seed", seed)
    rng = random.Random(seed)
    params = [
        SamplingParams(temperature=t, seed=s, max_tokens=n, ignore_eos=True)
        for t, s, n in [(0.0, None, 9), (1.0, 5, 7), (0.7, 6, 12), (0.0, None, 1)]
    ]
    want = {
        (prompt, p): engine.generate(prompt, p)[0].token_ids for prompt in PROMPTS for p in params
    }
    scores = {prompt: engine.score(prompt)[0] for prompt in PROMPTS}

    def generate(draw: random.Random) -> None:
        chosen = [(draw.choice(PROMPTS), draw.choice(params)) for _ in range(draw.randint(1, 4))]
        done = engine.generate([c[0] for c in chosen], [c[1] for c in chosen])
        assert [d.token_ids for d in done] == [want[c] for c in chosen]

    def stream(draw: random.Random) -> None:
        prompt, p = draw.choice(PROMPTS), draw.choice(params)
        got = [t for d in engine.stream(prompt, p) for t in d.token_ids]
        assert got == want[prompt, p]

    def leave(draw: random.Random) -> None:
        stream = engine.stream(draw.choice(PROMPTS), params[2])
        next(stream)
        stream.close()

    def score(draw: random.Random) -> None:
        prompt = draw.choice(PROMPTS)
        assert engine.score(prompt) == [scores[prompt]]

    def look(draw: random.Random) -> None:
        assert engine.stats().kv_blocks_used <= engine.stats().kv_blocks_total
        engine.cancel("no such request")

    def work(draw: random.Random) -> Callable[[], None]:
        def run() -> None:
            for _ in range(6):
                draw.choice([generate, generate, stream, leave, score, look])(draw)

        return run

    in_threads([work(random.Random(rng.random())) for _ in range(6)])


def test_a_short_answer_does_not_wait_for_a_long_one(engine: Engine) -> None:
    """The long answer's thread steps in a loop; the short one comes out while it runs."""
    order: list[str] = []
    begun = threading.Event()

    def long() -> None:
        params = SamplingParams(temperature=0, max_tokens=300, ignore_eos=True)
        for delta in engine.stream(PROMPTS[0], params):
            if len(delta.token_ids):
                begun.set()
        order.append("long")

    def short() -> None:
        begun.wait(30)
        engine.generate(PROMPTS[1], temperature=0, max_tokens=3, ignore_eos=True)
        order.append("short")

    in_threads([long, short])
    assert order == ["short", "long"]


def test_close_while_others_compute_ends_them(tiny_hf: Path) -> None:
    engine = Engine(tiny_hf, max_batch=2)
    ends: list[Completion | None] = []
    begun = threading.Semaphore(0)

    def work() -> None:
        try:
            for delta in engine.stream(PROMPTS[0], max_tokens=480, ignore_eos=True):
                begun.release()
                if delta.completion is not None:
                    ends.append(delta.completion)
        except EngineDeadError:
            ends.append(None)

    def close() -> None:
        begun.acquire()
        engine.close()

    in_threads([work, work, close])
    assert len(ends) == 2
    assert all(e is None or e.finish_reason.value == "cancelled" for e in ends)


def test_a_forgotten_stream_is_cancelled_even_from_within_a_step(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector may finalize a stream in the middle of another request's step."""
    forgotten: list[Any] = [engine.stream(PROMPTS[1], max_tokens=200, ignore_eos=True)]
    next(forgotten[0])
    cycle: list[Any] = [forgotten.pop()]
    cycle.append(cycle)
    del cycle
    launch = engine._loop.runner.launch

    def collecting(plan: Any) -> Any:
        gc.collect()
        return launch(plan)

    monkeypatch.setattr(engine._loop.runner, "launch", collecting)
    (done,) = engine.generate(PROMPTS[0], temperature=0, max_tokens=5, ignore_eos=True)
    assert len(done.token_ids) == 5
    engine.generate(PROMPTS[0], temperature=0, max_tokens=1)
    assert not engine.has_work()
