"""More work than the server can do, clients that leave, answers that must not mix."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import string
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
from attack_support import Prober, Victim, abort_request, spread, words

OVERLOAD_S = float(os.environ.get("HALFBYTE_ATTACK_S", "180"))
ABORTS, ABORTS_A_ROUND = 1000, 200
# Where a client leaves: "unread" is a stream of which it has read the status alone.
POINTS = ("in the body", "before a token", "in the stream", "unread")
MARKERS = 240
# Of so many the answer is compared with the one that the same prompt gets alone.
ALONE = 40


def test_overload(victim: Callable[..., Victim], report: Callable[..., None]) -> None:
    # Contexts so short that fresh prompts fill the cache within the first minute, also on a slow
    # machine: what grows later is a leak.
    batch, queue = 16, 16
    options = ("--max-batch", str(batch), "--max-waiting", str(queue), "--max-context", "2048")
    server = victim(*options)
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    statuses: Counter[int] = Counter()
    memory: list[tuple[float, float]] = []
    began = time.monotonic()

    async def attack() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as http:

            async def client() -> None:
                while time.monotonic() - began < OVERLOAD_S:
                    body = {"prompt": words(rng, 60), "max_tokens": 24, "ignore_eos": True}
                    response = await http.post("/v1/completions", json=body)
                    statuses[response.status_code] += 1
                    if response.status_code == 429:
                        await asyncio.sleep(0.25)

            async def watch() -> None:
                while time.monotonic() - began < OVERLOAD_S:
                    memory.append((time.monotonic() - began, server.rss_mb()))
                    await asyncio.sleep(1)

            await asyncio.gather(watch(), *(client() for _ in range(4 * (batch + queue))))

    # The clients above share an event loop that has too much to do to tell time by.
    probe = Prober(server, "/v1/completions", json.dumps({"prompt": "x", "max_tokens": 1}))
    asyncio.run(attack())
    refusals = probe.stop("refusal", 429)
    settled = min(60.0, OVERLOAD_S / 3)
    after = [mb for at, mb in memory if at >= settled]
    growth = max(after) / after[0] - 1
    report(
        seconds=OVERLOAD_S,
        clients=4 * (batch + queue),
        statuses=dict(sorted(statuses.items())),
        **refusals,
        rss_mb_at_start=round(memory[0][1]),
        rss_mb_after_settling=round(after[0]),
        rss_mb_at_most=round(max(after)),
        growth_percent=round(growth * 100, 2),
        seed=seed,
    )
    assert set(statuses) == {200, 429}
    assert refusals["refusal_p99_ms"] <= 100
    assert growth <= 0.05
    assert not any(server.wait_until_idle().values())


def test_aborted_requests(victim: Callable[..., Victim], report: Callable[..., None]) -> None:
    """Clients leave at any point of a request; after each round nothing of them may be held."""
    server = victim("--max-context", "2048")
    before = server.ask(max_tokens=24)["choices"][0]["text"]
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    files = server.files()
    ended: Counter[str] = Counter()
    memory = [server.rss_mb()]

    async def leave(gate: asyncio.Semaphore, where: str) -> None:
        """Ask until one request has been given up there; a full queue refuses some at once."""
        while True:
            async with gate:
                how = await abort_request(server, where, words(rng, rng.choice([2, 30, 300])), rng)
            ended[how] += 1
            if how == where:
                return
            await asyncio.sleep(0.1)

    async def attack() -> None:
        gate = asyncio.Semaphore(48)
        await asyncio.gather(*(leave(gate, rng.choice(POINTS)) for _ in range(ABORTS_A_ROUND)))

    gauges: dict[str, float] = {}
    for _ in range(ABORTS // ABORTS_A_ROUND):
        asyncio.run(attack())
        gauges = server.wait_until_idle()
        assert not any(gauges.values()), f"seed {seed}"
        memory.append(server.rss_mb())
    left = server.files() - files
    growth = max(memory[1:]) / memory[1] - 1
    report(
        **dict(sorted(ended.items())),
        **gauges,
        files_left=left,
        rss_mb_of_rounds=[round(mb) for mb in memory],
        growth_percent=round(growth * 100, 2),
        seed=seed,
    )
    assert sum(ended[point] for point in POINTS) == ABORTS
    assert ended.keys() <= {*POINTS, "answered", "refused"}
    assert growth <= 0.05
    assert left <= 4
    assert server.ask(max_tokens=24, within=10)["choices"][0]["text"] == before


def test_cross_talk(victim: Callable[..., Victim], report: Callable[..., None]) -> None:
    server = victim("--exact")
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    markers = [f"{''.join(rng.choices(string.ascii_uppercase, k=3))}{i:03}" for i in range(MARKERS)]
    # A model that sees a word six times in a row goes on with it.
    prompts = [f"{words(rng, rng.randint(0, 20))} " + " ".join([m] * 6) for m in markers]

    async def ask(http: httpx.AsyncClient, prompt: str, stream: bool) -> str:
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": 24, "temperature": 0}
        response = await http.post("/v1/completions", json={**body, "stream": stream})
        assert response.status_code == 200, response.text
        if not stream:
            return response.json()["choices"][0]["text"]
        events = [e[6:] for e in response.text.split("\n\n") if e.startswith("data: {")]
        return "".join(httpx.Response(200, text=e).json()["choices"][0]["text"] for e in events)

    async def attack() -> tuple[list[str], list[str]]:
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as http:
            alone = [await ask(http, prompt, False) for prompt in prompts[:ALONE]]
            together = await asyncio.gather(
                *(ask(http, prompt, i % 2 == 0) for i, prompt in enumerate(prompts))
            )
            return alone, together

    alone, together = asyncio.run(attack())
    foreign = [
        (mine, other)
        for mine, text in zip(markers, together, strict=True)
        for other in markers
        if other != mine and other in text
    ]
    own = sum(m in text for m, text in zip(markers, together, strict=True))
    differing = sum(a != b for a, b in zip(alone, together, strict=False))
    report(
        markers=MARKERS,
        own=own,
        foreign=len(foreign),
        compared=ALONE,
        differ_from_solo=differing,
        seed=seed,
    )
    assert not foreign and not differing, f"seed {seed}"
    assert own >= MARKERS // 2


def test_gaps_during_a_long_prefill(
    victim: Callable[..., Victim], report: Callable[..., None]
) -> None:
    server = victim("--kv-tokens", "32768")
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    prompts = [[rng.randrange(100, 40000) for _ in range(6000)] for _ in range(3)]
    arrivals: list[list[float]] = [[] for _ in range(4)]
    windows: list[tuple[float, float]] = []

    async def attack() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as http:

            async def stream(into: list[float]) -> None:
                body = {"prompt": "Once upon", "max_tokens": 7000, "ignore_eos": True}
                sent: Any = http.stream("POST", "/v1/completions", json={**body, "stream": True})
                async with sent as response:
                    async for _ in response.aiter_raw():
                        into.append(time.perf_counter())

            streams = [asyncio.ensure_future(stream(into)) for into in arrivals]
            await asyncio.sleep(3)
            for prompt in prompts:
                began = time.perf_counter()
                body = {"prompt": prompt, "max_tokens": 1}
                response = await http.post("/v1/completions", json=body)
                assert response.status_code == 200, response.text
                windows.append((began, time.perf_counter()))
                await asyncio.sleep(1)
            for task in streams:
                assert not task.done()
                task.cancel()
            await asyncio.gather(*streams, return_exceptions=True)

    asyncio.run(attack())
    during: list[float] = []
    alone: list[float] = []
    for times in arrivals:
        for a, b in itertools.pairwise(times):
            if any(begin <= b and a <= end for begin, end in windows):
                during.append(b - a)
            elif b < windows[0][0] and a > windows[0][0] - 2:
                alone.append(b - a)
    figures = {**spread(alone, "gap_alone"), **spread(during, "gap_during")}
    prefill = [round(end - begin, 2) for begin, end in windows]
    report(prefill_tokens=6000, prefill_s=prefill, **figures, seed=seed)
    assert figures["gap_during_p99_ms"] <= 150


def test_health_during_large_prompts(
    victim: Callable[..., Victim], report: Callable[..., None]
) -> None:
    server = victim()
    seed = random.randrange(2**32)
    text = words(random.Random(seed), 900_000)[: 5 << 20]
    ids = ",".join(["1"] * (5 << 19))
    bodies = [
        ("/v1/completions", b'{"prompt": "%s"}' % text.encode()),
        ("/v1/completions", b'{"prompt": [%s]}' % ids.encode()),
        (
            "/v1/chat/completions",
            b'{"messages": [{"role": "user", "content": "%s"}]}' % text.encode(),
        ),
        ("/tokenize", b'{"prompt": "%s", "return_token_strs": true}' % text.encode()),
    ]
    statuses: Counter[str] = Counter()

    async def attack() -> None:
        until = time.monotonic() + 30
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:

            async def client(path: str, body: bytes) -> None:
                while time.monotonic() < until:
                    kind = {"Content-Type": "application/json"}
                    response = await http.post(path, content=body, headers=kind)
                    statuses[f"{path} {response.status_code}"] += 1
                    assert response.status_code in (200, 400), response.text[:300]

            await asyncio.gather(*(client(*item) for item in bodies))

    probe = Prober(server)
    asyncio.run(attack())
    health = probe.stop()
    report(**health, statuses=dict(sorted(statuses.items())), megabytes=5, seed=seed)
    assert health["health_p99_ms"] <= 100
