"""The queue's bounds in tokens and in time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from server_support import Site

from halfbyte.server.admission import QueueLimits
from halfbyte.server.service import ServiceConfig

pytestmark = pytest.mark.anyio

Post = Callable[..., Coroutine[Any, Any, httpx.Response]]


@asynccontextmanager
async def serving(limits: QueueLimits, **options: Any) -> AsyncIterator[tuple[Site, Post]]:
    engine = FakeEngine(**options)
    site = Site(engine, ServiceConfig(queue=limits, keep_alive_s=0.05))
    await site.service.start()
    transport = httpx.ASGITransport(app=site.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

        async def post(prompt: Any, **fields: Any) -> httpx.Response:
            body = {"prompt": prompt, "max_tokens": 2, **fields}
            return await client.post("/v1/completions", json=body)

        yield site, post
    engine.gate.set()
    await site.service.close()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("condition not reached")


async def test_queue_is_bounded_by_prompt_tokens() -> None:
    async with serving(QueueLimits(tokens=100)) as (site, post):
        engine = site.engine
        assert isinstance(engine, FakeEngine)
        engine.gate.clear()
        # Larger than the bound, but alone.
        first = asyncio.ensure_future(post([97] * 150))
        await until(lambda: site.client.live == 1)
        for stream in (False, True):
            refused = await post("a", stream=stream)
            error = refused.json()["error"]
            assert refused.status_code == 429 and error["code"] == "server_overloaded"
            assert "100 tokens" in error["message"]
            assert 1 <= int(refused.headers["retry-after"]) <= 60
        engine.gate.set()
        assert (await first).status_code == 200
        engine.gate.clear()
        small = [asyncio.ensure_future(post([97] * 45)) for _ in range(2)]
        await until(lambda: site.client.live == 2)
        refused = await post([97] * 11)
        assert refused.status_code == 429 and "has 11" in refused.json()["error"]["message"]
        last = asyncio.ensure_future(post([97] * 10))
        await until(lambda: site.client.live == 3)
        engine.gate.set()
        assert {r.status_code for r in await asyncio.gather(*small, last)} == {200}
        text = site.service.metrics.exposition.render().decode()
        assert 'model_name="fake-model",reason="queue_tokens_full"} 3.0' in text


async def test_running_requests_do_not_fill_the_queue() -> None:
    async with serving(QueueLimits(tokens=100)) as (site, post):
        engine = site.engine
        assert isinstance(engine, FakeEngine)
        engine.step_s = 0.002
        running = asyncio.ensure_future(post([97] * 90, max_tokens=40, ignore_eos=True))
        await until(lambda: engine.stats().generation_tokens > 0)
        assert (await post([97] * 90)).status_code == 200
        assert (await running).status_code == 200


async def test_retry_after_grows_with_the_wait() -> None:
    async with serving(QueueLimits(tokens=10)) as (site, post):
        engine = site.engine
        assert isinstance(engine, FakeEngine)
        engine.gate.clear()
        first = asyncio.ensure_future(post([97] * 10))
        await until(lambda: site.client.live == 1)
        (job,) = site.service._admission._jobs
        job._submitted_at -= 17.5
        assert (await post("a")).headers["retry-after"] == "18"
        job._submitted_at -= 1000
        assert (await post("a")).headers["retry-after"] == "60"
        engine.gate.set()
        await first


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_waits_too_long_is_told(stream: bool) -> None:
    async with serving(QueueLimits(wait_s=0.1), max_batch=1) as (site, post):
        engine = site.engine
        assert isinstance(engine, FakeEngine)
        engine.step_s = 0.004
        # Runs far longer than anybody may wait, and is left alone for it has begun.
        running = asyncio.ensure_future(post("b", max_tokens=60, ignore_eos=True))
        await until(lambda: engine.stats().running == 1)
        late = await post(["a", "c"], stream=stream)
        if stream:  # its status is out by then: an event says it
            error = json.loads(late.text.split("\n\n")[-2].removeprefix("data: "))["error"]
        else:
            assert late.status_code == 503 and late.headers["retry-after"] == "5"
            error = late.json()["error"]
        assert error["code"] == "queue_timeout" and "0.1 s" in error["message"]
        assert not running.done()
        done = await running
        assert done.status_code == 200
        assert done.json()["usage"]["completion_tokens"] == 60
        await until(lambda: site.client.live == 0)
        assert not site.service._admission._jobs


async def test_no_bounds() -> None:
    async with serving(QueueLimits(tokens=0, wait_s=0), max_batch=1) as (site, post):
        engine = site.engine
        assert isinstance(engine, FakeEngine)
        engine.gate.clear()
        tasks = [asyncio.ensure_future(post([97] * 400)) for _ in range(20)]
        await until(lambda: site.client.live == 20)
        engine.gate.set()
        assert {r.status_code for r in await asyncio.gather(*tasks)} == {200}
