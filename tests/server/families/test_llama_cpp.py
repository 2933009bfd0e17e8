"""llama.cpp's API over a fake engine: shapes, streams, defaults, what is refused and how."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from fake_engine import EOS, FakeEngine

pytestmark = pytest.mark.anyio

ASKED: dict[str, Any] = {"prompt": "héllo 漢🙂", "temperature": 0}
FIM = {"<|fim_prefix|>": 257, "<|fim_suffix|>": 258, "<|fim_middle|>": 259}


async def complete(http: httpx.AsyncClient, path: str = "/completion", **more: Any) -> Any:
    response = await http.post(path, json={**ASKED, **more})
    assert response.status_code == 200, response.text
    return response.json()


async def events(http: httpx.AsyncClient, **more: Any) -> list[dict[str, Any]]:
    response = await http.post("/completion", json={**ASKED, "stream": True, **more})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: {") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize(
    ("more", "kind", "word"),
    [({}, "eos", ""), ({"n_predict": 7}, "limit", ""), ({"stop": ["llo"]}, "word", "llo")],
)
async def test_a_completion_whole_and_streamed(
    http: httpx.AsyncClient, more: dict[str, Any], kind: str, word: str
) -> None:
    whole = await complete(http, **more)
    text = "echo: héllo 漢🙂"
    assert (
        whole["content"]
        == {"eos": text, "limit": text[:7], "word": text[:8]}[kind][: len(whole["content"])]
    )
    assert whole["content"] and text.startswith(whole["content"])
    assert whole["stop"] is True and whole["stop_type"] == kind
    assert whole["stopping_word"] == word and whole["prompt"] == ASKED["prompt"]
    assert whole["tokens"] == [] and whole["truncated"] is False and whole["model"] == "fake-model"
    assert whole["tokens_evaluated"] == len(ASKED["prompt"].encode()) + 1
    assert whole["timings"]["predicted_n"] == whole["tokens_predicted"] > 0
    assert whole["generation_settings"]["temperature"] == 0
    assert (await complete(http, "/completions", **more))["content"] == whole["content"]
    *pieces, last = await events(http, **more)
    assert "".join(piece["content"] for piece in pieces) == whole["content"]
    assert not any(piece["stop"] for piece in pieces) and last["content"] == ""
    same = ("stop", "stop_type", "stopping_word", "tokens_predicted", "tokens_evaluated", "prompt")
    assert {name: last[name] for name in same} == {name: whole[name] for name in same}
    counts = [piece["tokens_predicted"] for piece in pieces]
    assert counts == sorted(counts) and counts[-1] <= last["tokens_predicted"]


async def test_fields_become_parameters(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    await complete(http, temperature=None)
    usual = engine.asked[-1]
    assert (usual.temperature, usual.top_k, usual.top_p, usual.min_p) == (0.8, 40, 0.95, 0.05)
    assert usual.max_tokens == 512 - len(ASKED["prompt"].encode()) - 1
    given: dict[str, Any] = {
        **{"temperature": 0.5, "top_k": 7, "top_p": 0.8, "min_p": 0.1, "typical_p": 0.9},
        **{"seed": 3, "presence_penalty": 0.5, "frequency_penalty": 0.25, "top_n_sigma": 2.0},
        **{"dry_multiplier": 0.8, "xtc_probability": 0.5, "dynatemp_range": 0.25},
    }
    more = {"n_predict": 9, "repeat_penalty": 1.2, "repeat_last_n": -1, "cache_prompt": True}
    neutral = {"id_slot": -1, "n_keep": 5, "samplers": None, "n_probs": 0, "grammar": ""}
    await complete(http, **given, **more, **neutral, logit_bias=[[65, -2.5], [66, 1]])
    asked = engine.asked[-1]
    assert {name: getattr(asked, name) for name in given} == given
    assert asked.max_tokens == 9 and asked.repetition_penalty == 1.2
    assert dict(asked.logit_bias) == {65: -2.5, 66: 1}
    await complete(http, mirostat=2, n_predict=3)
    assert engine.asked[-1].mirostat == 2 and engine.asked[-1].top_k <= 0
    forms: list[dict[str, Any]] = [{"grammar": 'root ::= "a"'}, {"json_schema": {"type": "object"}}]
    for form in forms:
        await complete(http, **form)
        assert engine.asked[-1].grammar is not None


async def test_tokens_and_the_cache(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    whole = await complete(http, return_tokens=True)
    assert whole["tokens"] == [*whole["content"].encode(), EOS]
    again = await complete(http, prompt=list(b"h" * 40))
    assert again["prompt"] == "h" * 40 and again["tokens_cached"] == 0
    again = await complete(http, prompt=list(b"h" * 40))
    assert again["tokens_cached"] == again["timings"]["cache_n"] == 32
    assert again["timings"]["prompt_n"] == 8
    apart = await complete(http, prompt=list(b"h" * 40), cache_prompt=False)
    assert apart["tokens_cached"] == 0
    tokens = [token for piece in await events(http) for token in piece["tokens"]]
    assert bytes(t for t in tokens if t < 256).decode() == whole["content"]


async def test_tokenizing_is_told_apart_by_its_fields(http: httpx.AsyncClient) -> None:
    async def tokens(**body: Any) -> Any:
        response = await http.post("/tokenize", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    plain = list("aé".encode())
    assert await tokens(content="aé") == {"tokens": plain}
    assert await tokens(content="aé", add_special=True) == {"tokens": [256, *plain]}
    pieces = (await tokens(content="aé", with_pieces=True))["tokens"]
    assert pieces[0] == {"id": 97, "piece": "a"} and pieces[1]["piece"] == [0xC3]
    assert (await tokens(content=""))["tokens"] == []
    assert (await tokens(prompt="aé"))["tokens"] == [256, *plain]
    for bad in ({"content": "a", "prompt": "a"}, {"content": "a", "parse_special": False}):
        assert (await http.post("/tokenize", json=bad)).status_code == 400
    text = await http.post("/detokenize", json={"tokens": plain})
    assert text.json()["content"] == "aé"


async def test_a_hole_is_filled_in(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.tokenizer.special_token = FIM.get  # type: ignore[method-assign]
    engine.script = "middle"
    prompts: list[list[int]] = []
    submit = engine.submit

    def noted(prompt: Any, *rest: Any, **more: Any) -> str:
        prompts.append(prompt)
        return submit(prompt, *rest, **more)

    engine.submit = noted  # type: ignore[method-assign]
    encode, parsed = engine.tokenizer.encode, []

    def encoded(text: str, **more: Any) -> list[int]:
        parsed.append((text, more.get("parse_special", True)))
        return encode(text, **more)

    engine.tokenizer.encode = encoded  # type: ignore[method-assign]
    whole = {"input_prefix": "ab", "prompt": "c", "input_suffix": "d<|fim_middle|>"}
    expected = [256, 257, *b"abc", 258, *b"d<|fim_middle|>", 259]
    assert (await complete(http, "/infill", **whole))["content"] == "middle"
    assert (await complete(http, "/infill", **{**whole, "input_suffix": ""}))["content"] == "middle"
    for prompt in ("abc", ["abc"]):
        body = {"prompt": prompt, "suffix": "d<|fim_middle|>", "temperature": 0}
        got = await http.post("/v1/completions", json=body)
        assert got.json()["choices"][0]["text"] == "middle"
    body = {"model": "fake-model", "prompt": "abc", "suffix": "d<|fim_middle|>", "stream": False}
    got = await http.post("/api/generate", json={**body, "options": {"temperature": 0}})
    assert got.json()["response"] == "middle"
    assert {special for text, special in parsed if "fim" in text} == {False}
    assert prompts == [expected, [256, 257, *b"abc", 258, 259], *[expected] * 3]
    await http.post("/v1/completions", json={"prompt": "abc", "suffix": "", "max_tokens": 3})
    assert prompts[-1] == [256, *b"abc"]
    shown = (await http.post("/api/show", json={"model": "fake-model"})).json()
    assert "insert" in shown["capabilities"]
    for more, named in (({"prompt": [1]}, "suffix"), ({"prompt": "a", "echo": True}, "echo")):
        response = await http.post("/v1/completions", json={"suffix": "x", **more})
        assert response.status_code == 400 and response.json()["error"]["param"] == named
    response = await http.post("/infill", json={**whole, "input_suffix": "x" * 600})
    assert response.status_code == 400


@pytest.mark.parametrize(
    ("path", "more", "named"),
    [
        ("/completion", {"n_predict": 10**6}, "n_predict"),
        ("/completion", {"n_predict": -3}, "n_predict"),
        ("/completion", {"temperature": "hot"}, "temperature"),
        ("/completion", {"repeat_penalty": -1}, "repeat_penalty"),
        ("/completion", {"repeat_penalty": 1.1, "repeat_last_n": 64}, "repeat_last_n"),
        ("/completion", {"n_probs": 10**6}, "n_probs"),
        ("/completion", {"id_slot": 3}, "id_slot"),
        ("/completion", {"samplers": ["top_k"]}, "samplers"),
        ("/completion", {"logit_bias": [["a", 1]]}, "logit_bias.0"),
        ("/completion", {"logit_bias": [[5, False]]}, "logit_bias.0"),
        ("/completion", {"json_schema": {"type": "object"}, "grammar": "x"}, "json_schema"),
        ("/completion", {"prompt": ["a", "b"]}, "prompt"),
        ("/completion", {"prompt": None}, "prompt"),
        ("/completion", {"image_data": [{"id": 1}]}, "image_data"),
        ("/infill", {"input_prefix": "a"}, "input_suffix"),
        ("/infill", {"input_prefix": "a", "input_suffix": "b"}, "input_suffix"),
        ("/infill", {"input_prefix": "", "input_suffix": "", "input_extra": [{}]}, "input_extra"),
        ("/embedding", {"content": None}, "content"),
        ("/embedding", {"content": "a", "embd_normalize": 0}, "embd_normalize"),
        ("/embedding", {"content": "a", "input": "a"}, "content"),
        ("/embedding", {"embd_normalize": 2}, "content"),
    ],
)
async def test_what_is_not_honoured_is_refused_by_name(
    http: httpx.AsyncClient, path: str, more: dict[str, Any], named: str
) -> None:
    response = await http.post(path, json={**ASKED, **more})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert named in error["message"] and error["param"].startswith(named), error


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_a_causal_model_does_not_rerank(http: httpx.AsyncClient, path: str) -> None:
    response = await http.post(path, json={"query": "a", "documents": ["b"]})
    assert response.status_code == 400 and "/score" in response.json()["error"]["message"]
