"""A host of models that are not there, each of which fills as much memory as it says."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
from fake_engine import FakeEngine

from halfbyte.engine.serve.async_engine import AsyncEngine
from halfbyte.server.app import create_app
from halfbyte.server.facts import ServedModel
from halfbyte.server.hosting.host import HostLimits, ModelHost
from halfbyte.server.hosting.offer import Offer
from halfbyte.server.kept import KeptResponses
from halfbyte.server.metric_families import Exposition
from halfbyte.server.service import OpenAIService, ServiceConfig

ADMIN = "the-admin-key"
MEMBER = "a-member-key"


class Hall:
    """Models a, b, c ... of given sizes, of which ``nbytes`` may be loaded together.

    ``engines`` has every engine that was made, by model; ``gate`` holds loads back; ``broken`` are
    models whose load fails. ``largest`` is what was ever loaded at once.
    """

    def __init__(self, sizes: list[int], nbytes: int, **limits: Any) -> None:
        offers = [
            Offer([name], f"root-{name}", 512, name * 8, ServedModel(), 32, 16, size)
            for name, size in zip("abcdef", sizes, strict=False)
        ]
        self.engines: dict[str, list[FakeEngine]] = {offer.names[0]: [] for offer in offers}
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken: set[str] = set()
        self.largest = 0
        self.step_s = 0.0
        self.host = ModelHost(
            offers,
            self._load,
            replace(HostLimits(nbytes=nbytes), **limits),
            exposition=Exposition(),
            kept=KeptResponses(1 << 20),
        )

    async def _load(self, offer: Offer) -> OpenAIService:
        await self.gate.wait()
        name = offer.names[0]
        if name in self.broken:
            raise MemoryError("no room")
        engine = FakeEngine()
        engine.step_s = self.step_s
        self.engines[name].append(engine)
        sizes = {model.offer.names[0]: model.offer.nbytes for model in self.host.models}
        living = [sizes[key] for key, made in self.engines.items() for e in made if not e.closed]
        self.largest = max(self.largest, sum(living))
        return OpenAIService(
            AsyncEngine(engine),
            ServiceConfig(names=(name,)),
            exposition=self.host.exposition,
            kept=self.host.kept,
        )

    @property
    def loaded(self) -> str:
        """Names of what is loaded, joined."""
        return "".join(m.offer.names[0] for m in self.host.models if m.service is not None)

    @property
    def loads(self) -> dict[str, int]:
        """How often each was loaded."""
        return {name: len(made) for name, made in self.engines.items()}


@contextlib.asynccontextmanager
async def client_of_hall(hall: Hall, **app_options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the hall's app, without a socket."""
    await hall.host.start()
    transport = httpx.ASGITransport(app=create_app(hall.host, **app_options))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    await hall.host.close()


async def ask(client: httpx.AsyncClient, model: str | None, text: str = "x", **fields: Any) -> Any:
    """A text completion; the engine echoes the text."""
    body = {"model": model, "prompt": text, "temperature": 0, "max_tokens": 40, **fields}
    return await client.post("/v1/completions", json=body)


async def occupied(hall: Hall, client: httpx.AsyncClient, text: str = "x") -> asyncio.Task[Any]:
    """A request that has model a and does not end before the gate of a's engine is set."""
    await ask(client, "a")
    hall.engines["a"][0].gate.clear()
    busy = asyncio.ensure_future(ask(client, "a", text))
    await until(lambda: hall.host.models[0].users == 1)
    return busy


async def until(condition: Any) -> None:
    """Let others run until something holds; fails after some thousand turns."""
    for turn in itertools.count():
        if condition():
            return
        assert turn < 5000, "condition not reached"
        await asyncio.sleep(0.001)
