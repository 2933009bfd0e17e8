"""What a person does at the page, in headless Chromium, and servers for it to talk to."""

from __future__ import annotations

import contextlib
import importlib
import re
import shutil
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fake_engine import FakeEngine
from server_support import LiveServer, Site

from halfbyte.engine.serve.async_engine import AsyncEngine, StepEngine
from halfbyte.server.app import create_app
from halfbyte.server.facts import ServedModel
from halfbyte.server.hosting.host import HostLimits, ModelHost
from halfbyte.server.hosting.offer import Offer
from halfbyte.server.kept import KeptResponses
from halfbyte.server.metric_families import Exposition
from halfbyte.server.page.site import ChatPage
from halfbyte.server.service import OpenAIService, ServiceConfig

if TYPE_CHECKING:
    from playwright.sync_api import (  # pyright: ignore[reportMissingImports]
        Browser,
        BrowserContext,
        Locator,
        Page,
    )

# Longest wait for what a test expects, milliseconds; other tests may have the cores.
PATIENCE_MS = 15_000
# What Chromium says of an answer whose status is an error: tests that provoke one expect it.
FAILED_LOAD = r"Failed to load resource"


class PacedEngine(FakeEngine):
    """Takes only the steps that it is given once `pace` was called; each writes one byte."""

    def __init__(self, max_context: int = 32768, **options: Any) -> None:
        super().__init__(max_context, **options)
        self._given = threading.Semaphore(0)
        self._paced = False

    def pace(self, steps: int) -> None:
        """Take so many more steps, then wait."""
        self._paced = True
        self._given.release(steps)

    def run_on(self) -> None:
        """Wait no more."""
        self._paced = False
        self._given.release()

    def step(self) -> list[Any]:
        if self._paced:
            self._given.acquire()
        return super().step()


def site_of(engines: Mapping[str, StepEngine]) -> Site:
    """One server of several models, by name, each with an engine of its own."""
    exposition, kept = Exposition(), KeptResponses(1 << 20)
    offers = [
        Offer([name], f"root-{name}", 2048, name * 8, ServedModel(), 32, 16, 1) for name in engines
    ]

    async def load(offer: Offer) -> OpenAIService:
        name = offer.names[0]
        client, config = AsyncEngine(engines[name]), ServiceConfig(names=(name,))
        return OpenAIService(client, config, exposition=exposition, kept=kept)

    site = Site(next(iter(engines.values())))
    site.host = ModelHost(offers, load, HostLimits(), exposition=exposition, kept=kept)
    site.app = create_app(site.host, page=ChatPage())
    return site


class Wire:
    """Stands between browser and server; `cut` is what a server that dies looks like."""

    def __init__(self, server: LiveServer) -> None:
        host, _, port = server.url.removeprefix("http://").partition(":")
        self._behind = (host, int(port))
        self._ends: list[socket.socket] = []
        self._listener = self._listen(0)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Drop every connection, and take no more."""
        for end in (self._listener, *self._ends):
            _shut(end)
        self._ends.clear()

    def mend(self) -> None:
        """Take connections again, on the same port."""
        self._listener = self._listen(self.port)

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near = listener.accept()[0]
            except OSError:
                return  # cut
            far = socket.create_connection(self._behind)
            self._ends += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side was faster
        end.shutdown(socket.SHUT_RDWR)
    end.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):  # cut
        while piece := source.recv(65536):
            sink.sendall(piece)
    _shut(source)
    _shut(sink)


@dataclass
class Visitor:
    """Somebody at the page: a browser context of its own, with an empty store.

    Attributes:
        context: of the browser.
        url: of the server.
        page: the open page.
        problems: errors of the console (violations of the content policy are among them) and of
            scripts, that no pattern in ``expected`` is found in.
        expected: patterns of problems that the test provokes.
    """

    context: BrowserContext
    url: str
    problems: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self.context.new_page()
        self.page.on("pageerror", lambda error: self._note(f"script: {error}"))
        self.page.on("console", self._hear)

    def _hear(self, message: Any) -> None:
        if message.type == "error":
            self._note(f"console: {message.text}")

    def _note(self, text: str) -> None:
        self.problems.append(text)

    def unexpected(self) -> list[str]:
        """Problems that the test did not provoke."""
        return [p for p in self.problems if not any(re.search(e, p) for e in self.expected)]

    def open(self, hash: str = "") -> Visitor:
        self.page.goto(f"{self.url}/{hash}")
        see(self.page.locator("main")).to_be_visible()
        return self

    def button(self, name: str, within: Locator | None = None) -> Locator:
        return (within or self.page).get_by_role("button", name=name, exact=True)

    @property
    def composer(self) -> Locator:
        return self.page.get_by_role("textbox", name="Message", exact=True)

    @property
    def messages(self) -> Locator:
        return self.page.locator("li[data-role]")

    @property
    def questions(self) -> Locator:
        return self.page.locator("li[data-role=user]")

    @property
    def answers(self) -> Locator:
        return self.page.locator("li[data-role=assistant]")

    @property
    def answer(self) -> Locator:
        """The last answer."""
        return self.answers.last

    @property
    def written(self) -> Locator:
        """What the last answer says."""
        return self.answer.locator(".content")

    @property
    def sidebar(self) -> Locator:
        return self.page.get_by_role("navigation", name="Conversations")

    def title(self, name: str) -> Locator:
        """A conversation in the sidebar: the button that opens it."""
        return self.button(name, self.sidebar)

    def row(self, name: str) -> Locator:
        """A conversation in the sidebar, with all of its buttons."""
        return self.sidebar.get_by_role("listitem").filter(has=self.button(name))

    @property
    def settings(self) -> Locator:
        return self.page.get_by_role("dialog", name="Settings")

    def send(self, text: str) -> None:
        self.composer.fill(text)
        self.composer.press("Enter")

    def ask(self, text: str) -> Locator:
        """Send a text and wait for the end of the answer; the answer."""
        before = self.answers.count()
        self.send(text)
        see(self.answers).to_have_count(before + 1)
        self.finished()
        return self.answer

    def finished(self) -> None:
        """Wait for the end of the last answer."""
        see(self.answer.locator(".figures")).to_contain_text("first token")
        see(self.button("Send")).to_be_visible()

    def open_settings(self) -> Locator:
        self.button("Settings").click()
        see(self.settings).to_be_visible()
        return self.settings

    def close_settings(self) -> None:
        self.button("Close", self.settings).click()
        see(self.settings).to_be_hidden()

    def delete(self, thing: Locator) -> None:
        """Delete a message or conversation; the page offers to undo that."""
        thing.hover()
        self.button("Delete", thing).click()
        see(self.button("Undo")).to_be_visible()

    def set(self, **values: str) -> None:
        """Fill text boxes of the settings, by the first word of their names."""
        dialog = self.open_settings()
        for name, value in values.items():
            dialog.get_by_role("textbox", name=re.compile(f"^{name}", re.I)).fill(value)
        self.close_settings()

    def told(self, pattern: str) -> Locator:
        """An alert or a status with a text that fits."""
        spoken = self.page.locator("[role=alert], [role=status]")
        return spoken.filter(has_text=re.compile(pattern, re.I)).first

    def export(self) -> str:
        """The file that "Export" gives."""
        with self.page.expect_download() as told:
            self.button("Export", self.sidebar).click()
        return told.value.path().read_text("utf-8")

    def take_in(self, text: str, name: str = "conversations.json") -> None:
        """Give a file to "Import"."""
        file: Any = {"name": name, "mimeType": "application/json", "buffer": text.encode()}
        self.page.get_by_label("Import file").set_input_files(file)

    def scripts_ran(self) -> bool:
        """Whether a text of a test's got to run as a script: such texts set ``window.ran``."""
        return self.page.evaluate("() => 'ran' in window")


def see(locator: Locator, message: str | None = None) -> Any:
    """What Playwright expects of a locator, and waits for; ``message`` heads a failure."""
    expect = importlib.import_module("playwright.sync_api").expect
    expect.set_options(timeout=PATIENCE_MS)
    return expect(locator, message)


def chromium() -> str:
    """The browser's program. Raises RuntimeError where there is none."""
    for name in ("chromium", "google-chrome"):
        if path := shutil.which(name):
            return path
    raise RuntimeError("tests of the page need Chromium; on Debian: apt install chromium")


def launched(playwright: Any) -> Browser:
    """A headless Chromium. It has no sandbox of its own where root, in a container, starts it."""
    at_once = ["--disable-smooth-scrolling"]  # or a test measures what still moves
    return playwright.chromium.launch(
        executable_path=chromium(), chromium_sandbox=False, args=at_once
    )
