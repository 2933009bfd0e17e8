"""The endpoints over a fake engine, in process: shapes, streams, defaults."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from fake_engine import EOS, FakeEngine

from halfbyte.server.responses import (
    CompletionChoice,
    PromptTokensDetails,
    TextCompletion,
    TokenizeResponse,
    UsageInfo,
)

pytestmark = pytest.mark.anyio

SAY = [{"role": "user", "content": "héllo 漢🙂"}]


async def post(http: httpx.AsyncClient, path: str, **body: Any) -> Any:
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def events(http: httpx.AsyncClient, path: str, **body: Any) -> list[dict[str, Any]]:
    """The chunks of a stream, which must end with [DONE]."""
    response = await http.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    parts = response.text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    assert all(part.startswith("data: {") and "\n" not in part for part in parts[:-2])
    return [json.loads(part[len("data: ") :]) for part in parts[:-2]]


async def test_completion_shape_and_default_length(http: httpx.AsyncClient) -> None:
    got = await post(http, "/v1/completions", prompt="x" * 40, temperature=0, model="fake-model")
    assert got["object"] == "text_completion" and got["id"].startswith("cmpl-")
    assert got["model"] == "fake-model" and got["system_fingerprint"].startswith("hb-")
    (choice,) = got["choices"]
    assert choice["text"] == "echo: " + "x" * 10 and choice["finish_reason"] == "length"
    assert got["usage"] == {
        "prompt_tokens": 41,
        "completion_tokens": 16,
        "total_tokens": 57,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def test_no_tokens_at_all(http: httpx.AsyncClient) -> None:
    """The prompt alone is computed, which fills the prefix cache."""
    for stream in (False, True):
        asked: dict[str, Any] = {"max_tokens": 0, "stream": stream}
        if stream:
            asked["stream_options"] = {"include_usage": True}
            *rest, last = await events(http, "/v1/completions", prompt="abc", **asked)
            choices = [choice for chunk in rest for choice in chunk["choices"]]
        else:
            last = await post(http, "/v1/completions", prompt="abc", **asked)
            choices = last["choices"]
        assert "".join(choice["text"] for choice in choices) == ""
        assert choices[-1]["finish_reason"] == "length"
        assert last["usage"]["prompt_tokens"] == 4 == last["usage"]["total_tokens"]


async def test_prompts_of_all_shapes(http: httpx.AsyncClient) -> None:
    many = await post(http, "/v1/completions", prompt=["ab", "cd"], temperature=0)
    assert [c["text"] for c in many["choices"]] == ["echo: ab", "echo: cd"]
    assert [c["index"] for c in many["choices"]] == [0, 1]
    # BOS + 2 bytes each; 8 bytes and the end token each.
    assert many["usage"]["prompt_tokens"] == 6 and many["usage"]["completion_tokens"] == 18
    ids = await post(http, "/v1/completions", prompt=[97, 98], temperature=0)
    assert ids["choices"][0]["text"] == "echo: ab" and ids["usage"]["prompt_tokens"] == 2
    lists = await post(http, "/v1/completions", prompt=[[97], [98, 99]], temperature=0)
    assert [c["text"] for c in lists["choices"]] == ["echo: a", "echo: bc"]
    plain = await post(
        http, "/v1/completions", prompt="ab", temperature=0, add_special_tokens=False
    )
    assert plain["usage"]["prompt_tokens"] == 2


async def test_chat_shape(http: httpx.AsyncClient) -> None:
    got = await post(http, "/v1/chat/completions", messages=SAY, temperature=0)
    assert got["object"] == "chat.completion" and got["id"].startswith("chatcmpl-")
    (choice,) = got["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == "echo: user\nhéllo 漢🙂"
    assert choice["finish_reason"] == "stop" and choice["stop_reason"] is None


async def test_chat_default_length_is_the_context(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    got = await post(http, "/v1/chat/completions", messages=SAY, ignore_eos=True)
    assert got["choices"][0]["finish_reason"] == "length"
    assert got["usage"]["total_tokens"] == engine.max_context


async def test_default_length_gives_way_to_the_context(http: httpx.AsyncClient) -> None:
    got = await post(http, "/v1/completions", prompt=[97] * 505, temperature=0)
    assert got["usage"]["completion_tokens"] == 7


async def test_chat_stream_protocol(http: httpx.AsyncClient) -> None:
    chunks = await events(
        http,
        "/v1/chat/completions",
        messages=SAY,
        temperature=0,
        stream_options={"include_usage": True},
    )
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({(c["id"], c["created"], c["model"], c["system_fingerprint"]) for c in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    middle = [c["choices"][0] for c in chunks[1:-2]]
    assert "".join(c["delta"]["content"] for c in middle) == "echo: user\nhéllo 漢🙂"
    assert all(c["finish_reason"] is None for c in middle)
    end = chunks[-2]["choices"][0]
    assert end["delta"] == {} and end["finish_reason"] == "stop"
    assert all(c["usage"] is None for c in chunks[:-1])
    assert chunks[-1]["choices"] == []
    whole = await post(http, "/v1/chat/completions", messages=SAY, temperature=0)
    cached = chunks[-1]["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == 0 and whole["usage"]["prompt_tokens_details"]["cached_tokens"] == 16
    for field in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert chunks[-1]["usage"][field] == whole["usage"][field]


async def test_no_usage_in_a_stream_unless_asked(http: httpx.AsyncClient) -> None:
    chunks = await events(http, "/v1/completions", prompt="a", temperature=0)
    assert all("usage" not in c and len(c["choices"]) == 1 for c in chunks)


async def test_batched_stream_has_indexes_and_one_end_each(http: httpx.AsyncClient) -> None:
    prompts = ["one", "second", "the third é"]
    chunks = await events(
        http,
        "/v1/completions",
        prompt=prompts,
        temperature=0,
        max_tokens=40,
        stream_options={"include_usage": True},
    )
    texts = ["", "", ""]
    ends = []
    for chunk in chunks[:-1]:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        if choice["finish_reason"]:
            ends.append(choice["index"])
    assert texts == [f"echo: {p}" for p in prompts] and sorted(ends) == [0, 1, 2]
    whole = await post(http, "/v1/completions", prompt=prompts, temperature=0, max_tokens=40)
    assert [c["text"] for c in whole["choices"]] == texts
    assert chunks[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


@pytest.mark.parametrize("seed", [0, 1, 12345, -4])
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 50])
async def test_stream_equals_whole_for_a_seed(
    http: httpx.AsyncClient, seed: int, max_tokens: int
) -> None:
    """Characters are split across tokens, and the limit may cut one: both must agree."""
    body = {"prompt": "p", "seed": seed, "max_tokens": max_tokens}
    whole = await post(http, "/v1/completions", **body)
    chunks = await events(http, "/v1/completions", **body)
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


async def test_seed_decides_and_no_seed_varies(http: httpx.AsyncClient) -> None:
    body = {"prompt": "p", "max_tokens": 60}
    texts = [
        (await post(http, "/v1/completions", **body, seed=s))["choices"][0]["text"]
        for s in (1, 1, 2, None, None)
    ]
    assert texts[0] == texts[1] and len(set(texts)) == 4


@pytest.mark.parametrize("stop", ["lo", ["zzz", "o 漢"], ["héllo 漢🙂 never"]])
async def test_stop_strings_across_tokens(http: httpx.AsyncClient, stop: Any) -> None:
    body = {"messages": SAY, "temperature": 0, "stop": stop}
    whole = await post(http, "/v1/chat/completions", **body)
    chunks = await events(http, "/v1/chat/completions", **body)
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    full = "echo: user\nhéllo 漢🙂"
    hits = [s for s in ([stop] if isinstance(stop, str) else stop) if s in full]
    expected = full.partition(hits[0])[0] if hits else full
    assert text == expected == whole["choices"][0]["message"]["content"]
    assert whole["choices"][0]["stop_reason"] == (hits[0] if hits else None)
    assert chunks[-1]["choices"][0]["stop_reason"] == (hits[0] if hits else None)
    assert whole["choices"][0]["finish_reason"] == "stop"


async def test_stop_token_and_min_tokens(http: httpx.AsyncClient) -> None:
    body = {"prompt": "ab", "temperature": 0, "max_tokens": 30}
    got = await post(http, "/v1/completions", **body, stop_token_ids=[ord("a")])
    assert got["choices"][0]["text"] == "echo: " and got["choices"][0]["stop_reason"] == ord("a")
    got = await post(http, "/v1/completions", **body, min_tokens=12)
    assert got["usage"]["completion_tokens"] >= 12
    got = await post(http, "/v1/completions", **body, stop_token_ids=[EOS], ignore_eos=True)
    assert got["choices"][0]["stop_reason"] == EOS


async def test_content_parts_and_developer_role(http: httpx.AsyncClient) -> None:
    messages = [
        {"role": "developer", "content": "rules"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    got = await post(http, "/v1/chat/completions", messages=messages, temperature=0)
    assert got["choices"][0]["message"]["content"] == "echo: user\na\nb"
    plain = [{"role": "system", "content": "rules"}, {"role": "user", "content": "a\nb"}]
    same = await post(http, "/tokenize", messages=plain)
    assert (await post(http, "/tokenize", messages=messages))["tokens"] == same["tokens"]


async def test_models(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/models")).json()
    assert listed["object"] == "list"
    (card,) = listed["data"]
    assert card["id"] == "fake-model" and card["object"] == "model"
    assert card["max_model_len"] == 512 and card["owned_by"] == "halfbyte"
    assert card["aliases"] == []
    assert (await http.get("/v1/models/fake-model")).json() == card
    assert (await http.get("/v1/models/")).status_code == 404


async def test_tokenize_and_back(http: httpx.AsyncClient) -> None:
    text = "añ漢"
    got = await post(http, "/tokenize", prompt=text, return_token_strs=True)
    assert got["tokens"] == [256, *text.encode()] and got["count"] == 7
    assert got["max_model_len"] == 512 and len(got["token_strs"]) == 7
    bare = await post(http, "/tokenize", prompt=text, add_special_tokens=False)
    assert bare["tokens"] == list(text.encode()) and bare["token_strs"] is None
    assert (await post(http, "/detokenize", tokens=bare["tokens"])) == {
        name: text for name in ("prompt", "content")
    }
    bad = await http.post("/detokenize", json={"tokens": [5, 260]})
    assert bad.status_code == 400 and "260" in bad.json()["error"]["message"]


async def test_information(http: httpx.AsyncClient) -> None:
    for path in ("/health", "/v1/health"):
        assert (await http.get(path)).status_code == 200
    assert (await http.get("/ready")).status_code == 200
    assert set((await http.get("/version")).json()) == {"version"}
    document = (await http.get("/openapi.json")).json()
    names = document["components"]["schemas"]
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert body["schema"]["$ref"].rpartition("/")[2] in names


async def test_request_ids(http: httpx.AsyncClient) -> None:
    body = {"prompt": "a", "max_tokens": 1}
    own = await http.post("/v1/completions", json=body, headers={"X-Request-Id": "abc.1"})
    assert own.headers["x-request-id"] == "abc.1" and own.json()["id"] == "cmpl-abc.1"
    for bad in ("a b", "x" * 129, "é"):
        response = await http.post(
            "/v1/completions", json=body, headers={b"X-Request-Id": bad.encode()}
        )
        assert len(response.headers["x-request-id"]) == 32
    named = await http.post("/v1/completions", json={**body, "request_id": "mine"})
    assert named.json()["id"] == "cmpl-mine"
    assert (await http.get("/nowhere")).headers["x-request-id"]


def test_the_text_of_a_response_is_pydantics() -> None:
    tokens = TokenizeResponse(count=2, max_model_len=9, tokens=[1, 2], token_strs=["é", '"'])
    usage = UsageInfo(
        prompt_tokens=1,
        completion_tokens=2,
        total_tokens=3,
        prompt_tokens_details=PromptTokensDetails(),
    )
    choice = CompletionChoice(index=0, text="\x00漢🙂\n", finish_reason="stop", stop_reason=7)
    answer = TextCompletion(
        id="a", created=1, model="m", system_fingerprint="f", choices=[choice], usage=usage
    )
    for response in (tokens, answer):
        assert response.to_json() == response.model_dump_json().encode()


def test_a_long_list_of_tokens_is_taken_as_it_is() -> None:
    # Checking millions of them, one by one, would hold up every stream.
    ids = [1] * 1000
    assert TokenizeResponse(count=1000, max_model_len=9, tokens=ids).tokens is ids
