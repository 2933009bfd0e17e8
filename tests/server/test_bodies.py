"""Bodies that are too large, too slow or too many."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from halfbyte.server.bodies import Bodies, BodyLimits, ClientGone
from halfbyte.server.errors import ApiError
from halfbyte.server.metric_families import Exposition
from halfbyte.server.metrics import HttpMetrics

pytestmark = pytest.mark.anyio


def bodies(exposition: Exposition | None = None, **limits: Any) -> Bodies:
    return Bodies(BodyLimits(**limits), HttpMetrics(exposition or Exposition(), "m"))


class Sender:
    """The client's side of ASGI's receive: pieces go in as the test likes."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def send(self, size: int, *, more: bool = True) -> None:
        self._pieces.put_nowait({"type": "http.request", "body": b"x" * size, "more_body": more})

    async def __call__(self) -> dict[str, Any]:
        return await self._pieces.get()


async def hold(all_: Bodies, sender: Sender, until: asyncio.Event) -> int:
    """Read a body and keep it until ``until``; its size, or the status of the refusal."""
    try:
        async with all_.read(sender, "") as body:
            await until.wait()
            return len(body)
    except ApiError as error:
        return error.status


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_deadline_is_for_the_whole_body() -> None:
    all_ = bodies(timeout_s=0.3)
    sender = Sender()

    async def trickle() -> None:
        while True:
            sender.send(1)
            await asyncio.sleep(0.02)

    feeding = asyncio.ensure_future(trickle())
    began = time.monotonic()
    with pytest.raises(ApiError) as caught:
        async with all_.read(sender, ""):
            pass
    feeding.cancel()
    assert caught.value.status == 408 and 0.2 < time.monotonic() - began < 2
    assert all_.held == 0


async def test_size_of_one() -> None:
    all_ = bodies(most=10)
    for length in ("11", "9" * 30):
        with pytest.raises(ApiError) as caught:
            async with all_.read(Sender(), length):
                pass
        assert caught.value.status == 413
    sender = Sender()
    sender.send(6)
    sender.send(6, more=False)
    with pytest.raises(ApiError) as caught:
        async with all_.read(sender, ""):
            pass
    assert caught.value.status == 413 and all_.held == 0


async def test_the_largest_that_comes_in_makes_room() -> None:
    exposition = Exposition()
    all_ = bodies(exposition, together=100)
    until = asyncio.Event()
    large, middle, small = Sender(), Sender(), Sender()
    tasks = [asyncio.ensure_future(hold(all_, s, until)) for s in (large, middle, small)]
    large.send(60)
    middle.send(30)
    await settle()
    assert all_.held == 90
    small.send(20, more=False)
    await settle()
    assert all_.held == 50 and tasks[0].done() and tasks[0].result() == 503
    large.send(1000)  # nobody reads it any more
    middle.send(20, more=False)
    await settle()
    assert all_.held == 70
    # Whole bodies stay until they are answered: now the newcomer itself is refused.
    assert await hold(all_, sent(40), until) == 503
    assert all_.held == 70
    until.set()
    assert await asyncio.gather(*tasks) == [503, 50, 20]
    assert all_.held == 0
    assert b'admission_rejections_total{engine="0",model_name="m",reason="bodies_full"} 2.0' in (
        exposition.render()
    )


def sent(size: int) -> Sender:
    sender = Sender()
    sender.send(size, more=False)
    return sender


async def test_a_client_that_leaves() -> None:
    all_ = bodies()

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGone):
        async with all_.read(receive, ""):
            pass
    assert all_.held == 0
