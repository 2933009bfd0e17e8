"""What people do at the page while an answer comes, in two tabs, and with an input method."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from page_driver import PacedEngine, Visitor, see
from server_support import LiveServer
from test_browser_conversations import a_conversation, a_file, two_conversations

from halfbyte.server.page.site import ChatPage
from halfbyte.server.service import ServiceConfig

if TYPE_CHECKING:
    from playwright.sync_api import Locator  # pyright: ignore[reportMissingImports]

pytestmark = pytest.mark.browser


def half_an_answer(visitor: Visitor, engine: PacedEngine) -> None:
    engine.script = "One two three."
    engine.pace(len("One two"))
    visitor.send("Count")
    see(visitor.written).to_have_text("One two")


def contents(visitor: Visitor) -> list[set[str]]:
    """What the messages of each kept conversation say."""
    kept = json.loads(visitor.export())["conversations"]
    return [{node["content"] for node in one["nodes"].values()} for one in kept]


def test_a_reload_in_mid_answer_keeps_what_came(visitor: Visitor, engine: PacedEngine) -> None:
    half_an_answer(visitor, engine)
    visitor.page.reload()
    engine.run_on()
    see(visitor.questions.locator(".content")).to_have_text("Count")
    see(visitor.composer).to_be_enabled()
    engine.script = "Yes."
    visitor.ask("Go on?")
    see(visitor.written).to_have_text("Yes.")


def test_an_answer_stays_in_its_conversation(visitor: Visitor, engine: PacedEngine) -> None:
    half_an_answer(visitor, engine)
    visitor.button("New chat", visitor.sidebar).click()
    see(visitor.messages).to_have_count(0)
    engine.run_on()
    engine.script = "Yes."
    visitor.ask("Another?")
    see(visitor.written).to_have_text("Yes.")
    visitor.title("Count").click()
    see(visitor.questions.locator(".content")).to_have_text("Count")
    see(visitor.written).to_contain_text("One two")
    visitor.page.reload()
    said = contents(visitor)
    assert {"Another?", "Yes."} in said
    (counted,) = [one for one in said if "Count" in one]
    assert any(text.startswith("One two") for text in counted)


def test_a_conversation_is_deleted_in_mid_answer(visitor: Visitor, engine: PacedEngine) -> None:
    half_an_answer(visitor, engine)
    visitor.delete(visitor.row("Count"))
    engine.run_on()
    engine.script = "Yes."
    visitor.ask("Another?")
    visitor.page.reload()
    see(visitor.title("Another?")).to_be_visible()
    see(visitor.title("Count")).to_have_count(0)


def test_two_tabs_lose_nothing(visitor: Visitor, engine: PacedEngine) -> None:
    two_conversations(visitor, engine)
    other = Visitor(visitor.context, visitor.url).open()
    other.title("What is an oak?").click()
    engine.script = "It has acorns."
    other.ask("Tell more")
    engine.script = "It sings."
    visitor.ask("What does it do?")
    visitor.page.reload()
    everything = set().union(*contents(visitor))
    assert {"It has acorns.", "It sings.", "It is a tree.", "It is a bird."} <= everything
    assert other.unexpected() == []


def test_enter_ends_a_composition_and_sends_nothing(visitor: Visitor, engine: PacedEngine) -> None:
    visitor.composer.focus()
    session = visitor.context.new_cdp_session(visitor.page)
    composed = {"text": "你好", "selectionStart": 2, "selectionEnd": 2}
    session.send("Input.imeSetComposition", composed)
    visitor.composer.dispatch_event(
        "keydown", {"key": "Enter", "isComposing": True, "keyCode": 229, "bubbles": True}
    )
    see(visitor.messages).to_have_count(0)
    session.send("Input.insertText", {"text": "你好"})
    see(visitor.composer).to_have_value("你好")
    engine.script = "Yes."
    visitor.composer.press("Enter")
    see(visitor.written).to_have_text("Yes.")


def line(visitor: Visitor, number: int) -> Locator:
    """A paragraph of the last answer, formatted by the server."""
    return visitor.answer.locator("p").filter(has_text=re.compile(rf"^Line {number}\.$"))


def test_reading_further_up_is_not_disturbed(visitor: Visitor, engine: PacedEngine) -> None:
    engine.script = "\n\n".join(f"Line {number}." for number in range(60))
    visitor.ask("Write")
    see(line(visitor, 59)).to_be_in_viewport()
    engine.pace(len(engine.script) - 30)
    visitor.send("Again")
    see(visitor.answers).to_have_count(2)
    see(line(visitor, 55)).to_be_in_viewport()  # it follows what is written
    visitor.answers.first.hover()
    visitor.page.mouse.wheel(0, -1200)
    see(line(visitor, 55)).not_to_be_in_viewport()
    before = line(visitor, 20).bounding_box()
    engine.run_on()
    see(line(visitor, 59)).to_have_count(1)
    visitor.finished()
    assert line(visitor, 20).bounding_box() == before


def test_an_address_of_nothing(visit: Callable[..., Visitor], engine: PacedEngine) -> None:
    visitor = visit(hash="#chat/nothing-of-that-name")
    engine.script = "Yes."
    visitor.ask("There?")
    see(visitor.written).to_have_text("Yes.")
    visitor.open("#%3Cimg%20src=x%20onerror=window.ran=1%3E")
    assert not visitor.scripts_ran()


def test_a_name_of_a_model_is_text(
    visit: Callable[..., Visitor], live: Callable[..., LiveServer], engine: PacedEngine
) -> None:
    name = '<img src=x onerror="window.ran=1">'
    server = live(engine, ServiceConfig(names=(name,)), page=ChatPage())
    visitor = visit(server.url)
    engine.script = "Yes."
    visitor.ask("Who?")
    see(visitor.answer).to_contain_text(name)
    visitor.open_settings()
    visitor.close_settings()
    visitor.open("#compare")
    see(visitor.page.get_by_role("combobox", name="Left model")).to_contain_text(name)
    assert not visitor.scripts_ran()
    assert visitor.page.locator("body img").count() == 0


def test_hundreds_of_conversations(visitor: Visitor) -> None:
    many = [a_conversation(f"Question {n}", "Yes.", id=f"c{n}") for n in range(300)]
    visitor.take_in(a_file(*many))
    see(visitor.title("Question 299")).to_have_count(1)
    visitor.sidebar.get_by_role("searchbox").fill("Question 123")
    see(visitor.sidebar.get_by_role("listitem")).to_have_count(1)
    visitor.title("Question 123").click()
    see(visitor.written).to_have_text("Yes.")
