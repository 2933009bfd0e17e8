"""AsyncEngine: threads, delivery, failures, cancelling and closing, over a scripted engine."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from halfbyte.engine.config import EngineConfig
from halfbyte.engine.params import SamplingParams
from halfbyte.engine.request import Completion, Delta, FinishReason, Usage
from halfbyte.engine.run.stats import EngineStats
from halfbyte.engine.serve.async_engine import AsyncEngine
from halfbyte.engine.serve.client import EngineClient
from halfbyte.engine.serve.stream import RequestStream, ready
from halfbyte.errors import EngineDeadError, RequestError

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class ScriptedEngine:
    """Each step gives every request its next number as text, until max_tokens."""

    name = "scripted"
    max_context = 100
    tokenizer: Any = None

    def __init__(self) -> None:
        self.config = EngineConfig()
        self.live: dict[str, list[int]] = {}
        self.cancelled: list[str] = []
        self.failures: list[BaseException] = []
        self.gate = threading.Event()
        self.gate.set()
        self.polls = 0
        self.steps = 0
        self.closed_by: int | None = None
        self.threads: set[int] = set()
        self.prepared: list[SamplingParams] = []

    def begun(self, request_id: str) -> bool:
        return self.steps > 0 or request_id not in self.live

    def prepare(self, params: SamplingParams) -> None:
        self.prepared.append(params)

    def submit(
        self, prompt: Any, params: SamplingParams, *, request_id: Any = None, **_: Any
    ) -> str:
        self.threads.add(threading.get_ident())
        if not prompt:
            raise RequestError("the prompt is empty", param="prompt")
        assert request_id not in self.live
        self.live[request_id] = [0, params.max_tokens or 5]
        return request_id

    def cancel(self, request_id: str) -> None:
        self.threads.add(threading.get_ident())
        if self.live.pop(request_id, None):
            self.cancelled.append(request_id)

    def has_work(self) -> bool:
        self.polls += 1
        return bool(self.live or self.cancelled)

    def step(self) -> list[Delta]:
        self.threads.add(threading.get_ident())
        self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.steps += 1
        out = [
            Delta(name, "", completion=Completion("", [], FinishReason.CANCELLED, Usage(1, 0)))
            for name in self.cancelled
        ]
        self.cancelled.clear()
        for name, state in list(self.live.items()):
            state[0] += 1
            done = None
            if state[0] == state[1]:
                text = "".join(f"{n} " for n in range(1, state[1] + 1))
                done = Completion(text, [], FinishReason.LENGTH, Usage(1, state[1]))
                del self.live[name]
            out.append(Delta(name, f"{state[0]} ", (state[0],), done))
        return out

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self.live), steps=self.steps)

    def close(self) -> None:
        self.closed_by = threading.get_ident()


@pytest.fixture
async def pair() -> Any:
    """A started AsyncEngine and the engine in it."""
    engine = ScriptedEngine()
    client = AsyncEngine(engine)
    await client.start()
    yield client, engine
    engine.gate.set()
    await client.close()


def params(count: int = 5) -> SamplingParams:
    return SamplingParams(max_tokens=count)


async def until(condition: Any, timeout: float = 5.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "condition not reached in time"
        await asyncio.sleep(0.002)


def test_is_an_engine_client() -> None:
    client: EngineClient = AsyncEngine(ScriptedEngine())
    assert client.live == 0 and not client.health().alive


async def test_deltas_in_order_then_end(pair: Any) -> None:
    client, _ = pair
    deltas = [delta async for delta in client.submit([1], params(4))]
    assert [d.text for d in deltas] == ["1 ", "2 ", "3 ", "4 "]
    assert deltas[-1].completion is not None
    assert "".join(d.text for d in deltas) == deltas[-1].completion.text
    assert client.live == 0


async def test_result_equals_stream_and_counts_tokens(pair: Any) -> None:
    client, _ = pair
    stream = client.submit([1, 2, 3], params(6))
    done = await stream.result()
    assert done.text == "1 2 3 4 5 6 "
    assert (stream.prompt_tokens, stream.tokens) == (3, 6)
    assert stream.submitted_at <= stream.first_token_at <= stream.last_token_at


async def test_engine_runs_in_one_thread_of_its_own(pair: Any) -> None:
    client, engine = pair
    await client.submit([1], params()).result()
    late = client.submit([1], params(1000))
    client.cancel(late.id)
    await late.result()
    await client.close()
    assert engine.threads == {engine.closed_by}
    assert threading.get_ident() not in engine.threads


async def test_idle_engine_does_not_spin(pair: Any) -> None:
    client, engine = pair
    await client.submit([1], params()).result()
    await until(lambda: client.stats().running == 0)
    await asyncio.sleep(0.2)
    polls = engine.polls
    await asyncio.sleep(0.3)
    # A spinning loop polls thousands of times in this span; one late poll is none.
    assert engine.polls <= polls + 1


async def test_one_call_into_the_loop_per_step(pair: Any) -> None:
    client, engine = pair
    calls = []
    inner = client._post
    client._post = lambda *args: (calls.append(len(args[1])), inner(*args))
    engine.gate.clear()
    streams = [client.submit([1], params(10)) for _ in range(8)]
    await asyncio.gather(*(s.accepted() for s in streams[:1]))
    before, steps = len(calls), engine.steps
    engine.gate.set()
    await asyncio.gather(*(s.result() for s in streams))
    # Deltas of a step travel together; commands that came in meanwhile add at most one call each.
    assert len(calls) - before <= (engine.steps - steps) + len(streams)
    assert max(calls) >= 8


async def test_refusal_reaches_only_its_own_request(pair: Any) -> None:
    client, _ = pair
    good, bad = client.submit([1], params()), client.submit([], params())
    with pytest.raises(RequestError, match="empty"):
        await bad.accepted()
    with pytest.raises(RequestError, match="empty"):
        await bad.take()
    assert (await good.result()).finish_reason is FinishReason.LENGTH
    assert client.live == 0


async def test_take_times_out_without_losing_anything(pair: Any) -> None:
    client, engine = pair
    engine.gate.clear()
    stream = client.submit([1], params(3))
    began = time.monotonic()
    assert await stream.take(0.05) == []
    assert time.monotonic() - began >= 0.05
    engine.gate.set()
    texts: list[str] = []
    while len(texts) < 3:
        texts += [d.text for d in await stream.take(5.0)]
    assert texts == ["1 ", "2 ", "3 "]


async def test_ready_watches_several_streams(pair: Any) -> None:
    client, engine = pair
    engine.gate.clear()
    streams = [client.submit([1], params(2)) for _ in range(3)]
    assert not await ready(streams, 0.02)
    engine.gate.set()
    assert await ready(streams, 5.0)
    assert any(s.pending for s in streams)


async def test_closing_a_stream_cancels_its_request_only(pair: Any) -> None:
    client, engine = pair
    async with client.submit([1], params(10**6)) as stream:
        assert (await stream.take())[0].text == "1 "
        other = client.submit([1], params(50))
    assert (await other.result()).finish_reason is FinishReason.LENGTH
    await until(lambda: client.live == 0)
    assert engine.live == {} and client.stats().running == 0


async def test_cancel_while_queued_behind_a_long_step(pair: Any) -> None:
    client, engine = pair
    engine.gate.clear()
    first = client.submit([1], params(2))
    await first.accepted()
    second = client.submit([1], params(2))
    second.close()
    engine.gate.set()
    assert (await first.result()).text == "1 2 "
    await until(lambda: client.live == 0)
    assert engine.live == {}


async def test_cancel_of_an_unknown_id_is_ignored(pair: Any) -> None:
    client, _ = pair
    client.cancel("nobody")
    assert (await client.submit([1], params(2)).result()).text == "1 2 "


async def test_same_id_twice_at_once_makes_two_requests(pair: Any) -> None:
    client, _ = pair
    one, two = (client.submit([1], params(3), request_id="x") for _ in range(2))
    assert one.id != two.id
    assert [(await s.result()).text for s in (one, two)] == ["1 2 3 "] * 2


async def test_an_id_that_looks_like_a_made_one_stays_its_owners(pair: Any) -> None:
    client, _ = pair
    mine = [client.submit([1], params(3), request_id=f"x-{n}") for n in range(5)]
    same = [client.submit([1], params(3), request_id="x") for _ in range(3)]
    assert client.live == 8
    assert [(await s.result()).text for s in (*mine, *same)] == ["1 2 3 "] * 8
    assert client.live == 0


async def test_what_leaves_a_step_is_the_end(pair: Any) -> None:
    """The engine outlives failing requests and steps, and counts them; nobody counts again."""
    client, engine = pair
    engine.gate.clear()
    streams = [client.submit([1], params()) for _ in range(3)]
    engine.failures.append(ValueError("kernel exploded"))
    engine.gate.set()
    done = await asyncio.gather(*(s.result() for s in streams))
    assert {d.finish_reason for d in done} == {FinishReason.ERROR}
    assert all("kernel exploded" in (d.error or "") for d in done)
    await until(lambda: client.health().dead)
    health = client.health()
    assert not health.alive and not health.accepting and "kernel exploded" in (health.error or "")
    with pytest.raises(EngineDeadError):
        client.submit([1], params())
    await until(lambda: engine.closed_by is not None)
    assert client.live == 0


async def test_dead_engine_ends_running_and_queued_requests(pair: Any) -> None:
    client, engine = pair
    engine.gate.clear()
    streams = [client.submit([1], params()) for _ in range(2)]
    await streams[0].accepted()
    streams.append(client.submit([1], params()))
    engine.failures.append(EngineDeadError("the device is lost"))
    engine.gate.set()
    done = await asyncio.wait_for(asyncio.gather(*(s.result() for s in streams)), 5)
    assert {d.finish_reason for d in done} == {FinishReason.ERROR}
    assert client.health().error == "the device is lost"


async def test_observer_sees_all_deltas_of_a_left_stream(pair: Any) -> None:
    client, _ = pair
    seen: list[Delta] = []
    client.observe(lambda stream, delta, now: seen.append(delta))
    stream = client.submit([1], params(10**6))
    await stream.take()
    stream.close()
    await until(lambda: client.live == 0)
    assert seen[-1].completion is not None
    assert seen[-1].completion.finish_reason is FinishReason.CANCELLED


async def test_close_drains_then_cancels() -> None:
    engine = ScriptedEngine()
    client = AsyncEngine(engine)
    await client.start()
    short = client.submit([1], params(50))
    closing = asyncio.ensure_future(client.close(drain_s=10))
    await asyncio.sleep(0)
    with pytest.raises(EngineDeadError):
        client.submit([1], params())
    await asyncio.gather(closing, client.close())
    assert (await short.result()).finish_reason is FinishReason.LENGTH
    assert engine.closed_by is not None and not client.health().alive

    engine = ScriptedEngine()
    client = AsyncEngine(engine)
    await client.start()
    endless = client.submit([1], params(10**9))
    await endless.take()
    await client.close(drain_s=0.05)
    assert (await endless.result()).finish_reason is FinishReason.CANCELLED


async def test_stuck_step_shows_in_health() -> None:
    engine = ScriptedEngine()
    client = AsyncEngine(engine, stall_s=0.05)
    await client.start()
    engine.gate.clear()
    stream = client.submit([1], params(2))
    await until(lambda: not client.health().alive)
    health = client.health()
    assert not health.dead and health.step_age_s >= 0.05 and "running for" in (health.error or "")
    engine.gate.set()
    await stream.result()
    await until(lambda: client.health().alive)
    await client.close()


async def test_start_twice_and_submit_before_start_are_refused() -> None:
    client = AsyncEngine(ScriptedEngine())
    with pytest.raises(EngineDeadError):
        client.submit([1], params())
    await client.start()
    with pytest.raises(EngineDeadError):
        await client.start()
    await client.close()


async def test_storm_of_dropped_streams_leaves_nothing(pair: Any) -> None:
    client, engine = pair

    async def one(index: int) -> str | None:
        stream: RequestStream = client.submit([1], params(20 + index % 7))
        if index % 3:
            await stream.take(0.001 * (index % 5))
            stream.close()
            return None
        return (await stream.result()).text

    texts = await asyncio.gather(*(one(i) for i in range(300)))
    await until(lambda: client.live == 0)
    assert engine.live == {} and client.stats().running == 0
    for index, text in enumerate(texts):
        if text is not None:
            assert text == "".join(f"{n} " for n in range(1, 21 + index % 7))
