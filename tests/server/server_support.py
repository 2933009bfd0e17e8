"""A service over any engine, in process or behind a real socket."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from halfbyte.engine.serve.async_engine import AsyncEngine, StepEngine
from halfbyte.server.app import create_app
from halfbyte.server.connections import ConnectionLimits, Connections
from halfbyte.server.facts import ServedModel
from halfbyte.server.hosting.host import ModelHost
from halfbyte.server.listen import listen, url_of, uvicorn_config
from halfbyte.server.service import OpenAIService, ServiceConfig
from halfbyte.server.tls import TlsFiles
from halfbyte.server.uploads.file_store import FileLimits
from halfbyte.server.uploads.routes import Uploads

ROOT = Path(__file__).parents[2]


@dataclass
class Site:
    """A service and the app over it.

    ``engine`` is what runs; ``app_options`` go to `create_app`, ``config`` and ``facts`` to the
    service; ``folder`` is where files and batches are kept.
    """

    engine: StepEngine
    config: ServiceConfig = field(default_factory=ServiceConfig)
    app_options: dict[str, Any] = field(default_factory=dict)
    facts: ServedModel | None = None
    folder: Path | None = None
    file_limits: FileLimits | None = None

    def __post_init__(self) -> None:
        self.client = AsyncEngine(self.engine)
        self.service = OpenAIService(self.client, self.config, self.facts)
        options = dict(self.app_options)
        self.host = ModelHost.of(self.service)
        if self.folder is not None:
            options["uploads"] = Uploads(self.host, self.folder, self.file_limits)
        self.app = create_app(self.host, **options)


async def client_of(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app, without a socket."""
    await site.service.start()
    transport = httpx.ASGITransport(app=site.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    await site.service.close()


class LiveServer:
    """uvicorn on an ephemeral loopback port, in a thread."""

    def __init__(
        self, site: Site, limits: ConnectionLimits | None = None, tls: TlsFiles | None = None
    ) -> None:
        self.site = site
        self.engine = site.engine
        self._listener = listen("127.0.0.1", 0)
        port = self._listener.getsockname()[1]
        self.url = url_of("127.0.0.1", port, secure=tls is not None)
        self.connections = Connections(limits or ConnectionLimits())
        self._server = uvicorn.Server(uvicorn_config(site.app, self.connections, tls))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        wait_until(lambda: self._server.started)
        self._listener.listen(128)

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
