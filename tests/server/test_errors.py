"""Every way to fail gives OpenAI's body, the right status, and nothing of our insides."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from server_support import Site

from halfbyte.errors import (
    EngineDeadError,
    GrammarProcessError,
    TemplateProcessError,
    TokenizerError,
)
from halfbyte.server.admission import QueueLimits
from halfbyte.server.bodies import BodyLimits
from halfbyte.server.errors import as_api_error
from halfbyte.server.service import ServiceConfig

pytestmark = pytest.mark.anyio

SAY = [{"role": "user", "content": "hi"}]


def check(response: httpx.Response, status: int, code: str, param: str | None) -> str:
    """The error's message, after all its other parts have been compared."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["code"], body["error"]["param"]) == (code, param)
    assert response.headers["x-request-id"]
    return body["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("/v1/completions", {"prompt": ""}, 400, "invalid_value", "prompt"),
        ("/v1/completions", {"prompt": [9999]}, 400, "invalid_value", "prompt"),
        ("/v1/completions", {"prompt": "a", "top_p": 2}, 400, "invalid_value", "top_p"),
        ("/v1/completions", {"prompt": "a", "max_tokens": -1}, 400, "invalid_value", "max_tokens"),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, 400, "unsupported_value", "suffix"),
        ("/v1/completions", {"prompt": "a", "model": "gpt"}, 404, "model_not_found", "model"),
        ("/v1/completions", {"prompt": "a", "model": ""}, 404, "model_not_found", "model"),
        ("/v1/chat/completions", {"messages": SAY, "model": ""}, 404, "model_not_found", "model"),
        ("/tokenize", {"prompt": "a", "model": ""}, 404, "model_not_found", "model"),
        (
            "/v1/completions",
            {"prompt": "a", "stop_token_ids": [259, 260]},
            400,
            "invalid_value",
            "stop_token_ids",
        ),
        (
            "/v1/chat/completions",
            {"messages": SAY, "stop_token_ids": [2**31 - 1]},
            400,
            "invalid_value",
            "stop_token_ids",
        ),
        (
            "/v1/completions",
            {"prompt": "a", "max_tokens": 5, "min_tokens": 6},
            400,
            "invalid_value",
            "min_tokens",
        ),
        ("/v1/completions", {"prompt": "a", "stop": [""]}, 400, "invalid_value", "stop.0"),
        ("/v1/chat/completions", {}, 400, "missing_required_parameter", "messages"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "assistant", "content": "x"}]},
            400,
            "invalid_chat_template_input",
            "messages",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            "unsupported_value",
            "messages.0.content.0.type",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user"}]},
            400,
            "invalid_value",
            "messages.0.content",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "function", "content": "x", "name": "f"}]},
            400,
            "unsupported_value",
            "messages.0.role",
        ),
        (
            "/v1/chat/completions",
            {"messages": SAY, "chat_template_kwargs": {"tokenize": False}},
            400,
            "invalid_value",
            "chat_template_kwargs.tokenize",
        ),
        ("/v1/models", {}, 405, "method_not_allowed", None),
        ("/v1/nothing", {}, 404, "not_found", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_before_the_first_token_are_plain(
    http: httpx.AsyncClient,
    path: str,
    body: dict[str, Any],
    status: int,
    code: str,
    param: str | None,
    stream: bool,
) -> None:
    response = await http.post(path, json={**body, "stream": stream})
    assert len(check(response, status, code, param)) > 10


@pytest.mark.parametrize("stream", [False, True])
async def test_too_long_names_both_numbers(http: httpx.AsyncClient, stream: bool) -> None:
    body: dict[str, Any] = {"prompt": [97] * 600, "stream": stream}
    message = check(
        await http.post("/v1/completions", json=body), 400, "context_length_exceeded", "prompt"
    )
    assert "600" in message and "512" in message
    body = {"prompt": [97] * 500, "max_tokens": 20, "stream": stream}
    message = check(
        await http.post("/v1/completions", json=body), 400, "context_length_exceeded", "max_tokens"
    )
    assert "500" in message and "512" in message and "20" in message


async def test_body_that_is_not_json(http: httpx.AsyncClient) -> None:
    kind = {"Content-Type": "application/json"}
    for content in (b"", b"{", b"\xff", b"[]", b'{"prompt": "\\ud800"}', b"[" * 10000):
        response = await http.post("/v1/completions", content=content, headers=kind)
        check(response, 400, "invalid_json", None)
    for content_type in ("text/plain", "application/x-www-form-urlencoded"):
        response = await http.post(
            "/v1/completions", content=b'{"prompt":"a"}', headers={"Content-Type": content_type}
        )
        check(response, 415, "unsupported_media_type", None)


async def test_other_programs_clients_need_not_say_that_it_is_json(http: httpx.AsyncClient) -> None:
    """As ``curl -d`` and litellm's client of Ollama do; but no web page can."""
    body, form = b'{"prompt": "a", "model": "fake-model"}', "application/x-www-form-urlencoded"
    for path in ("/api/generate", "/completion", "/tokenize"):
        for kind in ({"Content-Type": form}, {"Content-Type": "text/plain"}, {}):
            assert (await http.post(path, content=body, headers=kind)).status_code == 200
            for mark in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
                page = await http.post(path, content=body, headers={**kind, **mark})
                assert page.status_code == 415


async def test_get_of_a_post_route_says_what_is_allowed(http: httpx.AsyncClient) -> None:
    response = await http.get("/v1/completions")
    check(response, 405, "method_not_allowed", None)
    assert response.headers["allow"] == "POST"


@pytest.fixture
async def site(engine: FakeEngine) -> AsyncIterator[tuple[Site, httpx.AsyncClient]]:
    site = Site(
        engine,
        ServiceConfig(queue=QueueLimits(requests=2), keep_alive_s=0.05),
        {"body_limits": BodyLimits(1000)},
    )
    await site.service.start()
    transport = httpx.ASGITransport(app=site.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield site, client
    engine.gate.set()
    await site.service.close()


async def test_body_limit(site: tuple[Site, httpx.AsyncClient]) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    _, http = site
    response = await http.post("/v1/completions", json={"prompt": "a" * 1000})
    assert "1000 bytes" in check(response, 413, "request_too_large", None)
    response = await http.post("/v1/completions", content=pieces())
    check(response, 413, "request_too_large", None)


@pytest.mark.parametrize("stream", [False, True])
async def test_failed_step_is_a_500_that_tells_nothing(
    site: tuple[Site, httpx.AsyncClient],
    engine: FakeEngine,
    stream: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, http = site
    engine.failures.append(RuntimeError("secret at 0xdeadbeef"))
    response = await http.post("/v1/completions", json={"prompt": "a", "stream": stream})
    message = check(response, 500, "internal_error", None)
    assert "secret" not in message and "secret" in caplog.text
    again = await http.post("/v1/completions", json={"prompt": "a"})
    assert again.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_lack_of_memory_is_a_503(
    site: tuple[Site, httpx.AsyncClient], engine: FakeEngine, stream: bool
) -> None:
    _, http = site
    engine.failures.append(MemoryError("secret"))
    response = await http.post("/v1/completions", json={"prompt": "a", "stream": stream})
    assert "secret" not in check(response, 503, "out_of_memory", None)
    assert response.headers["retry-after"]
    assert (await http.post("/v1/completions", json={"prompt": "a"})).status_code == 200


async def test_failure_in_mid_stream_is_one_error_event(
    site: tuple[Site, httpx.AsyncClient], engine: FakeEngine
) -> None:
    _, http = site
    engine.step_s = 0.01
    body = {"prompt": "a" * 90, "stream": True, "max_tokens": 90, "temperature": 0}
    task = asyncio.ensure_future(http.post("/v1/completions", json=body))
    while engine.stats().generation_tokens < 5:
        await asyncio.sleep(0.001)
    engine.failures.append(RuntimeError("secret"))
    response = await task
    assert response.status_code == 200
    *before, last = [json.loads(p[6:]) for p in response.text.split("\n\n")[:-1]]
    assert all("error" not in chunk for chunk in before)
    # All text made before the failure arrives.
    text = "".join(chunk["choices"][0]["text"] for chunk in before)
    assert len(text) == engine.stats().generation_tokens >= 5
    assert last["error"]["code"] == "internal_error" and "secret" not in response.text
    assert "[DONE]" not in response.text


async def test_dead_engine(site: tuple[Site, httpx.AsyncClient], engine: FakeEngine) -> None:
    made, http = site
    engine.failures.append(EngineDeadError("gone"))
    response = await http.post("/v1/completions", json={"prompt": "a"})
    check(response, 503, "engine_unavailable", None)
    for path in ("/health", "/ready"):
        response = await http.get(path)
        check(response, 503, "engine_unavailable", None)
        assert response.headers["retry-after"]
    response = await http.post("/v1/chat/completions", json={"messages": SAY})
    check(response, 503, "engine_unavailable", None)
    assert made.service.health().dead


async def test_full_queue_is_a_429_at_once(site: tuple[Site, httpx.AsyncClient]) -> None:
    made, http = site
    engine = made.engine
    assert isinstance(engine, FakeEngine)
    engine.gate.clear()
    places = engine.config.max_batch + made.config.queue.requests
    body = {"prompt": "a", "max_tokens": 2}
    tasks = [asyncio.ensure_future(http.post("/v1/completions", json=body)) for _ in range(places)]
    while made.client.live < places:
        await asyncio.sleep(0.001)
    # Refusing waits for neither the tokenizer nor the engine: both stand still now.
    engine.tokenizer.gate.clear()
    refused = await http.post("/v1/completions", json=body)
    engine.tokenizer.gate.set()
    check(refused, 429, "server_overloaded", None)
    assert refused.headers["retry-after"] == "1"
    engine.gate.set()
    assert {r.status_code for r in await asyncio.gather(*tasks)} == {200}
    assert (await http.post("/v1/completions", json=body)).status_code == 200
    text = (await http.get("/metrics")).text
    assert 'model_name="fake-model",reason="queue_full"} 1.0' in text


async def test_batch_larger_than_the_queue_is_refused_as_a_whole(
    site: tuple[Site, httpx.AsyncClient], engine: FakeEngine
) -> None:
    made, http = site
    many = engine.config.max_batch + made.config.queue.requests + 1
    response = await http.post("/v1/completions", json={"prompt": ["a"] * many})
    check(response, 429, "server_overloaded", None)
    response = await http.post("/v1/completions", json={"prompt": ["a"] * (many - 1)})
    assert response.status_code == 200 and made.client.live == 0


async def test_one_bad_prompt_refuses_the_batch_and_frees_the_others(
    site: tuple[Site, httpx.AsyncClient],
) -> None:
    made, http = site
    response = await http.post("/v1/completions", json={"prompt": [[97], [9999], [98]]})
    check(response, 400, "invalid_value", "prompt")
    while made.client.live:
        await asyncio.sleep(0.001)
    assert made.client.stats().running == 0


async def test_our_own_unexpected_error_is_logged_and_generic(
    site: tuple[Site, httpx.AsyncClient], caplog: pytest.LogCaptureFixture
) -> None:
    made, http = site

    def broken(*_: Any, **__: Any) -> Any:
        raise TokenizerError("secret of the tokenizer")

    made.engine.tokenizer.encode = broken  # type: ignore[method-assign]
    response = await http.post("/v1/completions", json={"prompt": "a"})
    assert "secret" not in check(response, 500, "internal_error", None)
    assert "secret of the tokenizer" in caplog.text


async def test_shutting_down(site: tuple[Site, httpx.AsyncClient], engine: FakeEngine) -> None:
    made, http = site
    engine.step_s = 0.005
    body = {"prompt": "a", "max_tokens": 200, "ignore_eos": True}
    stream = asyncio.ensure_future(http.post("/v1/completions", json={**body, "stream": True}))
    whole = asyncio.ensure_future(http.post("/v1/completions", json=body))
    while engine.stats().running < 2:
        await asyncio.sleep(0.001)
    closing = asyncio.ensure_future(made.service.close(drain_s=0.1))
    await asyncio.sleep(0)
    check(await http.get("/ready"), 503, "engine_unavailable", None)
    assert (await http.get("/health")).status_code == 200
    check(await http.post("/v1/completions", json=body), 503, "engine_unavailable", None)
    check(await whole, 503, "request_cancelled", None)
    last = json.loads((await stream).text.split("\n\n")[-2][6:])
    assert last["error"]["code"] == "request_cancelled"
    await closing


async def test_silent_stream_is_kept_alive(
    site: tuple[Site, httpx.AsyncClient], engine: FakeEngine
) -> None:
    _, http = site
    engine.gate.clear()
    asyncio.get_running_loop().call_later(0.3, engine.gate.set)
    response = await http.post(
        "/v1/completions", json={"prompt": "a", "stream": True, "temperature": 0}
    )
    assert response.text.startswith(": keep-alive\n\n")
    chunks = [p for p in response.text.split("\n\n") if p.startswith("data: {")]
    assert "".join(json.loads(c[6:])["choices"][0]["text"] for c in chunks) == "echo: a"


def test_a_jailed_process_that_ended_is_a_503() -> None:
    error = as_api_error(TemplateProcessError("the process ended", hint="try again"))
    assert (error.status, error.code) == (503, "template_process_ended")
    error = as_api_error(GrammarProcessError("the process ended", hint="try again"))
    assert (error.status, error.code) == (503, "grammar_process_ended")
    assert error.headers()["Retry-After"] == "1" and "try again" in error.message
