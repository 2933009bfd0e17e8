"""The official client against a real socket; its types are the oracle for our shapes."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from fake_engine import FakeEngine
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from server_support import LiveServer, wait_until

from halfbyte.server.admission import QueueLimits
from halfbyte.server.service import ServiceConfig
from halfbyte.server.tenant import Keyring

pytestmark = pytest.mark.anyio

Start = Callable[..., LiveServer]


def client_of(server: LiveServer, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=20)


def say(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_chat_and_completions(live: Start) -> None:
    client = client_of(live())
    chat = client.chat.completions.create(
        model="fake-model", messages=say("héllo"), temperature=0, seed=5
    )
    # strict validation, which the client itself does not do
    ChatCompletion.model_validate_json(chat.model_dump_json(), strict=True)
    assert chat.choices[0].message.content == "echo: user\nhéllo"
    assert chat.usage is not None and chat.usage.total_tokens > 0
    plain = client.completions.create(model="fake-model", prompt="abc", temperature=0)
    Completion.model_validate_json(plain.model_dump_json(), strict=True)
    assert plain.choices[0].text == "echo: abc" and plain.choices[0].finish_reason == "stop"
    batch = client.completions.create(
        model="fake-model", prompt=["a", "b"], temperature=0, stop=[":"], max_tokens=9
    )
    assert [c.text for c in batch.choices] == ["echo", "echo"]


def test_streams(live: Start) -> None:
    client = client_of(live())
    chunks = list(
        client.chat.completions.create(
            model="fake-model",
            messages=say("漢字 and 🙂"),
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    for chunk in chunks:
        ChatCompletionChunk.model_validate_json(chunk.model_dump_json(), strict=True)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "echo: user\n漢字 and 🙂"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 0
    plain = client.completions.create(
        model="fake-model", prompt="xyz", seed=3, max_tokens=20, stream=True
    )
    whole = client.completions.create(model="fake-model", prompt="xyz", seed=3, max_tokens=20)
    assert "".join(c.choices[0].text for c in plain) == whole.choices[0].text


def test_models(live: Start) -> None:
    client = client_of(live(config=ServiceConfig(names=("org/name", "fake-model"))))
    listed = client.models.list().data
    assert [m.id for m in listed] == ["org/name", "fake-model"]
    Model.model_validate_json(listed[0].model_dump_json(), strict=True)
    assert client.models.retrieve("org/name").id == "org/name"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/other")
    assert caught.value.code == "model_not_found"


def test_errors_become_the_clients_classes(live: Start) -> None:
    server = live()
    client = client_of(server)
    cases: list[tuple[type[openai.APIStatusError], dict[str, Any], str | None]] = [
        (openai.BadRequestError, {"temperature": -1}, "temperature"),
        (openai.BadRequestError, {"n": 0}, "n"),
        (openai.BadRequestError, {"max_tokens": 10**9}, "max_tokens"),
        (openai.BadRequestError, {"extra_body": {"top_k": "five"}}, "top_k"),
        (openai.NotFoundError, {"model": "gpt-4"}, "model"),
    ]
    for kind, change, param in cases:
        for stream in (False, True):
            asked: Any = {"model": "fake-model", "messages": say("x"), "stream": stream, **change}
            with pytest.raises(kind) as caught:
                client.chat.completions.create(**asked)
            assert caught.value.param == param and caught.value.request_id
    keyed = live(keyring=Keyring(["k"]))
    with pytest.raises(openai.AuthenticationError):
        client_of(keyed, "wrong").models.list()
    assert client_of(keyed, "k").models.list().data


def test_mid_stream_failure_raises_in_the_client(live: Start) -> None:
    server = live()
    engine = server.engine
    assert isinstance(engine, FakeEngine)
    engine.step_s = 0.01
    stream = client_of(server).completions.create(
        model="fake-model", prompt="a", max_tokens=200, stream=True
    )
    next(stream)
    engine.failures.append(RuntimeError("boom"))
    with pytest.raises(openai.APIError, match="failed while running") as caught:
        list(stream)
    assert caught.value.code == "internal_error"


def test_overload_is_a_rate_limit_error(live: Start) -> None:
    engine = FakeEngine(max_batch=1)
    engine.gate.clear()
    server = live(engine, ServiceConfig(queue=QueueLimits(requests=1)))
    client = client_of(server)
    asked: Any = {"model": "fake-model", "prompt": "a", "max_tokens": 100}
    threads = [
        threading.Thread(target=lambda: client.completions.create(**asked)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: server.site.client.live == 2)
    with pytest.raises(openai.RateLimitError) as caught:
        client.completions.create(**asked)
    assert caught.value.response.headers["retry-after"] == "1"
    engine.gate.set()
    for thread in threads:
        thread.join()


async def test_concurrent_requests_share_the_batch_without_cross_talk(live: Start) -> None:
    engine = FakeEngine()
    engine.gate.clear()
    server = live(engine)
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)

    async def one(index: int) -> None:
        marker = f"<<{index}:" + "é" * (index % 5) + ">>"
        asked: Any = {"model": "fake-model", "messages": say(marker), "temperature": 0}
        if index % 2:
            stream = await client.chat.completions.create(**asked, stream=True)
            text = "".join([c.choices[0].delta.content or "" async for c in stream])
        else:
            answer = await client.chat.completions.create(**asked)
            text = answer.choices[0].message.content or ""
            assert answer.usage is not None
            assert answer.usage.completion_tokens == len(f"echo: user\n{marker}".encode()) + 1
        assert text == f"echo: user\n{marker}"

    tasks = [asyncio.ensure_future(one(i)) for i in range(32)]
    while server.site.client.live < 32:
        await asyncio.sleep(0.005)
    engine.gate.set()
    await asyncio.gather(*tasks)
    await client.close()
    assert engine.max_running == 32
    assert len(engine.threads) == 1
    wait_until(lambda: server.site.client.live == 0)


def send_raw(server: LiveServer, **body: Any) -> socket.socket:
    """A connection on which a completion has been asked for."""
    raw = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
    text = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    raw.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
    return raw


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("phase", ["prefill", "queue", "decode"])
def test_disconnect_frees_the_request(live: Start, stream: bool, phase: str) -> None:
    engine = FakeEngine(max_batch=1)
    server = live(engine)
    site = server.site
    endless = {"max_tokens": 400, "ignore_eos": True, "stream": stream}
    blocker = None
    engine.step_s = 0.01
    if phase == "queue":
        blocker = send_raw(server, prompt="b", **endless)
        wait_until(lambda: engine.stats().running == 1)
    elif phase == "prefill":
        engine.gate.clear()
    before = site.client.live
    raw = send_raw(server, prompt="a", **endless)
    wait_until(lambda: site.client.live == before + 1)
    if phase == "decode":
        wait_until(lambda: engine.stats().generation_tokens >= 3)
    raw.close()
    if phase == "prefill":
        wait_until(lambda: disconnects(server) == 1)
        engine.gate.set()
    wait_until(lambda: site.client.live == before)
    wait_until(lambda: engine.stats().running + engine.stats().waiting == before)
    assert engine.stats().finished == {"cancelled": 1}
    assert disconnects(server) == 1
    if blocker is not None:
        blocker.close()


def disconnects(server: LiveServer) -> float:
    text = server.site.service.metrics.exposition.render().decode()
    found = re.search(r"^halfbyte:client_disconnects_total{.*} (.+)$", text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_disconnect_while_tokenizing_never_reaches_the_engine(live: Start) -> None:
    server = live()
    engine = server.engine
    assert isinstance(engine, FakeEngine)
    engine.tokenizer.gate.clear()
    raw = send_raw(server, prompt="a")
    # Meanwhile the event loop is free.
    assert httpx.get(f"{server.url}/health", timeout=10).status_code == 200
    raw.close()
    wait_until(lambda: disconnects(server) == 1)
    engine.tokenizer.gate.set()
    answer = client_of(server).completions.create(model="fake-model", prompt="b", temperature=0)
    assert answer.choices[0].text == "echo: b"
    assert sum(engine.stats().finished.values()) == 1


def test_storm_of_disconnects(live: Start) -> None:
    engine = FakeEngine(max_batch=4)
    engine.step_s = 0.002
    server = live(engine)

    async def storm() -> None:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(limits=limits, timeout=30) as http:

            async def one(index: int) -> None:
                body = {"prompt": f"p{index}", "max_tokens": 300, "stream": bool(index % 2)}
                task = asyncio.ensure_future(http.post(f"{server.url}/v1/completions", json=body))
                await asyncio.sleep(0.003 * (index % 50))
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

            await asyncio.gather(*(one(i) for i in range(100)))

    asyncio.run(storm())
    wait_until(lambda: server.site.client.live == 0)
    stats = engine.stats()
    assert stats.running == stats.waiting == stats.kv_blocks_used == 0
    answer = client_of(server).completions.create(model="fake-model", prompt="ok", temperature=0)
    assert answer.choices[0].text == "echo: ok"
