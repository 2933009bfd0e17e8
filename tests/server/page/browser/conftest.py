"""A browser for the whole run, and for each test a server and visitors of its own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from page_driver import PacedEngine, Visitor, launched, site_of
from server_support import LiveServer

from halfbyte.server.page.site import ChatPage

if TYPE_CHECKING:
    from playwright.sync_api import Browser  # pyright: ignore[reportMissingImports]

Visit = Callable[..., Visitor]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with importlib.import_module("playwright.sync_api").sync_playwright() as playwright:
        browser = launched(playwright)
        yield browser
        browser.close()


@pytest.fixture
def engine() -> PacedEngine:
    return PacedEngine()


@pytest.fixture
def server(live: Callable[..., LiveServer], engine: PacedEngine) -> Iterator[LiveServer]:
    """A server with the page, over the test's engine."""
    yield live(engine, page=ChatPage())
    engine.run_on()  # or it waits for a step, and the server for it


@pytest.fixture
def engines() -> dict[str, PacedEngine]:
    """Two of them, by the names of their models."""
    return {"left": PacedEngine(), "right": PacedEngine()}


@pytest.fixture
def two_models(engines: dict[str, PacedEngine]) -> Iterator[LiveServer]:
    """A server of both engines."""
    server = LiveServer(site_of(engines))
    yield server
    for engine in engines.values():
        engine.run_on()
    server.stop()


@pytest.fixture
def visit(browser: Browser, server: LiveServer) -> Iterator[Visit]:
    """Opens the page in a fresh context: of the test's server, or of ``url``.

    ``script`` runs before those of the page; further arguments are those of Playwright's
    ``new_context``. A test fails when the browser complained of something that it did not expect.
    """
    visitors: list[Visitor] = []

    def start(url: str = "", hash: str = "", script: str = "", **options: Any) -> Visitor:
        options = {"locale": "en-US", "viewport": {"width": 1280, "height": 800}, **options}
        context = browser.new_context(**options)
        if script:
            context.add_init_script(script)
        visitor = Visitor(context, url or server.url)
        visitors.append(visitor)
        return visitor.open(hash)

    yield start
    complaints = [problem for visitor in visitors for problem in visitor.unexpected()]
    for visitor in visitors:
        visitor.context.close()
    assert complaints == []


@pytest.fixture
def visitor(visit: Visit) -> Visitor:
    """Somebody who has opened the page."""
    return visit()
