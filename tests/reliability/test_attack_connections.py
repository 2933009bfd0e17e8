"""Sockets that say nothing or too little, while others are served."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import httpx
from attack_support import Prober, Victim

IDLE, SLOW_HEADERS, SLOW_BODIES = 400, 200, 200
REQUESTS = 20
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


async def hold(server: Victim, first: bytes, trickle: bytes, release: asyncio.Event) -> bool:
    """Hold a connection, sending a byte each second; whether it was still open at the end."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(first)
    try:
        while not release.is_set():
            writer.write(trickle)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), 1)
                return False  # an answer or the end: the server has given it up
        return True
    except OSError:
        return False
    finally:
        writer.close()


def test_idle_and_half_open(victim: Callable[..., Victim], report: Callable[..., None]) -> None:
    server = victim()
    lines = server.log_lines()
    statuses: list[int] = []
    times: list[float] = []

    async def attack() -> list[bool]:
        kinds = [(b"", b"")] * IDLE
        kinds += [(HEAD, b"x")] * SLOW_HEADERS
        kinds += [(HEAD + b"Content-Length: 1000\r\n\r\n", b" ")] * SLOW_BODIES
        release = asyncio.Event()
        held = [asyncio.ensure_future(hold(server, *kind, release)) for kind in kinds]
        await asyncio.sleep(3)
        # Each request needs a new connection.
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as http:
            for _ in range(REQUESTS):
                began = time.monotonic()
                body = {"prompt": "The sea is", "max_tokens": 4}
                statuses.append((await http.post("/v1/completions", json=body)).status_code)
                times.append(time.monotonic() - began)
        release.set()
        return await asyncio.gather(*held)

    probe = Prober(server)
    held = asyncio.run(attack())
    health = probe.stop()
    logged = server.log_lines() - lines - len(statuses) - SLOW_BODIES
    report(
        **health,
        open_at_the_end=sum(held),
        requests=len(statuses),
        ok=statuses.count(200),
        slowest_request_ms=round(max(times) * 1000, 1),
        other_log_lines=logged,
    )
    assert statuses == [200] * REQUESTS
    assert health["health_p99_ms"] <= 100
    assert logged <= 20
    assert not any(server.wait_until_idle().values())
