"""Ollama's API over a fake engine: lines, bodies, options, what is refused and how."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from server_support import LiveServer, Site, client_of, wait_until

from halfbyte.engine.params import SamplingParams
from halfbyte.server.facts import ServedModel

pytestmark = pytest.mark.anyio

COLD = {"temperature": 0}
CHAT: dict[str, Any] = {
    "model": "fake-model",
    "messages": [{"role": "user", "content": "héllo 漢🙂"}],
    "options": COLD,
}
PROMPT: dict[str, Any] = {"model": "fake-model:latest", "prompt": "héllo 漢🙂", "options": COLD}
COUNTS = {"prompt_eval_count", "eval_count"}
TIMES = {"total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}


@pytest.fixture
async def http(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    site = Site(engine, facts=ServedModel("gguf", "llama", "Q4_K", 7))
    async for client in client_of(site):
        yield client


def asked_params(engine: FakeEngine) -> list[SamplingParams]:
    """Notes the parameters of what is submitted from now on."""
    seen: list[SamplingParams] = []
    submit = engine.submit

    def noted(prompt: Any, params: SamplingParams, **more: Any) -> str:
        seen.append(params)
        return submit(prompt, params, **more)

    engine.submit = noted  # type: ignore[method-assign]
    return seen


async def lines(http: httpx.AsyncClient, path: str, **body: Any) -> list[dict[str, Any]]:
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text.splitlines()]


def text_of(line: dict[str, Any]) -> str:
    if "message" in line:
        assert line["message"]["role"] == "assistant"
        return line["message"]["content"]
    return line["response"]


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/api/chat", CHAT, "echo: user\nhéllo 漢🙂"),
        ("/api/generate", PROMPT, "echo: user\nhéllo 漢🙂"),
        ("/api/generate", {**PROMPT, "raw": True}, "echo: héllo 漢🙂"),
        ("/api/generate", {**PROMPT, "options": {**COLD, "num_predict": 5}}, "echo:"),
        ("/api/chat", {**CHAT, "options": {**COLD, "stop": ["llo"]}}, "echo: user\nhé"),
        ("/api/chat", {**CHAT, "options": {**COLD, "stop": "llo"}}, "echo: user\nhé"),
    ],
)
async def test_a_stream_says_what_the_whole_answer_says(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], text: str
) -> None:
    response = await http.post(path, json={**body, "stream": False})
    assert response.status_code == 200, response.text
    whole = response.json()
    *pieces, last = await lines(http, path, **body)
    assert text_of(whole) == "".join(text_of(piece) for piece in pieces) == text
    assert text_of(last) == "" and len(pieces) > 2
    assert whole["done"] is last["done"] is True
    assert not any(piece["done"] for piece in pieces)
    short = body["options"].get("num_predict")
    assert whole["done_reason"] == last["done_reason"] == ("length" if short else "stop")
    assert set(whole) == set(last) and set(whole) > COUNTS | TIMES
    assert {name: whole[name] for name in COUNTS} == {name: last[name] for name in COUNTS}
    assert all(type(end[name]) is int and end[name] >= 0 for end in (whole, last) for name in TIMES)
    assert 0 < whole["total_duration"] < 60e9
    assert {line["model"] for line in (whole, *pieces, last)} == {body["model"]}
    assert all(line["created_at"].endswith("Z") for line in (whole, *pieces, last))
    if short:
        assert whole["eval_count"] == short


async def test_options_become_parameters(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    seen = asked_params(engine)
    options = {
        **{"temperature": 0.5, "top_k": 7, "top_p": 0.8, "min_p": 0.1, "typical_p": 0.9},
        **{"seed": 3, "num_predict": 9, "repeat_penalty": 1.2, "presence_penalty": 0.5},
        **{"frequency_penalty": 0.25, "stop": ["x"], "num_ctx": 512, "repeat_last_n": -1},
    }
    for options_given in (options, {}, {"num_predict": -1, "mirostat": 2}):
        body = {**CHAT, "options": options_given, "keep_alive": "5m", "stream": False}
        assert (await http.post("/api/chat", json=body)).status_code == 200
    full, plain, surprised = seen
    same = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "presence_penalty")
    assert [getattr(full, name) for name in same] == [options[name] for name in same]
    assert full.frequency_penalty == 0.25 and full.repetition_penalty == 1.2
    assert full.max_tokens == 9 and tuple(full.stop) == ("x",)
    assert (plain.temperature, plain.top_k, plain.top_p) == (0.8, 40, 0.9)
    assert plain.max_tokens == surprised.max_tokens and plain.repetition_penalty == 1.0
    assert surprised.mirostat == 2 and surprised.top_k <= 0


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_formats_become_grammars(
    http: httpx.AsyncClient, engine: FakeEngine, path: str
) -> None:
    seen = asked_params(engine)
    body = {**(CHAT if path == "/api/chat" else PROMPT), "stream": False}
    for form in ("", "json", {"type": "object"}):
        response = await http.post(path, json={**body, "format": form})
        assert response.status_code == 200, response.text
    assert [params.grammar is not None for params in seen] == [False, True, True]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"options": {"num_ctx": 513}}, "options.num_ctx"),
        ({"options": {"num_gpu": 1}}, "options.num_gpu"),
        ({"options": {"num_thread": 8}}, "options.num_thread"),
        ({"options": {"unheard_of": 1}}, "options.unheard_of"),
        ({"options": {"use_mmap": False}}, "options.use_mmap"),
        ({"options": {"repeat_penalty": 1.1, "repeat_last_n": 64}}, "options.repeat_last_n"),
        ({"options": {"repeat_penalty": -1.0}}, "options.repeat_penalty"),
        ({"options": {"num_predict": -3}}, "options.num_predict"),
        ({"options": {"num_predict": 10**6}}, "num_predict"),
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"options": {"temperature": -1}}, "options.temperature"),
        ({"options": {"top_p": 2}}, "options.top_p"),
        ({"options": {"stop": [""]}}, "options.stop"),
        ({"options": {"mirostat": 1}}, "options.mirostat"),
        ({"options": 5}, "options"),
        ({"format": "yaml"}, "format"),
        ({"format": 5}, "format"),
        ({"think": True}, "think"),
        ({"think": "high"}, "think"),
        ({"keep_alive": "whenever!"}, "keep_alive"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"model": None}, "model"),
        ({"stream": "yes"}, "stream"),
    ],
)
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_what_is_not_honoured_is_refused_by_name(
    http: httpx.AsyncClient, path: str, more: dict[str, Any], named: str
) -> None:
    body = {**(CHAT if path == "/api/chat" else PROMPT), **more}
    response = await http.post(path, json=body)
    assert response.status_code == 400, response.text
    assert set(response.json()) == {"error"} and named in response.json()["error"]


@pytest.mark.parametrize(
    ("path", "more", "named"),
    [
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["aa"]}]}, "images"),
        ("/api/chat", {"messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
        ("/api/chat", {"messages": [{"role": "assistant", "content": ""}]}, "last message"),
        ("/api/chat", {"messages": [{"role": "god", "content": "x"}]}, "messages.0.role"),
        ("/api/chat", {"messages": [], "keep_alive": 0}, "keep_alive"),
        ("/api/generate", {"prompt": "", "keep_alive": "0s"}, "keep_alive"),
        ("/api/generate", {"suffix": "x"}, "suffix"),
        ("/api/generate", {"template": "x"}, "template"),
        ("/api/generate", {"context": [1]}, "context"),
        ("/api/generate", {"images": ["aa"]}, "images"),
        ("/api/generate", {"raw": True, "system": "x"}, "system"),
        ("/api/generate", {"prompt": "x" * 600}, "prompt"),
        ("/api/embed", {"model": "fake-model", "input": "a", "dimensions": 8}, "dimensions"),
        ("/api/embed", {"model": "fake-model"}, "input"),
        ("/api/embed", {"model": "fake-model", "input": 5}, "input"),
        ("/api/show", {"model": None}, "model"),
    ],
)
async def test_fields_of_one_endpoint_are_refused_by_name(
    http: httpx.AsyncClient, path: str, more: dict[str, Any], named: str
) -> None:
    whole = {"/api/chat": CHAT, "/api/generate": PROMPT}.get(path, {})
    response = await http.post(path, json={**whole, **more})
    assert response.status_code == 400, response.text
    assert named in response.json()["error"]


async def test_an_empty_request_finds_the_model_loaded(http: httpx.AsyncClient) -> None:
    for path, body in (("/api/chat", {"messages": []}), ("/api/generate", {})):
        got = (await http.post(path, json={"model": "fake-model", **body})).json()
        assert got["done"] and got["done_reason"] == "load" and text_of(got) == ""
        unknown = await http.post(path, json={"model": "other", **body})
        assert unknown.status_code == 404 and "other" in unknown.json()["error"]


async def test_the_model_is_listed_and_shown(http: httpx.AsyncClient) -> None:
    (card,) = (await http.get("/api/tags")).json()["models"]
    assert card["name"] == card["model"] == "fake-model:latest" and card["size"] == 7
    assert len(card["digest"]) == 64 and card["details"]["quantization_level"] == "Q4_K"
    (running,) = (await http.get("/api/ps")).json()["models"]
    assert running["name"] == card["name"] and running["context_length"] == 512
    assert (await http.get("/api/version")).json()["version"]
    for body in ({"model": card["name"]}, {"name": "fake-model", "verbose": True}):
        shown = (await http.post("/api/show", json=body)).json()
        assert shown["details"] == card["details"] and shown["template"] == "{{ messages }}"
        assert shown["model_info"]["llama.context_length"] == 512
        assert "completion" in shown["capabilities"]
    assert (await http.post("/api/show", json={"model": "other"})).status_code == 404


@pytest.mark.parametrize("name", ["pull", "push", "create", "copy", "delete"])
async def test_models_are_not_managed_over_http(http: httpx.AsyncClient, name: str) -> None:
    method = "DELETE" if name == "delete" else "POST"
    response = await http.request(method, f"/api/{name}", json={"model": "x"})
    assert response.status_code == 403
    assert set(response.json()) == {"error"} and "halfbyte" in response.json()["error"]
    assert (await http.get("/api/nothing")).json()["error"]


def test_leaving_a_stream_ends_the_work(live: Callable[..., LiveServer]) -> None:
    engine = FakeEngine(max_context=1 << 16)
    engine.step_s = 0.005
    server = live(engine)
    long = {**CHAT, "options": {"num_predict": 30000}}
    with httpx.stream("POST", f"{server.url}/api/chat", json=long, timeout=20) as response:
        next(response.iter_lines())
    wait_until(lambda: engine.stats().finished.get("cancelled") == 1)


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/embed"])
async def test_options_are_checked_where_nothing_is_generated(
    http: httpx.AsyncClient, path: str
) -> None:
    options = {"mirostat_eta": 2.0}
    answer = await http.post(path, json={"model": "fake-model", "input": "a", "options": options})
    assert answer.status_code == 400 and "options.mirostat_eta" in answer.json()["error"]
