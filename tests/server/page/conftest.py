"""An app with the page over a fake engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from fake_engine import FakeEngine
from server_support import Site, client_of

from halfbyte.server.page.site import ChatPage


@pytest.fixture
def page() -> Iterator[ChatPage]:
    made = ChatPage()
    yield made
    made.close()


@pytest.fixture
async def page_http(engine: FakeEngine, page: ChatPage) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app that has the page, without a socket."""
    async for client in client_of(Site(engine, app_options={"page": page})):
        yield client
