"""Output processor: deltas, stop strings, stop tokens, min_tokens, timings, last words."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from halfbyte.engine.params import SamplingParams
from halfbyte.engine.request import (
    Completion,
    Delta,
    FinishReason,
    Request,
    Sampled,
    TokenEvent,
)
from halfbyte.engine.serve.output import OutputProcessor

END = 0
PIECES = [
    b"",
    b"a",
    b"b",
    b"ab",
    b" c",
    b"\xc3",
    b"\xa9",
    "é€".encode(),
    b"<",
    b"stop",
    b">",
    b"\n",
]


class ByteTokens:
    """Token i is ``PIECES[i]``; 0 is the end and special."""

    special_ids = frozenset({END})

    def token_bytes(self, token_id: int) -> bytes:
        return PIECES[token_id]


def written(self: ByteTokens, token_id: int) -> bytes:
    """The end as a token with a text."""
    return b"<end>" if token_id == END else PIECES[token_id]


def processor(**params: Any) -> OutputProcessor:
    """Follows one request, ``r``, with a prompt of three tokens."""
    out = OutputProcessor(ByteTokens(), frozenset({END}))  # type: ignore[arg-type]
    out.add([Request("r", [1, 1, 1], SamplingParams(seed=42, **params))])
    out.started("r", 2)
    return out


def drawn(*tokens: int) -> tuple[Sampled, ...]:
    return tuple(map(Sampled, tokens))


def feed(
    out: OutputProcessor, tokens: list[int], finish: FinishReason | None = None
) -> tuple[list[Delta], Completion | None]:
    """One event a token; ``finish`` comes with the last."""
    deltas: list[Delta] = []
    for index, token in enumerate(tokens):
        last = index == len(tokens) - 1
        delta = out.process(TokenEvent("r", drawn(token), finish if last else None))
        if delta is None:
            break
        deltas.append(delta)
    return deltas, deltas[-1].completion if deltas else None


def test_deltas_join_to_the_text() -> None:
    deltas, done = feed(processor(), [1, 2, 5, 6, 4, 7], FinishReason.LENGTH)
    assert done is not None and done.text == "abé cé€" == "".join(d.text for d in deltas)
    assert [d.text for d in deltas] == ["a", "b", "", "é", " c", "é€"]
    assert [d.token_ids for d in deltas] == [(t,) for t in (1, 2, 5, 6, 4, 7)]
    assert done.token_ids == [1, 2, 5, 6, 4, 7] and done.finish_reason is FinishReason.LENGTH
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.cached_tokens) == (
        3,
        6,
        2,
    )
    assert done.seed == 42 and done.stop_reason is None and done.error is None
    assert all(d.completion is None for d in deltas[:-1])


def test_a_broken_character_at_the_end_is_shown_as_such() -> None:
    deltas, done = feed(processor(), [1, 5], FinishReason.LENGTH)
    assert done is not None and done.text == "a\ufffd" and deltas[-1].text == "\ufffd"


def test_end_of_text_is_counted_but_gives_no_text() -> None:
    _, done = feed(processor(), [1, END], FinishReason.STOP)
    assert done is not None and done.text == "a" and done.token_ids == [1, END]
    assert done.finish_reason is FinishReason.STOP and done.stop_reason is None
    assert done.usage.completion_tokens == 2


def test_a_stop_token_is_named_and_gives_no_text() -> None:
    _, done = feed(processor(stop_token_ids=(3,)), [1, 3], FinishReason.STOP)
    assert done is not None and done.text == "a" and done.stop_reason == 3


def test_a_stop_token_held_off_by_min_tokens_is_text() -> None:
    _, done = feed(processor(stop_token_ids=(3,), min_tokens=2), [3, 3], FinishReason.STOP)
    assert done is not None and done.text == "ab" and done.stop_reason == 3


def test_the_last_token_of_the_length_limit_is_text() -> None:
    """It ends the answer, but not because of what it is."""
    _, done = feed(processor(), [1, 2], FinishReason.LENGTH)
    assert done is not None and done.text == "ab"


@pytest.mark.parametrize("stop", ["b>", "ab", "stop", "<stop", "é", "\n"])
def test_a_stop_string_ends_the_text_before_it(stop: str) -> None:
    tokens = [2, 1, 8, 9, 10, 1, 2, 10, 7, 11, 4, 4]
    whole = b"".join(PIECES[t] for t in tokens).decode()
    out = processor(stop=(stop,))
    deltas, done = feed(out, tokens)
    assert done is not None and done.finish_reason is FinishReason.STOP
    assert done.text == whole[: whole.index(stop)] == "".join(d.text for d in deltas)
    assert done.stop_reason == stop
    # Only tokens up to the one that completed the string are counted.
    needed = next(
        n
        for n in range(len(tokens))
        if stop.encode() in b"".join(PIECES[t] for t in tokens[: n + 1])
    )
    assert done.token_ids == tokens[: needed + 1] and done.usage.completion_tokens == needed + 1
    assert "r" not in out and out.process(TokenEvent("r", drawn(1))) is None


def test_no_character_of_a_stop_string_is_shown_early() -> None:
    deltas, done = feed(processor(stop=("<stop>",)), [1, 8, 9, 1], FinishReason.LENGTH)
    assert [d.text for d in deltas] == ["a", "", "", "<stopa"]
    assert done is not None and done.text == "a<stopa"


@pytest.mark.parametrize("finish", [FinishReason.LENGTH, FinishReason.STOP])
def test_a_stop_string_found_at_the_very_end_is_the_reason(finish: FinishReason) -> None:
    """``b<`` is complete, but held: ``ab<stop`` would begin earlier. Then the text ends."""
    tokens = [1, 2, 8, END] if finish is FinishReason.STOP else [1, 2, 8]
    _, done = feed(processor(stop=("ab<stop", "b<")), tokens, finish)
    assert done is not None and done.text == "a"
    assert done.finish_reason is FinishReason.STOP and done.stop_reason == "b<"


@pytest.mark.parametrize("finish", [FinishReason.CANCELLED, FinishReason.ERROR])
def test_cancelled_and_failed_answers_keep_what_they_have(finish: FinishReason) -> None:
    out = processor(stop=("<stop>",))
    feed(out, [1, 8])
    error = "boom" if finish is FinishReason.ERROR else None
    delta = out.process(TokenEvent("r", (), finish, error))
    assert delta is not None and delta.completion is not None and delta.text == "<"
    done = delta.completion
    assert (done.text, done.token_ids, done.finish_reason, done.error) == (
        "a<",
        [1, 8],
        finish,
        error,
    )
    assert out.process(TokenEvent("r", drawn(1))) is None


def test_min_tokens_protects_text_from_stop_strings() -> None:
    """Until then a stop string is plain text, and none may use characters from before."""
    _, done = feed(processor(stop=("ab",), min_tokens=4), [3, 3, 1, 2, 4, 1, 2, 4])
    assert done is not None and done.text == "ababab c" and done.stop_reason == "ab"
    assert len(done.token_ids) == 7


def test_min_tokens_are_part_of_the_answer() -> None:
    """The token that makes them full is; the one after it may end the text."""
    _, done = feed(processor(stop=("ab",), min_tokens=2), [1, 3, 3, 1])
    assert done is not None and done.text == "aab" and len(done.token_ids) == 3


@pytest.mark.parametrize(
    ("stop", "text"), [("<end>", "ab"), ("b<end>", "a"), ("ab<end>", ""), ("end", "ab")]
)
def test_the_end_token_may_be_a_stop_string(
    monkeypatch: pytest.MonkeyPatch, stop: str, text: str
) -> None:
    """It ends the text in any case; the stop string is the reason where it matches."""
    monkeypatch.setattr(ByteTokens, "token_bytes", written)
    for params in ({}, {"ignore_eos": True}, {"stop_token_ids": (END,)}):
        ends = FinishReason.LENGTH if "ignore_eos" in params else FinishReason.STOP
        deltas, done = feed(processor(stop=(stop,), **params), [1, 2, END], ends)
        assert done is not None and done.text == text == "".join(d.text for d in deltas)
        if stop == "end":  # a part of a hidden token is no text
            assert done.finish_reason is ends
            assert done.stop_reason == (END if "stop_token_ids" in params else None)
        else:
            assert done.finish_reason is FinishReason.STOP and done.stop_reason == stop


def test_a_special_token_in_a_stop_string_ends_the_text_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ByteTokens, "token_bytes", written)
    deltas, done = feed(processor(stop=("\n<end>",), ignore_eos=True), [1, 11, 2, 11, END, 1])
    assert [d.text for d in deltas] == ["a", "", "\nb", "", ""]
    assert done is not None and done.text == "a\nb" and done.token_ids == [1, 11, 2, 11, END]
    assert done.stop_reason == "\n<end>"


def test_nothing_is_held_back_before_min_tokens() -> None:
    deltas, _ = feed(processor(stop=("<stop>",), min_tokens=3), [8, 9])
    assert [d.text for d in deltas] == ["<", "stop"]


def test_ids_of_ended_and_unknown_requests_give_nothing() -> None:
    out = processor()
    assert out.process(TokenEvent("other", drawn(1))) is None
    feed(out, [1], FinishReason.LENGTH)
    assert "r" not in out and out.process(TokenEvent("r", drawn(1))) is None


def test_timings_follow_the_clock() -> None:
    out = OutputProcessor(ByteTokens(), frozenset({END}))  # type: ignore[arg-type]
    out.add([Request("r", [1] * 10, SamplingParams(temperature=0.0, seed=42))])
    begin = time.perf_counter()
    time.sleep(0.02)
    out.started("r", 4)
    out.started("r", 9)  # after a preemption: the first start counts
    time.sleep(0.03)
    out.process(TokenEvent("r", drawn(1)))
    for _ in range(2):
        time.sleep(0.01)
        out.process(TokenEvent("r", drawn(1)))
    delta = out.process(TokenEvent("r", drawn(2), FinishReason.LENGTH))
    elapsed = time.perf_counter() - begin
    assert delta is not None and delta.completion is not None
    t, usage = delta.completion.timings, delta.completion.usage
    assert usage.cached_tokens == 4
    # A sleep lasts at least as long as asked, and all of them fit into the time that passed.
    assert t.queue_s >= 0.02 and t.queue_s + 0.03 <= t.ttft_s and t.ttft_s + 0.02 <= t.total_s
    assert t.total_s <= elapsed + 1e-3
    assert t.prefill_tok_s == pytest.approx(6 / (t.ttft_s - t.queue_s))
    assert t.decode_tok_s == pytest.approx(3 / (t.total_s - t.ttft_s))
    assert delta.completion.seed is None


def test_timings_without_tokens() -> None:
    delta = processor().process(TokenEvent("r", (), FinishReason.CANCELLED))
    assert delta is not None and delta.completion is not None
    t = delta.completion.timings
    assert t.prefill_tok_s == t.decode_tok_s == 0.0
    assert min(t.queue_s, t.ttft_s, t.total_s) >= 0.0


def test_one_token_has_no_decode_speed() -> None:
    _, done = feed(processor(), [1], FinishReason.LENGTH)
    assert done is not None and done.timings.decode_tok_s == 0.0 and done.timings.prefill_tok_s > 0


def test_several_tokens_in_one_event() -> None:
    """A step may accept more than one; what follows a stop string is not text."""
    out = processor(stop=("b ",))
    delta = out.process(TokenEvent("r", drawn(1, 2, 4, 1)))
    assert delta is not None and delta.completion is not None
    assert delta.text == "a" == delta.completion.text
    assert delta.completion.token_ids == [1, 2, 4] == list(delta.token_ids)


def test_random_answers_are_cut_at_the_first_stop_string() -> None:
    seed = random.randrange(1 << 40)
    print("seed", seed)
    rng = random.Random(seed)
    cut = 0
    for _ in range(500):
        tokens = [rng.randrange(1, len(PIECES)) for _ in range(rng.randint(1, 15))]
        stops = tuple(rng.sample(["aa", "ab", "b c", "<stop>", "stop", "é", ">\n"], 2))
        deltas, done = feed(processor(stop=stops), tokens, FinishReason.LENGTH)
        assert done is not None
        used = len(done.token_ids)
        whole = b"".join(PIECES[t] for t in tokens[:used]).decode(errors="replace")
        found = [i for i in (whole.find(s) for s in stops) if i >= 0]
        assert done.text == (whole[: min(found)] if found else whole)
        assert done.text == "".join(d.text for d in deltas)
        assert (done.finish_reason is FinishReason.STOP) == bool(found)
        assert done.stop_reason in stops if found else used == len(tokens)
        cut += bool(found)
    assert 50 < cut < 450
