"""Answers as each endpoint writes them: indices, log-probabilities, echo, ends."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from halfbyte.engine.request import Completion, Delta, FinishReason, Sampled, Usage
from halfbyte.server.dialects.base import Dialect, Head, failed
from halfbyte.server.dialects.chat import ChatDialect
from halfbyte.server.dialects.completions import CompletionDialect
from halfbyte.server.dialects.token_text import LEAST_LOGPROB, TokenText, finite
from halfbyte.server.responses import PromptTokensDetails, UsageInfo

PIECES = {1: b"Hi", 2: b" you", 3: b"\xe6\xbc", 4: b"\xa2", 5: b"Say"}
USAGE = UsageInfo(
    prompt_tokens=1,
    completion_tokens=2,
    total_tokens=3,
    prompt_tokens_details=PromptTokensDetails(),
)
HEAD = Head("id-1", 7, "m", "hb-0", with_usage=False)


class Pieces:
    """The one call of a tokenizer that is needed."""

    def token_bytes(self, token: int) -> bytes:
        return PIECES[token]


TOKENS = TokenText(Pieces())  # type: ignore[arg-type]


def answer(index: int, ids: list[int], **more: Any) -> Completion:
    text = b"".join(PIECES[i] for i in ids).decode("utf-8", "replace")
    rated = tuple(Sampled(i, -0.5 * i, ((i, -0.5 * i), (5, -9.0))) for i in ids)
    offsets = tuple(
        len(b"".join(PIECES[i] for i in ids[:k]).decode("utf-8", "ignore")) for k in range(len(ids))
    )
    return Completion(
        text,
        ids,
        FinishReason.STOP,
        Usage(1, len(ids)),
        index=index,
        logprobs=rated,
        text_offsets=offsets,
        **more,
    )


def events(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in data.splitlines() if line.startswith(b"data: ")]


@pytest.mark.parametrize("kind", [ChatDialect, CompletionDialect])
def test_indices_count_prompts_times_answers(kind: type[Dialect]) -> None:
    dialect = kind(HEAD, TOKENS, 2, rated=False)
    first, second = answer(0, [1]), answer(1, [2])
    joined = Completion("", [], FinishReason.STOP, Usage(1, 2), choices=(first, second))
    body: Any = dialect.body([joined, joined], USAGE)
    assert [choice.index for choice in body.choices] == [0, 1, 2, 3]
    (event,) = events(dialect.delta(1, Delta("r", "x", (1,), index=1)))
    assert event["choices"][0]["index"] == 3


def test_a_chat_names_the_role_of_every_answer_first() -> None:
    opening = events(ChatDialect(HEAD, TOKENS, 2, rated=False).opening(2))
    assert [event["choices"][0]["index"] for event in opening] == [0, 1, 2, 3]
    assert all(event["choices"][0]["delta"]["role"] == "assistant" for event in opening)
    assert CompletionDialect(HEAD, TOKENS, 2, rated=False).opening(2) == b""


def test_chat_logprobs_have_exact_bytes() -> None:
    dialect = ChatDialect(HEAD, TOKENS, 1, rated=True)
    (choice,) = dialect.body([answer(0, [1, 3, 4])], USAGE).choices
    assert choice.message.content == "Hi漢" and choice.logprobs is not None
    content = choice.logprobs["content"]
    assert [bytes(entry["bytes"]) for entry in content] == [b"Hi", b"\xe6\xbc", b"\xa2"]
    assert content[1]["token"] == "bytes:\\xe6\\xbc"
    assert [top["token"] for top in content[0]["top_logprobs"]] == ["Hi", "Say"]
    assert content[0]["logprob"] == -0.5


def test_completion_logprobs_are_columns_of_one_length() -> None:
    dialect = CompletionDialect(HEAD, TOKENS, 1, rated=True)
    (choice,) = dialect.body([answer(0, [1, 2])], USAGE).choices
    shown = choice.logprobs
    assert shown is not None
    assert shown.tokens == ["Hi", " you"] and shown.token_logprobs == [-0.5, -1.0]
    assert shown.text_offset == [0, 2]
    assert shown.top_logprobs == [{"Hi": -0.5, "Say": -9.0}, {" you": -1.0, "Say": -9.0}]


@pytest.mark.parametrize("rated", [True, False])
def test_an_echoed_prompt_goes_before_the_answer(rated: bool) -> None:
    whole = answer(0, [1, 2], prompt_logprobs=(None, Sampled(2, -3.0)))
    dialect = CompletionDialect(HEAD, TOKENS, 1, rated=rated, echo=["Say you"], prompts=[[5, 2]])
    (choice,) = dialect.body([whole], USAGE).choices
    assert choice.text == "Say youHi you"
    if rated:
        assert choice.logprobs is not None
        assert choice.logprobs.tokens == ["Say", " you", "Hi", " you"]
        assert choice.logprobs.token_logprobs == [None, -3.0, -0.5, -1.0]
        assert choice.logprobs.text_offset == [0, 3, 7, 9]
    else:
        assert choice.logprobs is None
        first = events(dialect.delta(0, Delta("r", "Hi", (1,))))
        second = events(dialect.delta(0, Delta("r", " you", (2,))))
        texts = [event["choices"][0]["text"] for event in [*first, *second]]
        assert texts == ["Say you", "Hi", " you"]


def test_every_answer_ends_once_in_a_stream() -> None:
    dialect = CompletionDialect(HEAD, TOKENS, 2, rated=False)
    end = Delta("r", "!", (1,), None, 1, finish=FinishReason.LENGTH, stop_reason=9)
    piece, last = events(dialect.delta(0, end))
    assert piece["choices"][0]["text"] == "!" and piece["choices"][0]["finish_reason"] is None
    assert last["choices"][0] == {
        "index": 1,
        "text": "",
        "logprobs": None,
        "finish_reason": "length",
        "stop_reason": 9,
    }


def test_held_back_text_still_shows_its_log_probabilities() -> None:
    dialect = ChatDialect(HEAD, TOKENS, 1, rated=True)
    delta = Delta("r", "", (3,), logprobs=(Sampled(3, -1.0),), text_offsets=(0,))
    (event,) = events(dialect.delta(0, delta))
    assert event["choices"][0]["logprobs"]["content"][0]["logprob"] == -1.0


def test_impossible_tokens_have_a_finite_number() -> None:
    assert finite(-math.inf) == LEAST_LOGPROB and finite(None) is None and finite(-2.0) == -2.0
    rated = TOKENS.prompt((None, Sampled(1, -math.inf, ((2, -1.0),))))
    assert rated[0] is None and rated[1] is not None
    assert rated[1]["1"] == {"logprob": LEAST_LOGPROB, "rank": None, "decoded_token": "Hi"}
    assert rated[1]["2"]["rank"] == 1


def test_one_failed_answer_fails_its_request() -> None:
    good, bad = answer(0, [1]), Completion("", [], FinishReason.ERROR, Usage(1, 0), index=1)
    assert failed(good) is None and failed(bad) is bad
    joined = Completion("", [], FinishReason.STOP, Usage(1, 1), choices=(good, bad))
    assert failed(joined) is bad
