"""Request bodies: what is taken, what is refused, and which field the refusal names."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from halfbyte.engine.params import SamplingParams, table
from halfbyte.errors import RequestError
from halfbyte.server.schema import (
    MAX_PROMPTS,
    MAX_VALUES,
    ChatCompletionRequest,
    CompletionRequest,
    TokenizeRequest,
    parse,
)

SAY = [{"role": "user", "content": "hi"}]


def completion(**fields: Any) -> CompletionRequest:
    return parse(CompletionRequest, json.dumps({"prompt": "a", **fields}).encode())


def chat(**fields: Any) -> ChatCompletionRequest:
    return parse(ChatCompletionRequest, json.dumps({"messages": SAY, **fields}).encode())


def refused(kind: Any, body: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(kind, body)
    return caught.value


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hi", ["hi"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_prompt_shapes(prompt: Any, expected: Any) -> None:
    assert completion(prompt=prompt).prompts() == expected


@pytest.mark.parametrize(
    "prompt",
    [5, None, [], [[]], {}, [True], [1.0], [1, "a"], [[1], "a"], [[1], [True]], [-1], [[2**40]]],
)
def test_bad_prompts(prompt: Any) -> None:
    assert refused(CompletionRequest, json.dumps({"prompt": prompt}).encode()).param == "prompt"


def test_prompt_count_is_bounded() -> None:
    assert len(completion(prompt=["a"] * MAX_PROMPTS).prompts()) == MAX_PROMPTS
    error = refused(CompletionRequest, json.dumps({"prompt": ["a"] * (MAX_PROMPTS + 1)}).encode())
    assert str(MAX_PROMPTS) in str(error) and str(MAX_PROMPTS + 1) in str(error)


def test_defaults_are_those_of_the_api() -> None:
    assert completion().sampling(16) == SamplingParams(max_tokens=16)
    assert completion().sampling(16).temperature == 1.0
    assert completion().token_limit is None and chat().token_limit is None


def test_every_optional_field_may_be_null() -> None:
    for kind, needed in ((CompletionRequest, {"prompt": "a"}), (ChatCompletionRequest, {})):
        body: dict[str, Any] = dict.fromkeys(kind.model_fields)
        body.update(dict.fromkeys(kind.not_honoured))
        body.update(needed or {"messages": SAY})
        request = parse(kind, json.dumps(body).encode())
        assert request.sampling(7) == SamplingParams(max_tokens=7)


def test_all_sampling_fields_arrive() -> None:
    given: dict[str, Any] = {
        "temperature": 0.5,
        "dynatemp_range": 0.25,
        "dynatemp_exponent": 2.0,
        "top_p": 0.9,
        "top_k": 40,
        "top_n_sigma": 1.5,
        "typical_p": 0.8,
        "min_p": 0.05,
        "xtc_probability": 0.5,
        "xtc_threshold": 0.2,
        "repetition_penalty": 1.1,
        "presence_penalty": -1,
        "frequency_penalty": 2,
        "dry_multiplier": 0.8,
        "dry_base": 2.0,
        "dry_allowed_length": 3,
        "dry_penalty_last_n": 64,
        "dry_sequence_breakers": ["."],
        "logit_bias": {"5": 1.5, "7": -100},
        "allowed_token_ids": [5, 6, 7],
        "bad_words": ["a b"],
        "seed": 7,
        "min_tokens": 2,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "include_stop_str_in_output": True,
        "stop": ["x", "y"],
        "stop_token_ids": [5, 6],
    }
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    expected: Any = {**given, **lists, "logit_bias": {5: 1.5, 7: -100.0}}
    assert chat(**given).sampling(9) == SamplingParams(max_tokens=9, **expected)
    # They replace some of those above.
    other: Any = {"mirostat": 2, "mirostat_tau": 3.0, "mirostat_eta": 0.2}
    assert chat(**other).sampling(9) == SamplingParams(max_tokens=9, **other)
    every = {name for name, param in table().items() if param.http}
    assert {*given, *other, "max_tokens"} == every
    assert completion(stop="x").sampling(9).stop == ("x",)


def test_newer_token_limit_wins() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).token_limit == 7
    assert chat(max_tokens=5, max_completion_tokens=None).token_limit == 5


def test_negative_seeds_are_distinct() -> None:
    for seed in (-(1 << 63), -3, -2, 0, 2, 3):
        assert completion(seed=seed).sampling(1).seed == seed
    # -1 asks for a drawn one, as with llama.cpp and vLLM.
    assert completion(seed=-1).sampling(1).seed is None


@pytest.mark.parametrize("value", ["1", "[]", "{}", '"a"'])
def test_bodies_of_very_many_values_are_refused_before_they_are_read(value: str) -> None:
    for count, fits in ((MAX_VALUES // 2 - 10, True), (MAX_VALUES + 1, False)):
        body = "".join(['{"prompt": "a", "unheard_of": [', ",".join([value] * count), "]}"])
        if fits:
            parse(CompletionRequest, body.encode())
        else:
            assert refused(CompletionRequest, body.encode()).code == "request_too_large"


NUMBERS = {
    "temperature": (["-0.1", "100.5", "1e999", "NaN", "-Infinity"], "0.7"),
    "top_p": (["-0.1", "-1e-300", "1.01", "-1", "NaN"], "0"),
    "min_p": (["-0.1", "1.1"], "0.5"),
    "top_k": (["-2", "1.5", "9" * 40], "-1"),
    "repetition_penalty": (["0", "-1", "101", "1e-300", "1e300"], "1.5"),
    "presence_penalty": (["2.1", "-2.1"], "-0.0"),
    "frequency_penalty": (["2.1", "-2.1"], "2"),
    "max_tokens": (["-1", "16.5", "9" * 40], "0"),
    "min_tokens": (["-1", "1e3"], "3"),
    "seed": (["9" * 40, "1.5"], "-9223372036854775808"),
    "priority": (["9" * 40, "0.5"], "-5"),
}


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_numbers_are_strict(name: str) -> None:
    bad, good = NUMBERS[name]
    for text in [*bad, "true", "false", '"1"', "[1]", "{}"]:
        error = refused(CompletionRequest, f'{{"prompt": "a", "{name}": {text}}}'.encode())
        assert error.param == name, text
    parse(CompletionRequest, f'{{"prompt": "a", "{name}": {good}}}'.encode())


@pytest.mark.parametrize("name", ["stream", "ignore_eos", "add_special_tokens"])
def test_booleans_are_strict(name: str) -> None:
    for value in (1, 0, "true", "no", [], {}):
        body = json.dumps({"prompt": "a", name: value}).encode()
        assert refused(CompletionRequest, body).param == name


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[1]",
        b'"text"',
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a",}',
        b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"prompt":' * 5000,
    ],
)
def test_broken_json(body: bytes) -> None:
    assert refused(CompletionRequest, body).code == "invalid_json"


def test_random_bytes_never_raise_anything_else() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    base = json.dumps({"prompt": "añ", "stop": ["x"], "max_tokens": 5, "n": 1}).encode()
    for _ in range(500):
        body = bytearray(base)
        for _ in range(rng.randint(1, 4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        try:
            parse(CompletionRequest, bytes(body)).sampling(5)
        except RequestError as error:
            assert error.message, f"seed {seed}"


NOT_HONOURED: list[tuple[str, Any]] = [
    ("best_of", 3),
    ("prompt_logprobs", 0),
    ("functions", [{}]),
    ("echo", True),
    ("store", True),
    ("modalities", ["audio"]),
    ("chat_template", "{{ 1 }}"),
    ("use_beam_search", True),
]


@pytest.mark.parametrize(("name", "value"), NOT_HONOURED)
def test_known_fields_are_not_ignored(name: str, value: Any) -> None:
    error = refused(ChatCompletionRequest, json.dumps({"messages": SAY, name: value}).encode())
    assert error.param == name and name in str(error) and error.code == "unsupported_value"
    assert len(str(error)) < 300


@pytest.mark.parametrize(
    ("name", "value"), [("parallel_tool_calls", False), ("max_completion_tokens", 3)]
)
def test_known_completion_fields_are_not_ignored(name: str, value: Any) -> None:
    body = json.dumps({"prompt": "a", name: value}).encode()
    assert refused(CompletionRequest, body).param == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", True),
        ("n", 129),
        ("n", 10**400),
        ("logprobs", 1),
        ("top_logprobs", 21),
        ("top_logprobs", 3),  # without logprobs
        ("response_format", "json"),
    ],
)
def test_answers_and_their_form_are_bounded(name: str, value: Any) -> None:
    error = refused(ChatCompletionRequest, json.dumps({"messages": SAY, name: value}).encode())
    assert error.param == name and name in str(error) and len(str(error)) < 300


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 3, "stream": True}, "best_of"),
        ({"echo": True, "logprobs": 1, "stream": True}, "echo"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 0}, "best_of"),
    ],
)
def test_what_a_stream_cannot_know_is_refused(fields: dict[str, Any], param: str) -> None:
    error = refused(CompletionRequest, json.dumps({"prompt": "a", **fields}).encode())
    assert error.param == param


def test_best_of_must_hold_the_answers_wanted() -> None:
    request = completion(n=3, best_of=2)
    with pytest.raises(RequestError, match="best_of is 2, less than n, which is 3"):
        request.sampling(5)


def test_answers_and_log_probabilities_reach_the_parameters() -> None:
    params = completion(n=2, best_of=4, logprobs=3, echo=True).sampling(5)
    assert (params.n, params.best_of, params.logprobs, params.prompt_logprobs) == (2, 4, 3, 3)
    assert completion(echo=True).sampling(5).prompt_logprobs is None
    assert completion(prompt_logprobs=0).sampling(5).prompt_logprobs == 0
    assert chat(logprobs=True, top_logprobs=7).sampling(5).logprobs == 7
    assert chat(logprobs=True).sampling(5).logprobs == 0
    assert chat(logprobs=False).sampling(5).logprobs is None
    assert chat(n=5).sampling(5).n == 5


def test_harmless_values_and_unknown_fields_pass() -> None:
    request = chat(
        n=1,
        logprobs=False,
        top_logprobs=0,
        logit_bias={},
        response_format={"type": "text"},
        tools=[],
        tool_choice="auto",
        parallel_tool_calls=True,
        user="u",
        metadata={"a": "b"},
        service_tier="auto",
        something_new={"deep": [1]},
    )
    assert request.sampling(5) == SamplingParams(max_tokens=5)


def test_stream_options() -> None:
    assert completion(stream=True, stream_options={"include_usage": True}).include_usage
    assert not completion(stream=True, stream_options={}).include_usage
    assert not completion(stream=True).include_usage
    body = json.dumps({"prompt": "a", "stream_options": {"include_usage": True}}).encode()
    assert refused(CompletionRequest, body).param == "stream_options"
    options = {"continuous_usage_stats": True}
    body = json.dumps({"prompt": "a", "stream": True, "stream_options": options}).encode()
    assert refused(CompletionRequest, body).param == "stream_options.continuous_usage_stats"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hi", "messages"),
        ([{"role": "king", "content": "a"}], "messages.0.role"),
        ([{"content": "a"}], "messages.0.role"),
        ([SAY[0], {"role": "user", "content": 5}], "messages.1.content"),
        ([{"role": "user", "content": [{"text": "a"}]}], "messages.0.content.0.type"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "messages.0.content.0.text"),
        (SAY * 3000, "messages"),
    ],
)
def test_bad_messages_name_the_place(messages: Any, param: str) -> None:
    body = json.dumps({"messages": messages}).encode()
    assert refused(ChatCompletionRequest, body).param == param


def test_missing_fields() -> None:
    for kind, param in ((CompletionRequest, "prompt"), (ChatCompletionRequest, "messages")):
        error = refused(kind, b"{}")
        assert (error.param, error.code) == (param, "missing_required_parameter")


def test_tokenize_takes_exactly_one_source() -> None:
    for body in ({}, {"prompt": "a", "messages": SAY}):
        assert refused(TokenizeRequest, json.dumps(body).encode()).param == "prompt"
    assert parse(TokenizeRequest, b'{"prompt": "a"}').prompt == "a"


def test_request_id_and_cache_salt_are_bounded() -> None:
    assert completion(request_id="a.b-c_9").request_id == "a.b-c_9"
    for name, value in (("request_id", "a\nb"), ("request_id", "a" * 129), ("cache_salt", "")):
        body = json.dumps({"prompt": "a", name: value}).encode()
        assert refused(CompletionRequest, body).param == name
