"""Reading prompts: scores, logits, vectors and answers, beside whatever else an engine does."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine_failures import assert_clean
from torch import Tensor

from halfbyte import Completion, Engine, PromptScore, SamplingParams
from halfbyte.engine.request import FinishReason
from halfbyte.engine.run.readers import LogitsReader, LogprobReader
from halfbyte.errors import RequestError
from halfbyte.kernels import reference as ref

OVERLAP = pytest.mark.parametrize("overlap", [False, True])
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def make(model: Path, **options: Any) -> Engine:
    usual: dict[str, Any] = {"max_context": 160, "block_size": 16, "threads": 1, "max_batch": 4}
    given: dict[str, Any] = {**usual, "max_batch_tokens": 48, **options}
    return Engine(model, exact=True, **given)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "overlap"])
def engine(request: pytest.FixtureRequest, tiny_hf: Path) -> Iterator[Engine]:
    with make(tiny_hf, overlap=request.param) as made:
        yield made
        made._loop.scheduler.check()
        assert_clean(made)


def random_ids(length: int) -> list[int]:
    return [1, *(random.randrange(5, 600) for _ in range(length - 1))]


def tops(score: PromptScore) -> list[tuple[tuple[int, float], ...]]:
    """The likeliest token at each place but the first."""
    pairs = zip(score.top_ids[1:], score.top_logprobs[1:], strict=True)
    return [((int(i or 0), float(p or 0.0)),) for i, p in pairs]


@pytest.mark.parametrize("warm", [False, True])
def test_log_probabilities_of_an_answer_are_its_score(engine: Engine, warm: bool) -> None:
    """Bit for bit: one was computed token by token in a batch, the other in chunks of a prompt."""
    prompts = [random_ids(n) for n in (3, 33, 50)]
    fields: dict[str, Any] = {"logprobs": 1, "max_tokens": 9, "ignore_eos": True}
    # What the draw did to the logits is no matter.
    fields |= {"top_k": 5, "repetition_penalty": 1.3} if warm else {"temperature": 0}
    for ids, done in zip(prompts, engine.generate(prompts, **fields), strict=True):
        assert done.logprobs is not None
        (score,) = engine.score([ids + done.token_ids])
        assert score.logprobs[len(ids) :] == [s.logprob for s in done.logprobs]
        assert tops(score)[len(ids) - 1 :] == [s.top for s in done.logprobs]
        if not warm:
            assert [s.top[0][0] for s in done.logprobs] == done.token_ids


def test_processed_log_probabilities_are_of_what_was_drawn_from(engine: Engine) -> None:
    ids = random_ids(20)
    fields: dict[str, Any] = {"logprobs": 20, "max_tokens": 5, "top_k": 3, "ignore_eos": True}
    (done,) = engine.generate([ids], logprobs_mode="processed", **fields)
    for sampled in done.logprobs or ():
        assert sampled.token in dict(sampled.top) and len(sampled.top) == 3
        # Three float32 numbers that were normalized.
        assert math.fsum(math.exp(p) for _, p in sampled.top) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("count", [0, 1, 20])
def test_prompt_log_probabilities_are_the_score(engine: Engine, count: int) -> None:
    """Whether the prompt is cached or not, and at any number of the likeliest."""
    ids = random_ids(36)
    (score,) = engine.score([ids])
    logits_TV = engine.logits(ids)
    for _ in range(2):
        (done,) = engine.generate([ids], GREEDY, prompt_logprobs=count)
        rated = done.prompt_logprobs
        assert rated is not None and rated[0] is None and len(rated) == len(ids)
        assert [s.token for s in rated if s] == ids[1:]
        assert [s and s.logprob for s in rated] == score.logprobs
        for sampled, logits_V in zip(rated[1:], logits_TV, strict=False):
            assert sampled is not None
            logprobs = logits_V.log_softmax(-1).tolist()
            # The smaller id first among equal ones.
            best = sorted(range(600), key=lambda i: (-logprobs[i], i))[:count]
            assert sampled.top == tuple((i, logprobs[i]) for i in best)


def test_a_prompt_of_one_token_has_no_log_probability(engine: Engine) -> None:
    assert engine.score([[5]])[0].logprobs == [None]
    (done,) = engine.generate([[5]], GREEDY, prompt_logprobs=1)
    assert done.prompt_logprobs == (None,)


def run_off(engine: Engine) -> dict[str, Completion]:
    ends: dict[str, Completion] = {}
    while engine.has_work():
        ends |= {d.request_id: d.completion for d in engine.step() if d.completion is not None}
    return ends


def test_scores_beside_answers_are_those_of_a_quiet_engine(engine: Engine) -> None:
    """And the answers do not notice, either."""
    prompts = [random_ids(random.randint(2, 60)) for _ in range(4)]
    answered = [random_ids(random.randint(2, 60)) for _ in range(3)]
    want = engine.score(prompts)
    alone = [engine.generate([ids], GREEDY)[0].token_ids for ids in answered]
    names = [engine.submit(ids, GREEDY) for ids in answered]
    for _ in range(3):
        engine.step()
    assert engine.score(prompts) == want
    for name in names:
        engine.cancel(name)
    run_off(engine)
    names = [engine.submit(ids, GREEDY) for ids in answered]
    engine.step()
    assert engine.logits(prompts[0]).shape == (len(prompts[0]), 600)
    ends = run_off(engine)
    # Those that ended while the prompt was read wait in the outbox, and come with the next step.
    assert [ends[name].token_ids for name in names] == alone


@OVERLAP
def test_preempted_prompts_are_read_as_a_whole(tiny_hf: Path, overlap: bool) -> None:
    """Longer answers put them back; then their chunks come again."""
    ids = random_ids(60)
    with make(tiny_hf, overlap=overlap) as roomy:
        (want,), logits_TV = roomy.score([ids]), roomy.logits(ids)
        (vector,) = roomy.embed([ids])
    few: dict[str, Any] = {"kv_tokens": 96, "max_context": 96, "max_batch_tokens": 6}
    with make(tiny_hf, overlap=overlap, max_step_ms=0, **few) as engine:
        again = 0
        for reader in (LogprobReader(ids, 1), LogitsReader()):
            starts: list[int] = []
            read = reader.read

            def note(start: int, rows_TC: Tensor, read: Any = read, starts: Any = starts) -> None:
                starts.append(start)
                read(start, rows_TC)

            reader.read = note  # type: ignore[method-assign]
            engine.submit(random_ids(30), replace(GREEDY, max_tokens=40), priority=-1)
            while not engine.stats().running:
                engine.step()
            name = engine.submit(ids, replace(GREEDY, max_tokens=4), reader=reader)
            ends = run_off(engine)
            assert ends[name].finish_reason is FinishReason.LENGTH
            again += len(starts) > len(set(starts))
            if isinstance(reader, LogprobReader):
                assert reader.score() == want
            else:
                assert torch.equal(reader.logits, logits_TV)
        assert again > 0 and engine.stats().preemptions > 0
        assert torch.equal(engine.embed([ids])[0], vector)
        assert_clean(engine)


def hidden_states(model: Path, ids: list[int]) -> Tensor:
    """What goes into the LM head at every position [T, D]: caught at the reference backend's norm.

    None of what reads prompts is in the way but the logits of them all.
    """
    with Engine(model, backend="reference", max_context=160, kv_dtype="float32") as engine:
        network = engine._loop.runner.model
        ops, kept = network.backend.ops, []
        norm = ops.rms_norm

        def note(x_TD: Tensor, weight_D: Tensor, eps: float, *rest: Any, **more: Any) -> Tensor:
            if weight_D is network.norm:
                kept.append(ref.rms_norm(x_TD, weight_D, eps))
            return norm(x_TD, weight_D, eps, *rest, **more)

        ops.rms_norm = note
        engine.logits(ids)
    return torch.cat(kept).double()


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_vectors_are_pooled_hidden_states(tiny_hf: Path, backend: str) -> None:
    prompts = [random_ids(n) for n in (1, 7, 20)]
    pooled = {"mean": lambda x_TD: x_TD.mean(0), "last": lambda x_TD: x_TD[-1]}
    pooled["cls"] = lambda x_TD: x_TD[0]
    states = [hidden_states(tiny_hf, ids) for ids in prompts]
    assert [len(x_TD) for x_TD in states] == [1, 7, 20]
    given: dict[str, Any] = {"max_batch_tokens": 16, "max_step_ms": 0, "kv_dtype": "float32"}
    with make(tiny_hf, backend=backend, **given) as engine:
        # Rows whose hidden states nobody reads come before and after those of a prompt.
        for priority in (-1, 1):
            engine.submit(random_ids(5), replace(GREEDY, max_tokens=100), priority=priority)
        engine.step()
        for pooling, pool in pooled.items():
            want_ND = torch.stack([pool(x_TD) for x_TD in states])
            got_ND = engine.embed(prompts, pooling=pooling, normalize=False)  # type: ignore[arg-type]
            assert got_ND.dtype == torch.float32
            off = (got_ND.double() - want_ND).norm(dim=-1) / want_ND.norm(dim=-1)
            # Products of float32 in two layers, summed in other orders: some 2e-6.
            assert off.max() < 3e-5, pooling
            unit_ND = engine.embed(prompts, pooling=pooling)  # type: ignore[arg-type]
            assert torch.allclose(unit_ND.norm(dim=-1), torch.ones(3), atol=1e-6)
            cosines = torch.nn.functional.cosine_similarity(unit_ND, got_ND)
            assert torch.allclose(cosines, torch.ones(3), atol=1e-6)
        assert engine.stats().running == 2


def test_vectors_do_not_depend_on_the_pieces_or_the_company(tiny_hf: Path) -> None:
    """Bit for bit but for the mean, whose pieces are summed in float64 and rounded once."""
    prompts = [random_ids(n) for n in (40, 33, 2)]
    prompts[1][:20] = prompts[0][:20]
    for pooling in ("last", "cls", "mean"):
        with make(tiny_hf, max_batch_tokens=160, prefix_cache=False) as whole:
            want = [whole.embed([ids], pooling=pooling)[0] for ids in prompts]
        for budget in (7, 48):
            with make(tiny_hf, max_batch_tokens=budget) as engine:
                engine.submit(random_ids(30), GREEDY)
                for _ in range(2):
                    for got, one in zip(engine.embed(prompts, pooling=pooling), want, strict=True):
                        exact = torch.equal(got, one)
                        assert exact or (pooling == "mean" and torch.allclose(got, one, atol=1e-7))
                run_off(engine)
                assert_clean(engine)


def test_what_cannot_be_read_is_refused(engine: Engine) -> None:
    with pytest.raises(RequestError, match="pooling is 'max'; expected one of mean, last, cls"):
        engine.embed("a", pooling="max")  # type: ignore[arg-type]
    for call in (engine.score, engine.logits, engine.embed):
        with pytest.raises(RequestError, match="161 tokens, but the context holds 160") as caught:
            call(random_ids(161))
        assert caught.value.code == "context_length_exceeded"
    assert len(engine.score(random_ids(160))[0].logprobs) == 160
    assert engine.logits(random_ids(160)).shape == (160, 600)


ANSWERS = [" the", "a", " do re", "in", "\n", "é 東"]


def test_answers_are_rated_by_the_score_of_their_tokens(engine: Engine) -> None:
    ids = random_ids(30)
    for _ in range(2):  # the second time the prompt is cached
        chosen = engine.choose(ids, ANSWERS)
        for text, one in zip(ANSWERS, chosen, strict=True):
            ending = engine.tokenizer.encode(text, add_bos=False, parse_special=False)
            (score,) = engine.score([ids + ending])
            rated = [p for p in score.logprobs[len(ids) :] if p is not None]
            assert one.answer == text and one.tokens == len(ending) == len(rated)
            assert one.logprob == math.fsum(rated)
            assert one.mean_logprob == pytest.approx(one.logprob / len(ending))
        weights = [math.exp(one.logprob) for one in chosen]
        for one, weight in zip(chosen, weights, strict=True):
            # Sums of floats in another order.
            assert one.probability == pytest.approx(weight / sum(weights), rel=1e-9)
    (alone,) = engine.choose("once upon", ["a"])
    assert alone.probability == 1.0


def test_answers_that_are_none_are_refused(engine: Engine) -> None:
    for answers in ([], "yes", ["a", ""]):
        with pytest.raises(RequestError) as caught:
            engine.choose("once upon", answers)  # type: ignore[arg-type]
        assert caught.value.param == "answers"


def test_a_reader_and_prompt_log_probabilities_are_two_readers(engine: Engine) -> None:
    with pytest.raises(RequestError, match="beside a reader") as caught:
        engine.submit([1, 5], SamplingParams(prompt_logprobs=1), reader=LogitsReader())
    assert caught.value.param == "prompt_logprobs"


class Broken(LogitsReader):
    """Fails at a later chunk."""

    def read(self, start: int, rows_TC: Tensor) -> None:
        if start >= 40:
            raise ValueError("cannot read")
        super().read(start, rows_TC)


def test_a_reader_that_fails_ends_its_request_alone(engine: Engine) -> None:
    ids = random_ids(70)
    (want,) = engine.generate([ids], GREEDY)
    names = [engine.submit(ids, GREEDY), engine.submit(ids, GREEDY, reader=Broken())]
    ends = run_off(engine)
    assert ends[names[0]].token_ids == want.token_ids
    assert ends[names[1]].finish_reason is FinishReason.ERROR
    assert ends[names[1]].error == "ValueError: cannot read"


def test_of_a_prompt_that_was_cancelled_nothing_is_told(engine: Engine) -> None:
    ids = random_ids(140)
    name = engine.submit(ids, replace(GREEDY, prompt_logprobs=1))
    engine.step()  # the first 48 tokens
    engine.cancel(name)
    done = run_off(engine)[name]
    assert done.finish_reason is FinishReason.CANCELLED and done.prompt_logprobs is None
