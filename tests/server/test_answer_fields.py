"""vLLM's fields of prompts and answers: ids, special tokens, stops that stay, cut prompts."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import EOS, TURN, FakeEngine
from server_support import Site, client_of

from halfbyte import Engine
from halfbyte.engine.text.chat_template import ChatTemplate

pytestmark = pytest.mark.anyio


@pytest.fixture
async def tiny(tiny_hf: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client over the tiny model."""
    async for client in client_of(Site(Engine(tiny_hf, max_batch=4, threads=1))):
        yield client


async def done(http: httpx.AsyncClient, path: str, **body: Any) -> Any:
    got = await http.post(path, json=body)
    assert got.status_code == 200, got.text
    return got.json()


async def refused(http: httpx.AsyncClient, path: str, **body: Any) -> tuple[str, str]:
    got = await http.post(path, json=body)
    assert got.status_code == 400, got.text
    return got.json()["error"]["param"], got.json()["error"]["message"]


async def chunks(http: httpx.AsyncClient, path: str, **body: Any) -> list[Any]:
    got = await http.post(path, json={**body, "stream": True})
    assert got.status_code == 200, got.text
    lines = [line[6:] for line in got.text.split("\n\n") if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


async def test_ids_of_prompts_and_answers(tiny: httpx.AsyncClient) -> None:
    seed = random.randrange(1 << 30)
    body: dict[str, Any] = {"prompt": ["The sea", "A"], "max_tokens": 12, "seed": seed, "n": 2}
    body |= {"ignore_eos": True, "skip_special_tokens": False}
    whole = await done(tiny, "/v1/completions", **body, return_token_ids=True)
    asked = [(await done(tiny, "/tokenize", prompt=p))["tokens"] for p in body["prompt"]]
    assert [c["prompt_token_ids"] for c in whole["choices"]] == [asked[0]] * 2 + [asked[1]] * 2
    for choice in whole["choices"]:
        assert len(choice["token_ids"]) == 12
        ids = choice["token_ids"]
        text = (await done(tiny, "/detokenize", tokens=asked[choice["index"] // 2] + ids))["prompt"]
        assert text.endswith(choice["text"]) or "\ufffd" in choice["text"]
    streamed: dict[int, list[int]] = {}
    prompts: dict[int, list[int]] = {}
    stream = await chunks(tiny, "/v1/completions", **body, return_token_ids=True)
    for choice in (c for chunk in stream for c in chunk["choices"]):
        streamed.setdefault(choice["index"], []).extend(choice.get("token_ids", ()))
        if "prompt_token_ids" in choice:
            assert choice["index"] not in prompts
            prompts[choice["index"]] = choice["prompt_token_ids"]
    assert streamed == {c["index"]: c["token_ids"] for c in whole["choices"]}
    assert prompts == {c["index"]: c["prompt_token_ids"] for c in whole["choices"]}
    plain = await done(tiny, "/v1/completions", **body)
    assert plain["choices"][0]["token_ids"] is None


async def test_ids_of_chats(http: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "é"}], "temperature": 0}
    whole = await done(http, "/v1/chat/completions", **body, return_token_ids=True)
    assert whole["prompt_token_ids"][0] == TURN
    assert bytes(whole["choices"][0]["token_ids"][:-1]).decode() == "echo: user\né"
    assert whole["choices"][0]["token_ids"][-1] == EOS
    stream = await chunks(http, "/v1/chat/completions", **body, return_token_ids=True)
    assert stream[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    ids = [i for chunk in stream for c in chunk["choices"] for i in c.get("token_ids", ())]
    assert ids == whole["choices"][0]["token_ids"]


async def test_tokens_as_ids(tiny: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {"prompt": "The sea", "max_tokens": 3, "temperature": 0, "logprobs": 2}
    more = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    choice = (await done(tiny, "/v1/completions", **body, **more))["choices"][0]
    assert choice["logprobs"]["tokens"] == [f"token_id:{i}" for i in choice["token_ids"]]
    assert all(k.startswith("token_id:") for t in choice["logprobs"]["top_logprobs"] for k in t)


async def test_stop_strings_and_special_tokens_in_the_text(tiny: httpx.AsyncClient) -> None:
    """Whatever ends a text is part of it where that is asked for, streamed and whole."""
    body: dict[str, Any] = {"prompt": "The sea", "max_tokens": 40, "seed": 7, "ignore_eos": True}
    text = (await done(tiny, "/v1/completions", **body))["choices"][0]["text"]
    at = len(text) // 2
    stop = text[at : at + 3]
    cut = text[: text.index(stop)]
    for shown in (False, True):
        fields = {**body, "stop": [stop], "include_stop_str_in_output": shown}
        choice = (await done(tiny, "/v1/completions", **fields))["choices"][0]
        assert choice["text"] == cut + (stop if shown else "")
        assert choice["finish_reason"] == "stop" and choice["stop_reason"] == stop
        stream = await chunks(tiny, "/v1/completions", **fields)
        pieces = [c["text"] for chunk in stream for c in chunk["choices"]]
        assert "".join(pieces) == choice["text"]


async def test_the_token_that_ends_a_text(tiny: httpx.AsyncClient, tiny_hf: Path) -> None:
    """An end token is shown where special tokens are, and what ends a text is."""
    engine = Engine(tiny_hf, threads=1)
    end = min(engine.tokenizer.eos_ids)
    written = engine.tokenizer.token_bytes(end).decode()
    body = {"prompt": "The sea", "max_tokens": 5, "allowed_token_ids": [end]}
    for special in (False, True):
        for stop in (False, True):
            fields = {"skip_special_tokens": not special, "include_stop_str_in_output": stop}
            got = await done(tiny, "/v1/completions", **body, **fields)
            assert got["choices"][0]["text"] == (written if special and stop else "")
    letter = (await done(tiny, "/tokenize", prompt="a", add_special_tokens=False))["tokens"][0]
    fields = {**body, "allowed_token_ids": [letter], "stop_token_ids": [letter]}
    got = await done(tiny, "/v1/completions", **fields, include_stop_str_in_output=True)
    assert got["choices"][0]["text"] == engine.tokenizer.token_bytes(letter).decode()
    fields = {**body, "ignore_eos": True, "max_tokens": 2, "skip_special_tokens": False}
    got = await done(tiny, "/v1/completions", **fields)
    assert got["choices"][0]["text"] == written * 2


async def test_prompts_are_cut_from_the_left(http: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {"temperature": 0, "max_tokens": 9}
    got = await done(http, "/v1/completions", prompt="abcdef", truncate_prompt_tokens=2, **body)
    assert got["choices"][0]["text"] == "echo: ef" and got["usage"]["prompt_tokens"] == 2
    got = await done(
        http, "/v1/completions", prompt="abcdef", truncate_prompt_tokens=2, echo=True, **body
    )
    assert got["choices"][0]["text"] == "efecho: ef"
    context = FakeEngine().max_context
    long = "x" * (3 * context)
    got = await done(http, "/v1/completions", prompt=long, truncate_prompt_tokens=-1, **body)
    assert got["usage"]["prompt_tokens"] == context - 9
    say = [{"role": "user", "content": long}]
    got = await done(
        http, "/v1/chat/completions", messages=say, truncate_prompt_tokens=5, temperature=0
    )
    assert got["usage"]["prompt_tokens"] == 5
    for kept in (0, context + 1):
        param, message = await refused(
            http, "/v1/completions", prompt="a", truncate_prompt_tokens=kept
        )
        assert param == "truncate_prompt_tokens" and str(kept) in message
    assert (await refused(http, "/v1/completions", prompt=long))[0] == "prompt"


async def test_a_message_is_gone_on_with(http: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Sure"}]
    body = {"messages": messages, "continue_final_message": True}
    site_given = await refused(http, "/v1/chat/completions", **body, add_generation_prompt=True)
    assert site_given[0] == "continue_final_message"


async def test_continued_chats_over_a_model(tiny_hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_hf, threads=1)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    monkeypatch.setattr(engine.tokenizer, "_template", ChatTemplate(template, {}, {}))
    async for http in client_of(Site(engine)):
        await check_continued(http)


async def check_continued(tiny: httpx.AsyncClient) -> None:
    say = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Sure, it"}]
    body = {"messages": say, "continue_final_message": True}
    text = (await done(tiny, "/apply-template", **body))["prompt"]
    assert text.endswith("Sure, it")
    ids = (await done(tiny, "/tokenize", **body))["tokens"]
    got = await done(
        tiny, "/v1/chat/completions", **body, temperature=0, max_tokens=6, return_token_ids=True
    )
    assert got["prompt_token_ids"] == ids
    same = await done(tiny, "/v1/completions", prompt=ids, temperature=0, max_tokens=6)
    assert got["choices"][0]["message"]["content"] == same["choices"][0]["text"]


async def test_no_token_but_those_of_the_prompt(tiny: httpx.AsyncClient) -> None:
    body = {"prompt": "The sea", "max_tokens": 0, "echo": True, "logprobs": 1}
    choice = (await done(tiny, "/v1/completions", **body))["choices"][0]
    assert choice["text"] == "The sea" and choice["finish_reason"] == "length"
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert all(x < 0 for x in choice["logprobs"]["token_logprobs"][1:])
