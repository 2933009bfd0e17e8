"""What the page does when server or browser refuse, or go."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import httpx
import pytest
from page_driver import FAILED_LOAD, PacedEngine, Visitor, Wire, see
from server_support import LiveServer

from halfbyte.server.page.site import ChatPage
from halfbyte.server.tenant import Keyring

pytestmark = pytest.mark.browser

# As with cookies blocked.
NO_STORE = """
IDBFactory.prototype.open = () => { throw new DOMException('refused', 'SecurityError'); };
"""
# As in a private window of some browsers.
STORE_FAILS = """
IDBFactory.prototype.open = () => {
    const request = new EventTarget();
    Object.assign(request, {error: new DOMException('refused', 'UnknownError'), result: null});
    const fire = () => { const e = new Event('error', {cancelable: true});
        request.dispatchEvent(e); request.onerror?.(e); };
    setTimeout(fire, 0);
    return request;
};
"""
NO_LOCAL_STORE = """
Object.defineProperty(window, 'localStorage', {get() {
    throw new DOMException('refused', 'SecurityError'); }});
"""
# Writing is refused as when the disk is full.
FULL = """
window.full = false;
for (const name of ['put', 'add']) {
    const real = IDBObjectStore.prototype[name];
    IDBObjectStore.prototype[name] = function (...args) {
        if (window.full) throw new DOMException('no room', 'QuotaExceededError');
        return real.apply(this, args);
    };
}
"""


@pytest.fixture
def wire(server: LiveServer) -> Iterator[Wire]:
    made = Wire(server)
    yield made
    made.cut()


def test_a_server_that_goes_in_mid_answer(
    visit: Callable[..., Visitor], engine: PacedEngine, wire: Wire
) -> None:
    visitor = visit(wire.url)
    visitor.expected += [FAILED_LOAD]
    engine.script = "One two three."
    engine.pace(len("One two"))
    visitor.send("Count")
    see(visitor.written).to_have_text("One two")
    wire.cut()
    alert = visitor.answer.get_by_role("alert")
    see(alert).to_be_visible()
    see(visitor.written).to_have_text("One two")
    visitor.button("Try again", visitor.answer).click()  # it is still gone
    see(alert).to_be_visible()
    see(visitor.button("Send")).to_be_visible()
    engine.run_on()
    wire.mend()
    visitor.button("Try again", visitor.answer).click()
    see(visitor.written).to_have_text("One two three.")
    see(alert).to_have_count(0)
    visitor.finished()


def test_what_a_broken_answer_says_is_kept(
    visit: Callable[..., Visitor], engine: PacedEngine, wire: Wire
) -> None:
    visitor = visit(wire.url)
    visitor.expected += [FAILED_LOAD]
    engine.script = "One two three."
    engine.pace(len("One two"))
    visitor.send("Count")
    see(visitor.written).to_have_text("One two")
    wire.cut()
    see(visitor.answer.get_by_role("alert")).to_be_visible()
    engine.run_on()
    wire.mend()
    visitor.page.reload()
    see(visitor.written).to_have_text("One two")
    see(visitor.button("Try again", visitor.answer)).to_be_visible()


def test_a_failure_of_the_engine_is_told(visitor: Visitor, engine: PacedEngine) -> None:
    engine.script = "One two three."
    engine.pace(len("One two"))
    visitor.send("Count")
    see(visitor.written).to_have_text("One two")
    engine.failures.append(ValueError("a cosmic ray"))
    engine.run_on()
    see(visitor.answer.get_by_role("alert")).to_be_visible()
    see(visitor.written).to_have_text("One two")
    visitor.button("Try again", visitor.answer).click()
    see(visitor.written).to_have_text("One two three.")


def test_a_request_that_is_refused_is_told(visitor: Visitor, engine: PacedEngine) -> None:
    """The fake model's template has no form of calls that is known."""
    visitor.expected += [FAILED_LOAD]
    visitor.set(Tools=json.dumps([{"type": "function", "function": {"name": "f"}}]))
    visitor.send("What now?")
    see(visitor.answer.get_by_role("alert")).to_contain_text("tools cannot be honoured")
    see(visitor.questions).to_contain_text("What now?")
    visitor.set(Tools="")
    engine.script = "Yes."
    visitor.button("Try again", visitor.answer).click()
    see(visitor.written).to_have_text("Yes.")


@pytest.mark.parametrize(
    "script", [NO_STORE, STORE_FAILS, NO_LOCAL_STORE + NO_STORE], ids=["throws", "fails", "all"]
)
def test_a_browser_that_keeps_nothing(
    visit: Callable[..., Visitor], engine: PacedEngine, script: str
) -> None:
    visitor = visit(script=script)
    see(visitor.told("keeps nothing")).to_be_visible()
    engine.script = "Yes."
    visitor.ask("Chat on?")
    see(visitor.written).to_have_text("Yes.")
    visitor.button("New chat", visitor.sidebar).click()
    visitor.ask("Still?")
    visitor.title("Chat on?").click()
    see(visitor.questions.locator(".content")).to_have_text("Chat on?")
    assert "Still?" in visitor.export()


def test_a_full_store(visit: Callable[..., Visitor], engine: PacedEngine) -> None:
    visitor = visit(script=FULL)
    engine.script = "Yes."
    visitor.ask("First?")
    visitor.page.evaluate("() => { window.full = true; }")
    engine.script = "Of course."
    visitor.ask("Room left?")
    see(visitor.told("no room left")).to_be_visible()
    see(visitor.written).to_have_text("Of course.")
    assert "Of course." in visitor.export()
    visitor.page.evaluate("() => { window.full = false; }")
    visitor.ask("And now?")
    visitor.page.reload()
    see(visitor.answers).to_have_count(3)
    see(visitor.answers.nth(1)).to_contain_text("Of course.")


def test_a_key_is_asked_for(
    visit: Callable[..., Visitor], live: Callable[..., LiveServer], engine: PacedEngine
) -> None:
    keyed = live(engine, keyring=Keyring(["the-key"]), page=ChatPage())
    visitor = visit(keyed.url)
    visitor.expected += [FAILED_LOAD]
    box = visitor.page.get_by_role("dialog").get_by_label(re.compile("key", re.I))
    see(box).to_be_visible()
    box.fill("a wrong key")
    box.press("Enter")
    see(
        visitor.page.get_by_role("dialog")
        .get_by_text(re.compile("wrong|not accept|refus|invalid"))
        .first
    ).to_be_visible()
    box.fill("the-key")
    box.press("Enter")
    see(visitor.page.get_by_role("dialog")).to_have_count(0)
    engine.script = "Yes."
    visitor.ask("May I?")
    see(visitor.written).to_have_text("Yes.")
    visitor.page.reload()
    see(visitor.written).to_have_text("Yes.")
    assert "the-key" not in visitor.export()


def test_without_the_page_there_is_a_reason(live: Callable[..., LiveServer]) -> None:
    answer = httpx.get(live().url + "/")
    assert answer.status_code == 404
    assert "page" in answer.json()["error"]["message"]
