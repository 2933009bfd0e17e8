"""The public face of `Engine` on a tiny model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from halfbyte import Completion, Engine, SamplingParams
from halfbyte.engine.request import FinishReason
from halfbyte.engine.run.stats import STEP_BOUNDS
from halfbyte.errors import ConfigError, EngineDeadError, HalfbyteError, RequestError

PROMPTS = ["The quick brown fox", "Once upon a time there was", "def f(x):\n    return", "é 東京"]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(tiny_hf: Path) -> Iterator[Engine]:
    """Exact, so that a prompt answers the same alone and in a batch."""
    with Engine(tiny_hf, exact=True, max_batch=4, max_batch_tokens=64) as made:
        yield made


@pytest.fixture(autouse=True)
def leaves_nothing_behind(engine: Engine) -> Iterator[None]:
    yield
    assert not engine.has_work() and engine.stats().kv_blocks_used == 0


def test_generate_keeps_the_order(engine: Engine) -> None:
    together = engine.generate(PROMPTS, GREEDY)
    assert all(isinstance(done, Completion) for done in together)
    for prompt, done in zip(PROMPTS, together, strict=True):
        (alone,) = engine.generate(prompt, GREEDY)
        assert alone.token_ids == done.token_ids and alone.text == done.text
        assert len(done.token_ids) == 12 and done.finish_reason is FinishReason.LENGTH
        assert done.usage.prompt_tokens == len(engine.tokenizer.encode(prompt))
    assert len({done.text for done in together}) == len(PROMPTS)


def test_token_ids_are_prompts_too(engine: Engine) -> None:
    ids = [engine.tokenizer.encode(prompt) for prompt in PROMPTS]
    want = [done.token_ids for done in engine.generate(PROMPTS, GREEDY)]
    assert [done.token_ids for done in engine.generate(ids, GREEDY)] == want
    assert [done.token_ids for done in engine.generate(ids[0], GREEDY)] == want[:1]
    mixed = engine.generate([PROMPTS[0], ids[1]], GREEDY)
    assert [done.token_ids for done in mixed] == want[:2]


def test_nothing_to_generate(engine: Engine) -> None:
    assert engine.generate([]) == [] and engine.generate([], []) == []


def test_parameters_for_each_prompt(engine: Engine) -> None:
    each = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (1, 3, 2)]
    assert [len(d.token_ids) for d in engine.generate(PROMPTS[:3], each)] == [1, 3, 2]
    with pytest.raises(RequestError, match="3 sampling parameters for 2 prompts"):
        engine.generate(PROMPTS[:2], each)


def test_stream_is_generate_in_pieces(engine: Engine) -> None:
    (want,) = engine.generate(PROMPTS[0], GREEDY)
    deltas = list(engine.stream(PROMPTS[0], GREEDY))
    assert "".join(d.text for d in deltas) == want.text
    assert [t for d in deltas for t in d.token_ids] == want.token_ids
    assert [d.completion is not None for d in deltas] == [False] * (len(deltas) - 1) + [True]
    assert deltas[-1].completion is not None and deltas[-1].completion.text == want.text


def test_interleaved_streams_each_get_their_own(engine: Engine) -> None:
    want = [done.text for done in engine.generate(PROMPTS, GREEDY)]
    streams = [engine.stream(prompt, GREEDY) for prompt in PROMPTS]
    texts = [""] * len(PROMPTS)
    for _ in range(40):
        for index, stream in enumerate(streams):
            delta = next(stream, None)
            texts[index] += delta.text if delta is not None else ""
    assert texts == want


def test_a_stream_beside_submitted_requests_loses_none_of_their_deltas(engine: Engine) -> None:
    want = [done.text for done in engine.generate(PROMPTS[:3], GREEDY)]
    name = engine.submit(PROMPTS[1], GREEDY)
    assert "".join(d.text for d in engine.stream(PROMPTS[0], GREEDY)) == want[0]
    (inner,) = engine.generate(PROMPTS[2], GREEDY)
    assert inner.text == want[2]
    text, done = "", None
    while engine.has_work():
        for delta in engine.step():
            assert delta.request_id == name
            text += delta.text
            done = delta.completion
    assert text == want[1] and done is not None and done.text == text


def test_submit_step_and_cancel(engine: Engine) -> None:
    running = engine.submit(PROMPTS[0], GREEDY, request_id="a")
    assert running == "a"
    engine.step()
    waiting = [engine.submit(p, GREEDY) for p in PROMPTS * 2]
    engine.cancel("a")
    engine.cancel(waiting[0])
    engine.cancel(waiting[-1])
    engine.cancel("no such request")
    ends: dict[str, Completion] = {}
    for delta in engine.step():
        if delta.completion is not None:
            ends[delta.request_id] = delta.completion
    assert {n for n, d in ends.items() if d.finish_reason is FinishReason.CANCELLED} == {
        "a",
        waiting[0],
        waiting[-1],
    }
    assert len(ends["a"].token_ids) == 1
    while engine.has_work():
        for delta in engine.step():
            if delta.completion is not None:
                assert delta.request_id not in ends
                ends[delta.request_id] = delta.completion
    assert ends.keys() == {"a", *waiting}


def test_request_ids_are_unique_while_live_and_free_again_after(engine: Engine) -> None:
    engine.submit(PROMPTS[0], GREEDY, request_id="x")
    with pytest.raises(RequestError, match="'x' is in use") as caught:
        engine.submit(PROMPTS[1], GREEDY, request_id="x")
    assert caught.value.param == "request_id"
    while engine.has_work():
        engine.step()
    assert engine.submit(PROMPTS[0], GREEDY, request_id="x") == "x"
    engine.cancel("x")
    engine.step()


@pytest.mark.parametrize(
    "prompt", [[], [-1], [600], [1, 10**9], [1.5], [True], ["a"], [None], [1, "a"]], ids=repr
)
def test_bad_prompts_are_refused(engine: Engine, prompt: Any) -> None:
    with pytest.raises(RequestError) as caught:
        engine.submit(prompt, GREEDY)
    assert caught.value.param == "prompt"
    with pytest.raises(RequestError):
        engine.logits(prompt)


@pytest.mark.parametrize("prompt", [None, 5, 1.5, {"a": 1}], ids=repr)
def test_prompts_of_another_type_are_refused(engine: Engine, prompt: Any) -> None:
    with pytest.raises(RequestError):
        engine.submit(prompt, GREEDY)


def test_no_prompt_is_dropped_in_silence(engine: Engine) -> None:
    """A list of texts with a stray number in it."""
    with pytest.raises(RequestError):
        engine.generate(["text", 3], GREEDY)  # type: ignore[list-item]


def test_one_bad_prompt_stops_all_before_anything_runs(engine: Engine) -> None:
    before = engine.stats().steps
    with pytest.raises(RequestError):
        engine.generate([PROMPTS[0], [600], PROMPTS[1]], GREEDY)
    assert engine.stats().steps == before and not engine.has_work()
    with pytest.raises(RequestError):
        next(engine.stream([], GREEDY))


def test_context_length(engine: Engine) -> None:
    size = engine.max_context
    assert size == 512
    with pytest.raises(RequestError, match="512 tokens, but the context holds 512") as caught:
        engine.submit([5] * size, GREEDY)
    assert caught.value.code == "context_length_exceeded"
    (last,) = engine.generate([5] * (size - 1), GREEDY)
    assert len(last.token_ids) == 1 and last.finish_reason is FinishReason.LENGTH
    endless = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    (rest,) = engine.generate([5] * (size - 20), endless)
    assert len(rest.token_ids) == 20 and rest.finish_reason is FinishReason.LENGTH
    assert engine.logits([5] * size).shape == (size, 600)
    with pytest.raises(RequestError, match="513 tokens, but the context holds 512"):
        engine.logits([5] * (size + 1))


def test_logits_lead_where_greedy_goes(engine: Engine) -> None:
    """Every generated token is the largest logit of the text before it (exact mode: same bits)."""
    prompt = engine.tokenizer.encode(PROMPTS[1])
    (done,) = engine.generate(prompt, GREEDY)
    text = prompt + done.token_ids
    logits = engine.logits(text)
    assert logits.dtype == torch.float32 and logits.shape == (len(text), 600)
    assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == done.token_ids
    assert torch.equal(engine.logits(text[:9]), logits[:9])


def test_score_is_the_log_softmax_of_the_logits(engine: Engine) -> None:
    texts = [engine.tokenizer.encode(p) for p in PROMPTS] + [[7]]
    for ids, score in zip(texts, engine.score(texts), strict=True):
        logprobs = engine.logits(ids).double().log_softmax(-1)
        assert score.token_ids == ids and len(score.logprobs) == len(ids)
        assert score.logprobs[0] is score.top_ids[0] is score.top_logprobs[0] is None
        for i in range(1, len(ids)):
            assert score.logprobs[i] == pytest.approx(float(logprobs[i - 1, ids[i]]), abs=1e-5)
            assert score.top_ids[i] == int(logprobs[i - 1].argmax())
            assert score.top_logprobs[i] == pytest.approx(float(logprobs[i - 1].max()), abs=1e-5)
        assert score.total == pytest.approx(sum(p for p in score.logprobs if p is not None))
    with pytest.raises(RequestError):
        engine.score([[]])


def test_a_seed_repeats_a_text(engine: Engine) -> None:
    warm = SamplingParams(temperature=1.2, max_tokens=15, ignore_eos=True)
    (first,) = engine.generate(PROMPTS[0], warm)
    assert first.seed is not None
    again = SamplingParams(temperature=1.2, max_tokens=15, ignore_eos=True, seed=first.seed)
    others = [warm] * 3
    repeated = engine.generate([*PROMPTS[1:], PROMPTS[0]], [*others, again])[-1]
    assert repeated.token_ids == first.token_ids and repeated.seed == first.seed
    texts = {tuple(engine.generate(PROMPTS[0], warm)[0].token_ids) for _ in range(4)}
    assert len(texts) == 4, "seeds are drawn anew"
    assert engine.generate(PROMPTS[0], GREEDY)[0].seed is None


def test_the_seed_of_an_engine_repeats_all_its_texts(tiny_hf: Path) -> None:
    warm = SamplingParams(temperature=1.0, max_tokens=8, ignore_eos=True)
    runs = []
    for _ in range(2):
        with Engine(tiny_hf, exact=True, seed=77) as made:
            runs.append([d.token_ids for d in made.generate([PROMPTS[0]] * 3, warm)])
    assert runs[0] == runs[1] and len({tuple(t) for t in runs[0]}) == 3


def test_stop_string_token_and_end_of_text(engine: Engine) -> None:
    (free,) = engine.generate(PROMPTS[2], SamplingParams(temperature=0, max_tokens=40))
    text = free.text
    assert len(text) > 8
    stop = text[5:8]
    (cut,) = engine.generate(PROMPTS[2], SamplingParams(temperature=0, max_tokens=40, stop=(stop,)))
    assert cut.text == text[: text.index(stop)] and cut.stop_reason == stop
    assert cut.finish_reason is FinishReason.STOP
    token = free.token_ids[4]
    params = SamplingParams(temperature=0, max_tokens=40, stop_token_ids=(token,))
    (by_id,) = engine.generate(PROMPTS[2], params)
    first = free.token_ids.index(token)
    assert by_id.token_ids == free.token_ids[: first + 1] and by_id.stop_reason == token


def test_steps_are_tallied_by_their_tokens(engine: Engine) -> None:
    prompt = [random.randrange(10, 500) for _ in range(150)]
    before = engine.stats()
    engine.generate(prompt, SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))
    after = engine.stats()
    # The prompt in steps of 64, 64 and 22; then one token a step.
    assert after.step_tokens - before.step_tokens == 150 + 4
    new = [b - a for a, b in zip(before.step_sizes, after.step_sizes, strict=True)]
    tallied = dict(zip((*STEP_BOUNDS, None), new, strict=True))
    assert {bound: count for bound, count in tallied.items() if count} == {1: 4, 32: 1, 64: 2}
    assert after.steps - before.steps == 7


def test_prefix_cache_is_counted(engine: Engine) -> None:
    prompt = [random.randrange(10, 500) for _ in range(150)]
    before = engine.stats().cached_tokens
    (cold,) = engine.generate(prompt, GREEDY)
    (warm,) = engine.generate(prompt, GREEDY)
    assert (cold.usage.cached_tokens, warm.usage.cached_tokens) == (0, 128)
    assert warm.token_ids == cold.token_ids
    assert engine.stats().cached_tokens == before + 128
    engine.submit(prompt, GREEDY, request_id="salted", cache_salt="tenant")
    usage = None
    while engine.has_work():
        for delta in engine.step():
            usage = delta.completion.usage if delta.completion else usage
    assert usage is not None and usage.cached_tokens == 0


def test_stats_count(engine: Engine) -> None:
    before = engine.stats()
    engine.submit(PROMPTS[0], GREEDY)
    for prompt in PROMPTS * 2:
        engine.submit(prompt, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    engine.step()
    during = engine.stats()
    assert during.running == 4 and during.waiting == 5 and 0 < during.kv_blocks_used <= 8
    while engine.has_work():
        engine.step()
    after = engine.stats()
    assert after.generation_tokens - before.generation_tokens == 12 + 8 * 3
    tokens = [len(engine.tokenizer.encode(p)) for p in PROMPTS]
    assert after.prompt_tokens - before.prompt_tokens == sum(tokens) * 2 + tokens[0]
    assert after.finished["length"] - before.finished.get("length", 0) == 9
    assert after.steps > before.steps and after.running == after.waiting == 0
    assert after.kv_blocks_total == before.kv_blocks_total


def test_what_an_engine_tells_about_itself(engine: Engine, tiny_hf: Path) -> None:
    assert engine.name and engine.model_config.num_layers == 2 and engine.config.exact
    assert engine.weight_bytes > 100_000
    assert all(seconds >= 0 for seconds in engine.startup.values()) and len(engine.startup) > 3
    assert engine.report is not None


def test_a_closed_engine_drops_its_requests_and_refuses_new_ones(tiny_hf: Path) -> None:
    with Engine(tiny_hf, max_batch=2) as made:
        for prompt in PROMPTS:
            made.submit(prompt, GREEDY)
        made.step()
    assert made.stats().kv_blocks_used == 0 and made.stats().running == made.stats().waiting == 0
    with pytest.raises(EngineDeadError, match="closed"):
        made.submit(PROMPTS[0], GREEDY)
    made.close()


def test_progress_is_told(tiny_hf: Path) -> None:
    seen: list[tuple[int, int]] = []
    Engine(tiny_hf, progress=lambda done, total: seen.append((done, total))).close()
    assert seen and seen[-1][0] == seen[-1][1] and seen == sorted(seen)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"colour": "red"}, ["colour", "max_batch"]),
        ({"device": "cuda"}, ["cuda"]),
        ({"dtype": "bfloat16"}, ["bfloat16", "reference"]),
        ({"max_context": 513}, ["max_context", "513", "512"]),
        ({"kv_tokens": 1 << 40}, ["MiB"]),
    ],
)
def test_options_that_cannot_be_honoured(
    tiny_hf: Path, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        Engine(tiny_hf, **options)
    assert all(word in str(caught.value) for word in words)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(HalfbyteError, match=r"nothing-here\.gguf"):
        Engine(tmp_path / "nothing-here.gguf")


def test_wrong_types_are_named(engine: Engine) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: engine.generate("a", {"max_tokens": 3}),  # type: ignore[arg-type]
        lambda: engine.logits("abc"),  # type: ignore[arg-type]
        lambda: engine.score([None]),  # type: ignore[list-item]
        lambda: engine.generate(b"abc"),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(RequestError, match="expected"):
            call()
    # The value is shown as it was given, not a piece of it.
    with pytest.raises(RequestError, match=r"params is {'max_tokens': 3}; expected SamplingParams"):
        engine.generate("a", {"max_tokens": 3})  # type: ignore[arg-type]


def test_an_id_that_a_caller_took_is_passed_over(engine: Engine) -> None:
    number = int(engine.submit([5]).removeprefix("req-"))
    engine.submit([5], request_id=f"req-{number + 1}")
    assert engine.submit([5]) == f"req-{number + 2}"
    while engine.has_work():
        engine.step()


def test_greedy_requests_do_not_move_the_seeds_of_others(tiny_hf: Path) -> None:
    warm = SamplingParams(temperature=1.0, max_tokens=8)
    with Engine(tiny_hf, seed=3) as one, Engine(tiny_hf, seed=3) as two:
        two.generate([[9, 8]], SamplingParams(temperature=0, max_tokens=2))
        assert one.generate([[5, 6]], warm)[0].seed == two.generate([[5, 6]], warm)[0].seed
