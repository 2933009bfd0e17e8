"""Output processor: choices of one request, their order, log-probabilities, where tokens begin."""

from __future__ import annotations

import codecs
import json
import random
from typing import Any

import pytest
from test_output import END, PIECES, ByteTokens, drawn, written

from halfbyte.engine.params import SamplingParams
from halfbyte.engine.request import Completion, Delta, FinishReason, Request, Sampled, TokenEvent
from halfbyte.engine.serve.output import OutputProcessor

PROMPT = [1, 1, 1]


def processor(count: int = 1, name: str = "r", **params: Any) -> OutputProcessor:
    """Follows one request of so many choices: ``r``, ``r1`` ..., with seeds from 40 on."""
    out = OutputProcessor(ByteTokens(), frozenset({END}))  # type: ignore[arg-type]
    add(out, count, name, **params)
    return out


def add(out: OutputProcessor, count: int, name: str, **params: Any) -> None:
    requests = [
        Request(
            f"{name}{index or ''}", PROMPT, SamplingParams(**{**params, "seed": 40 + index}),
            index=index,
        )
        for index in range(count)
    ]  # fmt: skip
    out.add(requests)
    out.started(name, 2)


def fresh_rng() -> random.Random:
    seed = random.randrange(1 << 40)
    print("seed", seed)
    return random.Random(seed)


def feed(out: OutputProcessor, tokens: list[int], finish: FinishReason) -> list[Delta]:
    """One event a token with its log-probability, minus its id; ``finish`` with the last."""
    deltas = []
    for index, token in enumerate(tokens):
        ends = finish if index == len(tokens) - 1 else None
        delta = out.process(TokenEvent("r", (Sampled(token, -float(token)),), ends))
        if delta is not None:
            deltas.append(delta)
    return deltas


def begins(tokens: list[int]) -> list[int]:
    """Whole characters before each token."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    count, out = 0, []
    for token in tokens:
        out.append(count)
        count += len(decoder.decode(PIECES[token]))
    return out


def test_offsets_are_where_characters_begin() -> None:
    deltas = feed(processor(logprobs=0), [1, 3, 5, 6, 7, 4], FinishReason.LENGTH)
    done = deltas[-1].completion
    assert done is not None and done.text == "aabéé€ c"
    # Both halves of a character begin where it does.
    assert done.text_offsets == (0, 1, 3, 3, 4, 6)
    assert tuple(o for d in deltas for o in d.text_offsets) == done.text_offsets
    assert tuple(s for d in deltas for s in d.logprobs) == done.logprobs
    assert [s.logprob for s in done.logprobs or ()] == [-1.0, -3.0, -5.0, -6.0, -7.0, -4.0]


def test_offsets_of_random_answers() -> None:
    """With stop strings, which hold text back and cut it off, and their tokens with it."""
    rng, cut = fresh_rng(), 0
    for _ in range(300):
        tokens = [rng.randrange(1, len(PIECES)) for _ in range(rng.randint(1, 15))]
        stop = rng.sample(["aa", "ab", "b c", "<stop>", "stop", "é", ">\n"], 2)
        fields = {"stop": stop, "min_tokens": rng.choice([0, 0, 3])}
        deltas = feed(processor(logprobs=1, **fields), tokens, FinishReason.LENGTH)
        done = deltas[-1].completion
        assert done is not None and done.text_offsets is not None and done.logprobs is not None
        used = len(done.token_ids)
        assert [s.token for s in done.logprobs] == done.token_ids == tokens[:used]
        size = len(done.text)
        assert done.text_offsets == tuple(min(o, size) for o in begins(tokens[:used]))
        assert tuple(s for d in deltas for s in d.logprobs) == done.logprobs
        cut += done.finish_reason is FinishReason.STOP
    assert 30 < cut < 270


def test_what_has_no_text_begins_where_the_next_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ByteTokens, "token_bytes", written)
    deltas = feed(processor(logprobs=0, ignore_eos=True), [1, END, 2], FinishReason.LENGTH)
    done = deltas[-1].completion
    assert done is not None and done.text == "ab" and done.text_offsets == (0, 1, 1)


def test_log_probabilities_come_only_if_asked_for() -> None:
    fields: dict[str, Any]
    for fields in ({}, {"n": 1, "best_of": 2}):
        out = processor(**fields)
        delta = out.process(TokenEvent("r", (Sampled(1, -1.0),), FinishReason.LENGTH))
        assert delta is not None and delta.logprobs == delta.text_offsets == ()
        done = delta.completion
        assert done is not None and done.logprobs is None and done.text_offsets is None
        assert done.prompt_logprobs is None
        assert not {"logprobs", "text_offsets", "prompt_logprobs", "choices"} & set(done.to_dict())


def end_in_order(
    out: OutputProcessor, answers: dict[str, tuple[list[int], float]], order: list[str]
) -> list[Delta]:
    """Each choice gets its tokens, all of one log-probability, and ends, in this order."""
    deltas = []
    for name in order:
        tokens, logprob = answers[name]
        for index, token in enumerate(tokens):
            finish = FinishReason.LENGTH if index == len(tokens) - 1 else None
            delta = out.process(TokenEvent(name, (Sampled(token, logprob),), finish))
            assert delta is not None and delta.request_id == "r"
            deltas.append(delta)
    return deltas


ANSWERS: dict[str, tuple[list[int], float]] = {
    "r": ([1, 2], -2.0),
    "r1": ([2], -1.0),
    "r2": ([1, 1, 1, 1], -0.75),
    "r3": ([2, 2], -1.0),
}


def test_choices_come_in_their_own_order() -> None:
    """Whichever ends first; the request is over with the last of them."""
    rng = fresh_rng()
    for _ in range(10):
        order = rng.sample([*ANSWERS], 4)
        out = processor(4, n=4)
        deltas = end_in_order(out, ANSWERS, order)
        assert [d.completion is None for d in deltas] == [True] * (len(deltas) - 1) + [False]
        done = deltas[-1].completion
        assert done is not None and "r" not in out and out.live() == []
        assert [c.text for c in done.choices] == ["ab", "b", "aaaa", "bb"]
        assert [c.index for c in done.choices] == [0, 1, 2, 3]
        assert [c.seed for c in done.choices] == [40, 41, 42, 43]
        assert (done.text, done.token_ids, done.index, done.seed) == ("ab", [1, 2], 0, 40)
        usage = done.usage
        assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (3, 9, 2)
        by_index = {d.index: d for d in deltas if d.finish is not None}
        assert [by_index[i].finish for i in range(4)] == [FinishReason.LENGTH] * 4


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_best_come_first(n: int) -> None:
    """By the mean of a token, not by the sum; the earlier one of equals."""
    rng = fresh_rng()
    for _ in range(5):
        out = processor(4, n=n, best_of=4)
        done = end_in_order(out, ANSWERS, rng.sample([*ANSWERS], 4))[-1].completion
        assert done is not None
        chosen = done.choices if n > 1 else (done,)
        assert [c.text for c in chosen] == ["aaaa", "b", "bb"][:n]
        assert [c.seed for c in chosen] == [42, 41, 43][:n]
        assert [c.index for c in chosen] == [*range(n)]
        assert done.usage.completion_tokens == 9 and bool(done.choices) == (n > 1)


@pytest.mark.parametrize("finish", [FinishReason.ERROR, FinishReason.CANCELLED])
def test_what_failed_or_is_empty_is_the_last_choice(finish: FinishReason) -> None:
    """The mean of no log-probability is none; that of an unfinished answer is no merit."""
    out = processor(3, n=2, best_of=3)
    out.process(TokenEvent("r", (), finish, "boom" if finish is FinishReason.ERROR else None))
    out.process(TokenEvent("r1", (Sampled(1, -9.0),), FinishReason.LENGTH))
    delta = out.process(TokenEvent("r2", (Sampled(2, -8.0),), FinishReason.LENGTH))
    assert delta is not None and delta.completion is not None
    assert [c.text for c in delta.completion.choices] == ["b", "a"]


def test_requests_keep_apart() -> None:
    out = processor(2, n=2)
    add(out, 3, "s", n=3)
    assert out.live() == ["r", "s"] and "s" in out and "s1" not in out
    assert out.members("s") == ["s", "s1", "s2"] and out.members("r1") == []
    assert out.members("unknown") == []
    out.process(TokenEvent("s", drawn(1), FinishReason.LENGTH))
    assert out.members("s") == ["s1", "s2"] and "s" in out
    assert out.process(TokenEvent("s", drawn(1))) is None
    out.process(TokenEvent("r", drawn(1), FinishReason.LENGTH))
    delta = out.process(TokenEvent("r1", drawn(2), FinishReason.LENGTH))
    assert delta is not None and delta.request_id == "r" and delta.completion is not None
    assert out.live() == ["s"]


def test_a_stop_string_ends_one_choice() -> None:
    out = processor(2, n=2, stop="ab")
    out.process(TokenEvent("r", drawn(1)))
    delta = out.process(TokenEvent("r", drawn(2, 1, 1)))
    assert delta is not None and delta.finish is FinishReason.STOP and delta.stop_reason == "ab"
    assert delta.token_ids == (2,) and delta.completion is None and out.members("r") == ["r1"]
    delta = out.process(TokenEvent("r1", drawn(1), FinishReason.LENGTH))
    assert delta is not None and delta.index == 1 and delta.stop_reason is None
    assert delta.completion is not None
    stops = [(c.text, c.stop_reason) for c in delta.completion.choices]
    assert stops == [("", "ab"), ("a", None)]


def test_choices_as_json() -> None:
    out = processor(2, n=2, logprobs=1)
    top = ((1, -0.5), (2, -1.5))
    out.process(TokenEvent("r", (Sampled(1, -0.5, top),), FinishReason.LENGTH))
    delta = out.process(TokenEvent("r1", (Sampled(2, -1.5, top),), FinishReason.LENGTH))
    assert delta is not None and isinstance(delta.completion, Completion)
    data = json.loads(json.dumps(delta.completion.to_dict()))
    assert [choice["index"] for choice in data["choices"]] == [0, 1]
    assert data["logprobs"] == data["choices"][0]["logprobs"]
    assert data["choices"][1]["logprobs"] == [
        {"token": 2, "logprob": -1.5, "top": [[1, -0.5], [2, -1.5]]}
    ]
    assert data["choices"][1]["text_offsets"] == [0] and data["usage"]["total_tokens"] == 5
    assert all("choices" not in choice for choice in data["choices"])
