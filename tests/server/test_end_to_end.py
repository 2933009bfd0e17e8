"""The server over real engines: a tiny random model, and the default model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serve_process import ServeProcess
from server_support import LiveServer, wait_until

from halfbyte.engine.engine import Engine
from halfbyte.engine.params import SamplingParams
from halfbyte.engine.request import Delta
from halfbyte.server.tenant import Keyring

TINY = Path(__file__).parents[1] / "fixtures" / "gguf-q4_0-spm-llama" / "model.gguf"
Start = Callable[..., LiveServer]


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def tiny() -> Engine:
    # exact: the answers of a batch must equal those of the prompts alone.
    return Engine(TINY, threads=1, kv_tokens=4096, exact=True)


def test_answers_are_those_of_the_engine(live: Start) -> None:
    server = live(tiny())
    client = client_of(server.url)
    reference = tiny()
    for text in ("Hello there", "über 漢字 🙂", "x"):
        choices: list[dict[str, Any]] = [
            {"temperature": 0},
            {"seed": 11},
            {"seed": 12, "top_p": 0.9},
        ]
        for fields in choices:
            params = SamplingParams(max_tokens=24, **fields)
            (expected,) = reference.generate([text], params)
            asked: Any = {"model": server.site.service.names[0], "prompt": text}
            asked |= {"max_tokens": 24, **fields}
            whole = client.completions.create(**asked)
            assert whole.choices[0].text == expected.text
            assert whole.choices[0].finish_reason == expected.finish_reason.value
            assert whole.usage is not None
            assert whole.usage.prompt_tokens == expected.usage.prompt_tokens
            assert whole.usage.completion_tokens == expected.usage.completion_tokens
            chunks = client.completions.create(**asked, stream=True)
            assert "".join(c.choices[0].text for c in chunks) == expected.text


def test_refusals_of_the_engine(live: Start) -> None:
    server = live(tiny())
    client = client_of(server.url)
    name = server.site.service.names[0]
    limit = server.site.engine.max_context
    bad: list[dict[str, Any]] = [
        {"prompt": [1] * limit},
        {"prompt": [1] * 5, "max_tokens": limit},
        {"prompt": [10**9]},
        {"prompt": "a", "stop": ["x" * 5000]},
    ]
    for fields in bad:
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model=name, **fields)
    assert server.site.client.stats().running == 0


def test_batch_of_many_equals_each_alone(live: Start) -> None:
    server = live(tiny())
    prompts = [f"number {i} of " + "many " * (i % 7) for i in range(16)]
    expected = [
        c.text for c in tiny().generate(prompts, SamplingParams(temperature=0, max_tokens=12))
    ]

    async def ask() -> list[str]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            bodies = [{"prompt": p, "temperature": 0, "max_tokens": 12} for p in prompts]
            calls = [http.post("/v1/completions", json=body) for body in bodies]
            return [r.json()["choices"][0]["text"] for r in await asyncio.gather(*calls)]

    assert asyncio.run(ask()) == expected


def test_disconnect_frees_all_blocks(live: Start) -> None:
    engine = tiny()
    fast = engine.step

    def slow() -> list[Delta]:
        time.sleep(0.01)  # 200 steps last longer than any client needs to leave
        return fast()

    engine.step = slow
    server = live(engine)
    body = {"prompt": "go on", "max_tokens": 200, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        for line in response.iter_lines():
            if line:
                break
        assert server.site.client.live == 1
    wait_until(lambda: server.site.client.live == 0)
    stats = server.site.client.stats()
    assert (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)
    assert stats.finished.get("cancelled") == 1


def test_two_keys_share_no_cached_prefix(live: Start) -> None:
    server = live(tiny(), keyring=Keyring(["one", "two"]))
    prompt = list(range(5, 5 + 3 * server.site.engine.config.block_size))

    def cached(key: str, **fields: Any) -> int:
        response = httpx.post(
            f"{server.url}/v1/completions",
            json={"prompt": prompt, "max_tokens": 1, **fields},
            headers={"Authorization": f"Bearer {key}"},
            timeout=60,
        )
        return response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached("one") == 0 and cached("one") >= server.site.engine.config.block_size
    assert cached("two") == 0 and cached("one", cache_salt="x") == 0
    assert cached("two") == cached("one") == cached("one", cache_salt="x") > 0


def test_serve() -> None:
    with ServeProcess(str(TINY), "--threads", "1", "--served-name", "tiny") as process:
        for word in ("model", "context", "batch", "memory", "API key", "warm-up", "--threads 1"):
            assert word in process.start
        client = client_of(process.url)
        assert client.models.list().data[0].id == "tiny"
        answer = client.completions.create(model="tiny", prompt="hi", max_tokens=4, seed=1)
        assert answer.usage is not None and 1 <= answer.usage.completion_tokens <= 4
        foreign = httpx.get(f"{process.url}/v1/models", headers={"Host": "evil.example"})
        assert foreign.status_code == 403
        status, err = process.end()
    assert status == 0 and "Traceback" not in err
    assert "POST /v1/completions 200" in err


@pytest.mark.model
def test_the_default_model_chats(live: Start, smollm2: Path) -> None:
    server = live(Engine(smollm2, kv_tokens=8192))
    client = client_of(server.url)
    name = server.site.service.names[0]
    messages: Any = [{"role": "user", "content": "What is the capital of Germany?"}]
    asked: Any = {"model": name, "messages": messages, "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(**asked)
    text = whole.choices[0].message.content or ""
    assert "Berlin" in text and whole.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert whole.usage is not None and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    tokens = httpx.post(f"{server.url}/tokenize", json={"messages": messages}).json()
    assert tokens["count"] == whole.usage.prompt_tokens
    cut = client.chat.completions.create(**asked, stop=["Berlin"])
    assert (cut.choices[0].message.content or "") == text.partition("Berlin")[0]
    with pytest.raises(openai.BadRequestError, match="content"):
        client.chat.completions.create(model=name, messages=[{"role": "user"}])  # type: ignore
