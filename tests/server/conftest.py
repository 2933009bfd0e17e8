"""An app over a fake engine, in process or behind a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from server_support import LiveServer, Site, client_of

from halfbyte.engine.serve.async_engine import StepEngine
from halfbyte.server.connections import ConnectionLimits
from halfbyte.server.service import ServiceConfig
from halfbyte.server.tls import TlsFiles


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def http(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app, without a socket."""
    async for client in client_of(Site(engine)):
        yield client


@pytest.fixture
def live() -> Iterator[Callable[..., LiveServer]]:
    """Starts servers that are stopped after the test."""
    servers: list[LiveServer] = []

    def start(
        engine: StepEngine | None = None,
        config: ServiceConfig | None = None,
        limits: ConnectionLimits | None = None,
        tls: TlsFiles | None = None,
        **app_options: Any,
    ) -> LiveServer:
        site = Site(engine or FakeEngine(), config or ServiceConfig(), app_options)
        servers.append(LiveServer(site, limits, tls))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
