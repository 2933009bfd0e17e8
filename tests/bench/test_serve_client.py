"""The client against servers that answer well, badly, slowly or not at all."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import threading

import pytest
from fake_openai import TOKENS, FakeOpenAI

from halfbyte.bench.serve.client import get_json, stream_answer
from halfbyte.bench.serve.figures import serve_figures
from halfbyte.bench.serve.load import Arrivals, LoadResult
from halfbyte.bench.serve.run import ServePlan, measure_serving
from halfbyte.bench.serve.target import BodyForm, ServeTarget
from halfbyte.bench.serve.workload import Workload
from halfbyte.errors import ConfigError

BAD = {
    "refuse": "429 Too Many Requests: slow down",
    "die": "the connection ended in mid-answer, after 2 events",
    "no usage": "the answer has no usage, by which tokens are counted",
    "half usage": "the usage has not both counts of tokens",
    "error": "the server ended the answer with an error: out of memory",
    "no json": "an event is no JSON: b'{oh dear'",
    "whole": "the answer has no event with text",
    "no http": "the answer is no HTTP: 'hello there, this is no HTTP'",
    "slow": "the server said nothing for 0.3 s",
}


def measure(fake: FakeOpenAI, count: int, silence_s: float = 0.3, **arrivals) -> LoadResult:
    plan = ServePlan(
        Workload(num_prompts=count, input_len=40, output_len=TOKENS),
        Arrivals(**arrivals),
        silence_s=silence_s,
    )
    return measure_serving(ServeTarget.of(fake.url), plan, print, lambda *numbers: None)[1]


def test_what_goes_wrong_is_counted_and_said() -> None:
    script = [*BAD, "good", "split"]
    random.shuffle(script)
    with FakeOpenAI(script) as fake:
        found = measure(fake, len(script), max_concurrency=1)
    assert len(found.samples) == len(script) and not found.interrupted
    for manner, sample in zip(script, found.samples, strict=True):
        assert sample.error.startswith(BAD.get(manner, "")), (manner, sample)
        assert bool(sample.error) == (manner in BAD)
        assert sample.output_tokens == (0 if manner in BAD else TOKENS)
    figures = serve_figures(found, (99.0,), {})
    assert (figures["completed"], figures["failed"]) == (2, len(BAD))
    assert figures["total_output_tokens"] == 2 * TOKENS
    assert figures["errors"] == [sample.error for sample in found.samples]


def test_times_are_those_of_the_events() -> None:
    with FakeOpenAI(pause_s=0.05) as fake:
        found = measure(fake, 3, silence_s=5.0, max_concurrency=1)
    for sample in found.samples:
        # The event without text that ends a stream is none of them.
        assert len(sample.itl_s) == TOKENS - 1 and sample.text == " t0 t1 t2 t3"
        # A sleep may take longer on a busy machine, and hardly less than it should.
        assert all(gap > 0.03 for gap in sample.itl_s)
        assert sample.latency_s == pytest.approx(sample.ttft_s + sum(sample.itl_s))
    starts = [sample.start_s for sample in found.samples]
    assert starts == sorted(starts) and starts[1] >= found.samples[0].latency_s
    assert all(sample.queue_s >= 0 for sample in found.samples)
    # One place: the third waits for both before it.
    assert found.samples[2].queue_s >= found.samples[1].latency_s


def test_lengths_come_to_what_was_asked_for() -> None:
    """The fake counts 2 tokens a word and 3 more, which two probes find out exactly."""
    with FakeOpenAI() as fake:
        found = measure(fake, 4)
    assert [sample.prompt_tokens for sample in found.samples] == [39, 39, 39, 39]
    assert fake.bodies[2]["model"] == "fake" and "ignore_eos" not in fake.bodies[2]
    assert fake.bodies[2]["stream_options"] == {"include_usage": True}
    assert fake.bodies[2]["max_tokens"] == TOKENS


def test_a_server_whose_first_answer_is_bad_is_measured_all_the_same() -> None:
    said: list[str] = []
    plan = ServePlan(Workload(num_prompts=2, input_len=40), silence_s=5.0)
    with FakeOpenAI(["refuse"], probes=0) as fake:
        target = ServeTarget.of(fake.url)
        _, found = measure_serving(target, plan, said.append, lambda *numbers: None)
    assert [sample.error for sample in found.samples] == [BAD["refuse"]] * 2
    assert said == [f"the first request failed, so lengths are estimates: {BAD['refuse']}"]


def test_nobody_there_is_an_error() -> None:
    with FakeOpenAI() as fake:
        url = fake.url
    with pytest.raises(ConfigError, match=f"nobody answers at {url}: no connection"):
        measure_serving(ServeTarget.of(url), ServePlan(), print, lambda *numbers: None)


def test_ctrl_c_leaves_what_was_measured() -> None:
    before = signal.getsignal(signal.SIGINT)
    with FakeOpenAI([*["good"] * 5, *["slow"] * 50]) as fake:
        timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        found = measure(fake, 20, silence_s=60.0, max_concurrency=4)
    assert found.interrupted and len(found.samples) == 5
    assert all(not sample.error for sample in found.samples) and found.duration_s < 20
    assert signal.getsignal(signal.SIGINT) is before


def test_chats_count_content_and_reasoning() -> None:
    form = BodyForm("openai-chat", "/v1/chat/completions", "m", extra={"temperature": 0})
    body = json.loads(form.body("hi", 9))
    assert body["messages"] == [{"role": "user", "content": "hi"}] and "prompt" not in body
    assert body["temperature"] == 0 and body["max_tokens"] == 9 and "ignore_eos" not in body
    deltas = [
        *({"role": "assistant", "content": ""}, {"reasoning_content": "hm"}, {"content": "yes"}),
        *({"tool_calls": [{"index": 0}]}, {"content": None}, {}),
    ]
    events: list[dict] = [{"choices": [{"delta": delta}]} for delta in deltas]
    events.append({"usage": {"prompt_tokens": 1, "completion_tokens": 3}})
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)

    async def run():
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            # The end of the connection ends the body.
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + text.encode())
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            target = ServeTarget.of(f"http://127.0.0.1:{port}")
            assert await get_json(target, "/version", 5.0) is None
            return await stream_answer(target, form.endpoint, form.body("hi", 9), 5.0)

    found = asyncio.run(run())
    assert found.error == "" and len(found.times_s) == 3
    assert found.usage == {"prompt_tokens": 1, "completion_tokens": 3}


@pytest.mark.parametrize(
    ("url", "shown", "local"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000", True),
        ("http://localhost:1/v1/", "http://localhost:1", True),
        ("https://host.example/llm/v1", "https://host.example:443/llm", False),
        ("http://[::1]:9", "http://[::1]:9", True),
        ("http://10.0.0.1", "http://10.0.0.1:80", False),
    ],
)
def test_urls(url: str, shown: str, local: bool) -> None:
    target = ServeTarget.of(url)
    assert (target.url, target.local) == (shown, local)


@pytest.mark.parametrize("url", ["host:80", "ftp://x", "http://", "http://h:99999", "http://h?a=1"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="--url is"):
        ServeTarget.of(url)
    with pytest.raises(ConfigError, match="the header 'X'"):
        ServeTarget.of("http://h", {"X": "a\r\nY: b"})
