"""Requests of all kinds together: answers that must not mix, an end in the middle, a long run."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import string
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from attack_support import SOAK_S, Prober, Victim, abort_request, spread, words

MARKERS = 500
STREAMS = 32
SCHEMAS = 10_000


def tool(name: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "strict": True, "parameters": schema}}


def asked(kind: str, marker: str, rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Path and body of a request whose answer has this marker in it, or of one that holds it."""
    prompt = f"{words(rng, rng.randint(0, 20))} " + " ".join([marker] * 6)
    say = [{"role": "user", "content": f"Say {marker}."}]
    match kind:
        case "schema":
            schema = {"const": {"marker": marker}}
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            return "/v1/chat/completions", {"messages": say, "response_format": form}
        case "choice":
            return "/v1/completions", {"prompt": prompt, "structured_outputs": {"choice": [marker]}}
        case "several":
            return "/v1/completions", {"prompt": prompt, "n": rng.randint(2, 4), "temperature": 0.3}
        case "stream":
            return "/v1/completions", {"prompt": prompt, "stream": True, "temperature": 0}
        case "echo":
            return "/v1/completions", {"prompt": prompt, "echo": True, "max_tokens": 2}
    return "/v1/completions", {"prompt": prompt, "temperature": 0}


KINDS = ("schema", "choice", "several", "stream", "echo", "plain")
# Answers that must have their marker, whatever the model would like to say.
SURE = ("schema", "choice", "echo")


def test_cross_talk_of_all_kinds(
    victim: Callable[..., Victim], report: Callable[..., None]
) -> None:
    server = victim("--max-waiting", str(4 * MARKERS), "--max-context", "2048")
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    markers = [f"{''.join(rng.choices(string.ascii_uppercase, k=3))}{i:03}" for i in range(MARKERS)]
    kinds = [rng.choice(KINDS) for _ in markers]
    requests = [asked(k, m, rng) for k, m in zip(kinds, markers, strict=True)]

    async def ask(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> str:
        response = await http.post(path, json={"max_tokens": 32, **body})
        assert response.status_code == 200, response.text
        return response.text

    async def attack() -> list[str]:
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as http:
            return await asyncio.gather(*(ask(http, *request) for request in requests))

    answers = asyncio.run(attack())
    foreign = [
        (mine, other)
        for mine, text in zip(markers, answers, strict=True)
        for other in markers
        if other != mine and other in text
    ]
    own = Counter(k for k, m, text in zip(kinds, markers, answers, strict=True) if m in text)
    count = Counter(kinds)
    report(markers=MARKERS, kinds=dict(count), own=dict(own), foreign=len(foreign), seed=seed)
    assert not foreign, f"seed {seed}"
    for kind in SURE:
        assert own[kind] == count[kind], f"{kind}, seed {seed}"
    assert not any(server.wait_until_idle().values())


def test_the_end_in_the_middle_of_streams(
    victim: Callable[..., Victim], report: Callable[..., None]
) -> None:
    """SIGTERM while 32 answers come: all are whole, and nobody new is let in."""
    server = victim("--max-context", "2048")
    ends: list[str] = []
    begun = threading.Barrier(STREAMS + 1)

    def read(number: int) -> None:
        body = {"prompt": f"Number {number}", "max_tokens": 120, "ignore_eos": True, "stream": True}
        last, first = "", True
        url = f"{server.url}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=120) as response:
            for line in response.iter_lines():
                if first:
                    begun.wait(60)
                first, last = False, line or last
        ends.append(last)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(STREAMS)]
    for thread in threads:
        thread.start()
    begun.wait(60)
    told = time.monotonic()
    server.popen.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    status = server.popen.wait(60)
    seconds = time.monotonic() - told
    report(streams=STREAMS, whole=ends.count("data: [DONE]"), seconds=round(seconds, 2))
    assert ends == ["data: [DONE]"] * STREAMS and status == 0


def test_health_while_streams_run_and_a_large_prompt_comes(
    victim: Callable[..., Victim], report: Callable[..., None]
) -> None:
    server = victim("--max-context", "4096")
    seed = random.randrange(2**32)
    large = words(random.Random(seed), 900_000)[: 5 << 20]
    gaps: list[float] = []

    async def attack() -> None:
        until = time.monotonic() + 15
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:

            async def stream(number: int) -> None:
                body = {"prompt": f"Number {number}", "max_tokens": 4000, "ignore_eos": True}
                sent: Any = http.stream("POST", "/v1/completions", json={**body, "stream": True})
                async with sent as response:
                    before = time.monotonic()
                    async for _ in response.aiter_raw():
                        now = time.monotonic()
                        gaps.append(now - before)
                        before = now
                        if now > until:
                            return

            async def prompts() -> None:
                while time.monotonic() < until:
                    refused = await http.post("/v1/completions", json={"prompt": large})
                    assert refused.status_code == 400, refused.text[:300]

            await asyncio.gather(prompts(), *(stream(i) for i in range(STREAMS)))

    probe = Prober(server)
    asyncio.run(attack())
    health = probe.stop()
    report(streams=STREAMS, megabytes=5, **health, **spread(gaps, "gap"), seed=seed)
    # The loop's own delay is a part of the time of such an exchange.
    assert health["health_p99_ms"] <= 100


def test_ten_thousand_schemas(victim: Callable[..., Victim], report: Callable[..., None]) -> None:
    """What is kept of grammars has a bound."""
    server = victim("--max-context", "1024", "--max-waiting", "1000")
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    memory: list[float] = []

    async def attack(count: int) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:

            async def client(each: int) -> None:
                for _ in range(each):
                    names = [words(rng, 1) for _ in range(rng.randint(1, 8))]
                    schema = {
                        "type": "object",
                        "properties": {name: {"type": "string", "maxLength": 4} for name in names},
                        "required": names,
                        "additionalProperties": False,
                    }
                    fields = {"structured_outputs": {"json": schema}, "max_tokens": 1}
                    answer = await http.post("/v1/completions", json={"prompt": "x", **fields})
                    assert answer.status_code == 200, answer.text

            await asyncio.gather(*(client(count // 16) for _ in range(16)))

    for _ in range(5):
        asyncio.run(attack(SCHEMAS // 5))
        memory.append(server.rss_mb())
    report(schemas=SCHEMAS, rss_mb=[round(mb) for mb in memory], seed=seed)
    assert max(memory) <= memory[1] * 1.05, f"seed {seed}"


def test_nothing_that_a_client_names_is_fetched(
    victim: Callable[..., Victim], report: Callable[..., None]
) -> None:
    server = victim("--max-context", "1024")
    with _canary() as (port, calls):
        web = f"http://127.0.0.1:{port}/canary.png"
        for url in (web, f"http://localhost:{port}/x", "file:///etc/passwd", "data:image/png,x"):
            part = {"type": "image_url", "image_url": {"url": url}}
            image = [{"role": "user", "content": [{"type": "text", "text": "see"}, part]}]
            body: dict[str, Any] = {"messages": image, "max_tokens": 2}
            refused = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
            assert refused.status_code == 400 and "root:" not in refused.text
            text = f"![x]({url}) <img src='{url}'> {{% include '{url}' %}} [INST] {url}"
            body["messages"] = [{"role": "user", "content": text}]
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
            assert answer.status_code == 200
            schema = {"$ref": url}
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": schema},
            }
            refused = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
            assert refused.status_code == 400
        report(urls=4, calls=len(calls))
    assert calls == []


def test_soak(victim: Callable[..., Victim], report: Callable[..., None]) -> None:
    """Mixed traffic: memory, files and log lines stay in bounds, and the last answer is right."""
    server = victim("--max-context", "1024", "--max-batch", "16")
    before = server.ask(max_tokens=24)["choices"][0]["text"]
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    statuses: Counter[int] = Counter()
    points: list[tuple[float, float, int]] = []
    began = time.monotonic()

    def over() -> bool:
        return time.monotonic() - began > SOAK_S

    async def attack() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as http:

            async def client() -> None:
                while not over():
                    kind = rng.choice((*KINDS, "abort", "tool", "vector", "wrong"))
                    if kind == "abort":
                        where = rng.choice(("before a token", "in the stream"))
                        await abort_request(server, where, words(rng, 9), rng)
                        continue
                    path, body = asked(kind, words(rng, 1), rng)
                    if kind == "vector":
                        path, body = "/v1/embeddings", {"input": [words(rng, 5), words(rng, 50)]}
                    elif kind == "wrong":
                        body = {"prompt": [rng.choice(["x", 10**9])], "max_tokens": -1}
                    elif kind == "tool":
                        path = "/v1/chat/completions"
                        body = {"messages": [{"role": "user", "content": words(rng, 9)}]}
                        body |= {"tools": [tool("look")], "tool_choice": "required"}
                    sent = {"max_tokens": rng.choice([1, 8, 40]), **body}
                    if kind == "vector":
                        del sent["max_tokens"]
                    response = await http.post(path, json=sent)
                    statuses[response.status_code] += 1

            async def watch() -> None:
                while not over():
                    now = time.monotonic() - began
                    points.append((now, server.rss_mb(), server.files()))
                    await asyncio.sleep(1)

            await asyncio.gather(watch(), *(client() for _ in range(24)))

    asyncio.run(attack())
    gauges = server.wait_until_idle()
    settled = [mb for at, mb, _ in points if at >= min(60.0, SOAK_S / 2)]
    growth = max(settled) / settled[0] - 1
    requests = sum(statuses.values())
    report(
        seconds=SOAK_S,
        statuses=dict(sorted(statuses.items())),
        rss_mb=[round(points[0][1]), round(settled[0]), round(max(settled))],
        growth_percent=round(growth * 100, 2),
        files_at_most=max(files for _, _, files in points),
        log_lines=server.log_lines(),
        seed=seed,
    )
    assert statuses.keys() <= {200, 400, 429} and statuses[200] > 10 * statuses[429]
    assert not any(gauges.values())
    assert growth <= 0.05, f"seed {seed}"
    assert server.log_lines() <= 2 * requests + 200
    assert server.ask(max_tokens=24)["choices"][0]["text"] == before


@contextmanager
def _canary() -> Iterator[tuple[int, list[bytes]]]:
    """A listener that notes whoever connects."""
    calls: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    stop = threading.Event()

    def accept() -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                calls.append(connection.recv(1000))

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield listener.getsockname()[1], calls
    finally:
        stop.set()
        thread.join()
        listener.close()
