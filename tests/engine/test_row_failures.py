"""Rows that fail by themselves: numbers that are not finite, draws that raise, minimal lengths."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine_failures import GREEDY, OVERLAP, TEXTS, assert_clean, drain

from halfbyte import Engine, SamplingParams
from halfbyte.engine.request import FinishReason, TokenEvent
from halfbyte.engine.run.step import StepInputs
from halfbyte.engine.schedule.plan import StepPlan


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
        {"backend": "cpu_torch"},
        pytest.param({"backend": "reference"}, marks=pytest.mark.slow),
        pytest.param({"backend": "interpreter", "dtype": "float32"}, marks=pytest.mark.slow),
    ],
    ids=["cpu_c", "cpu_torch", "reference", "interpreter"],
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
    drawer = engine._loop.runner.sampler.drawer
    real = drawer.sample

    def fragile(logits: Any, rows: Any) -> Any:
        if any(row.params.seed == 666 for row in rows):
            raise ValueError("no such thing")
        return real(logits, rows)

    monkeypatch.setattr(drawer, "sample", fragile)
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


@pytest.mark.slow  # the tests above say the same of a tiny model
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
