"""Conversations that the page keeps in the browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from page_driver import PacedEngine, Visitor, see

pytestmark = pytest.mark.browser

FORMAT = "halfbyte-conversations"


def a_conversation(question: str, answer: str, **more: Any) -> dict[str, Any]:
    """As the export file has it."""
    common: dict[str, Any] = {
        "reasoning": "",
        "calls": [],
        "call_id": None,
        "tokens": [],
        "stats": None,
        "finish": None,
        "error": None,
        "model": None,
        "created": 1_700_000_000_000,
    }
    nodes = {
        "a": {"id": "a", "parent": None, "role": "user", "content": question, **common},
        "b": {"id": "b", "parent": "a", "role": "assistant", "content": answer, **common},
    }
    settings = {
        "model": None,
        "system": "",
        "params": {},
        "schema": "",
        "tools": "",
        "probabilities": False,
    }
    return {
        "id": "c1",
        "title": question,
        "created": 1_700_000_000_000,
        "updated": 1_700_000_000_000,
        "settings": settings,
        "nodes": nodes,
        "leaf": "b",
        **more,
    }


def a_file(*conversations: dict[str, Any]) -> str:
    return json.dumps({"format": FORMAT, "version": 1, "conversations": conversations})


def two_conversations(visitor: Visitor, engine: PacedEngine) -> None:
    engine.script = "It is a tree."
    visitor.ask("What is an oak?")
    visitor.button("New chat", visitor.sidebar).click()
    see(visitor.messages).to_have_count(0)
    engine.script = "It is a bird."
    visitor.ask("What is a robin?")


def test_a_reload_keeps_everything(visitor: Visitor, engine: PacedEngine) -> None:
    two_conversations(visitor, engine)
    engine.script = "A small one."
    visitor.button("Regenerate", visitor.answer).click()
    see(visitor.written).to_have_text("A small one.")
    visitor.finished()
    visitor.page.reload()
    see(visitor.title("What is a robin?")).to_have_attribute("aria-current", "true")
    see(visitor.written).to_have_text("A small one.")
    see(visitor.answer).to_contain_text("2 / 2")
    visitor.title("What is an oak?").click()
    see(visitor.written).to_have_text("It is a tree.")
    see(visitor.title("What is an oak?")).to_have_attribute("aria-current", "true")
    see(visitor.title("What is a robin?")).not_to_have_attribute("aria-current", "true")


def test_conversations_are_searched(visitor: Visitor, engine: PacedEngine) -> None:
    two_conversations(visitor, engine)
    box = visitor.sidebar.get_by_role("searchbox", name="Search conversations")
    box.fill("BIRD")  # a word of an answer
    see(visitor.title("What is an oak?")).to_be_hidden()
    see(visitor.title("What is a robin?")).to_be_visible()
    box.fill("no such word")
    see(visitor.title("What is a robin?")).to_be_hidden()
    box.fill("")
    see(visitor.title("What is an oak?")).to_be_visible()


def test_a_conversation_is_renamed(visitor: Visitor, engine: PacedEngine) -> None:
    two_conversations(visitor, engine)
    visitor.row("What is an oak?").hover()
    visitor.button("Rename", visitor.row("What is an oak?")).click()
    see(visitor.sidebar.locator("input:focus")).to_have_value("What is an oak?")
    visitor.page.keyboard.press("Control+A")
    visitor.page.keyboard.type("Trees")
    visitor.page.keyboard.press("Enter")
    see(visitor.title("Trees")).to_be_visible()
    visitor.page.reload()
    see(visitor.title("Trees")).to_be_visible()
    see(visitor.title("What is an oak?")).to_have_count(0)


def test_a_conversation_is_deleted(visitor: Visitor, engine: PacedEngine) -> None:
    two_conversations(visitor, engine)
    visitor.delete(visitor.row("What is a robin?"))
    see(visitor.title("What is a robin?")).to_have_count(0)
    see(visitor.page.get_by_text("It is a bird.")).to_have_count(0)
    visitor.page.reload()
    see(visitor.title("What is an oak?")).to_be_visible()
    see(visitor.title("What is a robin?")).to_have_count(0)


def test_deleting_is_undone(visitor: Visitor, engine: PacedEngine) -> None:
    two_conversations(visitor, engine)
    before = json.loads(visitor.export())["conversations"]
    visitor.delete(visitor.row("What is a robin?"))
    visitor.button("Undo").click()
    visitor.title("What is a robin?").click()
    see(visitor.written).to_have_text("It is a bird.")
    visitor.delete(visitor.questions.last)
    see(visitor.messages).to_have_count(0)
    visitor.button("Undo").click()
    see(visitor.written).to_have_text("It is a bird.")
    visitor.page.reload()
    see(visitor.written).to_have_text("It is a bird.")
    after = json.loads(visitor.export())["conversations"]
    assert [c["nodes"] for c in after] == [c["nodes"] for c in before]


def test_an_export_is_imported_elsewhere(
    visit: Callable[..., Visitor], engine: PacedEngine
) -> None:
    first = visit()
    two_conversations(first, engine)
    text = first.export()
    told = json.loads(text)
    assert told["format"] == FORMAT and told["version"] == 1
    assert [c["title"] for c in told["conversations"]] != []
    assert "<p>" not in text  # HTML is never kept
    second = visit()
    second.take_in(text)
    second.title("What is an oak?").click()
    see(second.written).to_have_text("It is a tree.")
    see(second.questions.locator(".content")).to_have_text("What is an oak?")
    second.title("What is a robin?").click()
    see(second.written).to_have_text("It is a bird.")
    again = json.loads(second.export())["conversations"]
    by_title: Any = lambda c: c["title"]  # noqa: E731
    kept = ("title", "settings", "leaf")
    for old, new in zip(
        sorted(told["conversations"], key=by_title), sorted(again, key=by_title), strict=True
    ):
        assert {k: old[k] for k in kept} == {k: new[k] for k in kept}
        assert old["nodes"] == new["nodes"]


def test_an_import_that_is_there_already_loses_nothing(
    visitor: Visitor, engine: PacedEngine
) -> None:
    two_conversations(visitor, engine)
    text = visitor.export()
    engine.script = "It lays eggs."
    visitor.ask("And?")
    visitor.take_in(text)
    visitor.page.reload()
    exported = json.loads(visitor.export())["conversations"]
    contents = {n["content"] for c in exported for n in c["nodes"].values()}
    assert {"It lays eggs.", "It is a tree.", "It is a bird."} <= contents


GOOD = a_conversation("Good?", "Yes.")
DAMAGED = {
    "no JSON": '{"format": "halfbyte-conv',
    "another format": '{"format": "shopping-list", "version": 1, "conversations": []}',
    "a later version": json.dumps({"format": FORMAT, "version": 99, "conversations": [GOOD]}),
    "no list": json.dumps({"format": FORMAT, "version": 1, "conversations": {"a": 1}}),
    "no nodes": a_file(GOOD, {k: v for k, v in GOOD.items() if k != "nodes"}),
    "a circle": a_file(
        GOOD,
        {**GOOD, "id": "c2", "nodes": {k: {**v, "parent": "b"} for k, v in GOOD["nodes"].items()}},
    ),
    "a lost leaf": a_file(GOOD, {**GOOD, "id": "c2", "leaf": "zzz"}),
    "a lost parent": a_file(
        GOOD,
        {**GOOD, "id": "c2", "nodes": {k: {**v, "parent": "x"} for k, v in GOOD["nodes"].items()}},
    ),
    "content that is no text": a_file(
        GOOD,
        {**GOOD, "id": "c2", "nodes": {k: {**v, "content": 3} for k, v in GOOD["nodes"].items()}},
    ),
    "a role of its own": a_file(
        GOOD,
        {**GOOD, "id": "c2", "nodes": {k: {**v, "role": "x"} for k, v in GOOD["nodes"].items()}},
    ),
    "the name of a prototype": a_file(GOOD).replace('"nodes": {"a"', '"nodes": {"__proto__"'),
    "an empty file": "",
    "a list": "[]",
}


def test_a_damaged_file_is_named_and_changes_nothing(visitor: Visitor, engine: PacedEngine) -> None:
    two_conversations(visitor, engine)
    before = json.loads(visitor.export())["conversations"]
    for number, (what, text) in enumerate(DAMAGED.items()):
        visitor.take_in(text, f"damaged{number}.json")
        told = visitor.page.get_by_text(re.compile(rf"damaged{number}\.json"))
        see(told.first, what).to_be_visible()
    visitor.page.reload()
    see(visitor.title("What is an oak?")).to_be_visible()
    assert json.loads(visitor.export())["conversations"] == before
