"""An app over a fake engine, in process or behind a real socket."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn
from fake_engine import FakeEngine
from halfbyte.engine.async_engine import AsyncEngine, StepEngine
from halfbyte.server.app import create_app
from halfbyte.server.listen import bind
from halfbyte.server.service import OpenAIService, ServiceConfig


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Site:
    """A service and the app over it.

    ``engine`` is what runs; ``app_options`` go to `create_app`, ``config`` to the service.
    """

    engine: StepEngine
    config: ServiceConfig = field(default_factory=ServiceConfig)
    app_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.client = AsyncEngine(self.engine)
        self.service = OpenAIService(self.client, self.config)
        self.app = create_app(self.service, **self.app_options)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def http(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app, without a socket."""
    site = Site(engine)
    await site.service.start()
    transport = httpx.ASGITransport(app=site.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    await site.service.close()


class LiveServer:
    """uvicorn on an ephemeral loopback port, in a thread."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.engine = site.engine
        self._listener = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                site.app, http="h11", log_config=None, access_log=False, lifespan="on", ws="none"
            )
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        wait_until(lambda: self._server.started)

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._listener]))

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


def wait_until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    """Wait for something another thread does; fails after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "condition not reached in time"
        time.sleep(0.005)


@pytest.fixture
def live() -> Iterator[Callable[..., LiveServer]]:
    """Starts servers that are stopped after the test."""
    servers: list[LiveServer] = []

    def start(
        engine: StepEngine | None = None, config: ServiceConfig | None = None, **app_options: Any
    ) -> LiveServer:
        site = Site(engine or FakeEngine(), config or ServiceConfig(), app_options)
        servers.append(LiveServer(site))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
