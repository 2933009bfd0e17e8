"""Tokens that are drawn on a device and read a step late, on a backend whose device is the CPU."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from halfbyte import Engine, SamplingParams
from halfbyte.engine.run.rows import Rows

PROMPTS = ([5, 6, 7], [8] * 20, [9, 30, 41, 8, 8], [100])


def late_engine(model: Path, **options: Any) -> tuple[Engine, list[str]]:
    """An engine whose tokens stay on the "device", and what it does in which order."""
    engine = Engine(model, backend="reference", max_context=64, overlap=True, **options)
    runner, done = engine._loop.runner, []
    runner.sampler.drawer.reads_late = True
    runner.executor._prepare = lambda step: step.with_drawn()
    launch, draw = runner.launch, runner.draw

    def launched(plan: Any) -> Any:
        done.append("launch")
        return launch(plan)

    def drew(forward: Any, late: bool = False) -> Any:
        read = draw(forward, late)
        done.append("draw")

        def noted() -> Any:
            done.append("read")
            return read()

        return noted

    runner.launch, runner.draw = launched, drew  # type: ignore[method-assign]
    return engine, done


def test_the_next_step_is_launched_before_tokens_are_read(tiny_hf: Path) -> None:
    engine, done = late_engine(tiny_hf)
    want = Engine(tiny_hf, backend="reference", max_context=64, overlap=False)
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    got = engine.generate([PROMPTS[0]], params)[0].token_ids
    assert got == want.generate([PROMPTS[0]], params)[0].token_ids
    assert done[:2] == ["launch", "draw"]
    assert done[2:14] == ["launch", "read", "draw"] * 4


@pytest.mark.parametrize("exact", [False, True])
def test_answers_are_those_of_an_engine_that_waits(tiny_hf: Path, exact: bool) -> None:
    """Greedy and drawn rows, penalties, ends of text, too little memory, rows that change hands."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    params = [
        SamplingParams(temperature=0, max_tokens=9),
        SamplingParams(temperature=1.2, seed=seed, max_tokens=7, top_k=20),
        SamplingParams(temperature=0.8, seed=seed + 1, max_tokens=12, presence_penalty=0.9),
        SamplingParams(temperature=0, max_tokens=3, logprobs=2),
    ]
    few: dict[str, Any] = {"max_batch": 3, "kv_tokens": 64, "block_size": 16, "exact": exact}
    engine, done = late_engine(tiny_hf, **few)
    waits = Engine(tiny_hf, backend="reference", max_context=64, overlap=False, **few)
    for _ in range(2):
        got = [d.token_ids for d in engine.generate(PROMPTS, params)]
        assert got == [d.token_ids for d in waits.generate(PROMPTS, params)]
    assert "read" in done and engine.stats().running == 0


def test_a_promise_is_not_kept_to_the_next_request(tiny_hf: Path) -> None:
    engine, _ = late_engine(tiny_hf, max_batch=1)
    rows: Rows = engine._loop.runner.rows
    name = engine.submit(PROMPTS[0], SamplingParams(temperature=0, max_tokens=9))
    engine.step()
    assert int(rows.tokens[0, 3]) == -1  # row 0's, not read yet
    engine.cancel(name)
    other = engine.submit([50, 51, 52, 53, 54], SamplingParams(temperature=0, max_tokens=2))
    while engine.has_work():
        engine.step()
    assert rows.tokens[0, :5].tolist() == [50, 51, 52, 53, 54]
    assert other not in engine._loop.scheduler


def test_a_row_without_a_token_fails_alone(tiny_hf: Path) -> None:
    engine, _ = late_engine(tiny_hf)
    runner = engine._loop.runner
    run, broken = runner.executor.run, []

    def spoiled(step: Any) -> Any:
        logits = run(step)
        if len(logits) == 2 and not broken:
            logits[1] = float("nan")
            broken.append(True)
        return logits

    runner.executor.run = spoiled  # type: ignore[method-assign]
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    good, bad = engine.generate([PROMPTS[0], PROMPTS[2]], params)
    assert broken and good.finish_reason.value == "length" and len(good.token_ids) == 6
    assert bad.finish_reason.value == "error" and "not finite" in str(bad.error)
