"""The view that compares two models."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from page_driver import FAILED_LOAD, PacedEngine, Visitor, see
from server_support import LiveServer

pytestmark = pytest.mark.browser

Engines = dict[str, PacedEngine]


@pytest.fixture
def comparing(visit: Callable[..., Visitor], two_models: LiveServer) -> Visitor:
    """The view, with both models chosen."""
    visitor = visit(two_models.url, "#compare")
    visitor.page.get_by_role("combobox", name="Left model").select_option("left")
    visitor.page.get_by_role("combobox", name="Right model").select_option("right")
    return visitor


def compare(visitor: Visitor, prompt: str) -> None:
    visitor.page.get_by_role("textbox", name="Prompt").fill(prompt)
    visitor.button("Compare", visitor.page.get_by_role("main")).click()


def test_the_first_difference_is_told(comparing: Visitor, engines: Engines) -> None:
    engines["left"].script, engines["right"].script = "A big cat.", "A big bat."
    compare(comparing, "An animal?")
    page = comparing.page
    left = page.get_by_role("region", name="Left answer")
    right = page.get_by_role("region", name="Right answer")
    see(left).to_contain_text("A big cat.")
    see(right).to_contain_text("A big bat.")
    summary = page.get_by_role("status").filter(has_text=re.compile(r"\b6 tokens"))
    see(summary).to_be_visible()
    table = page.get_by_role("main").get_by_role("table").last
    see(table).to_contain_text("c")
    see(table).to_contain_text("b")
    for percent in (
        "60",
        "20",
    ):  # the other's token is the second likeliest: the lowest bit differs
        see(table).to_contain_text(re.compile(rf"{percent}([.]0+)?\s?%"))
    for asked in (engine.asked[-1] for engine in engines.values()):
        assert asked.temperature == 0 and asked.logprobs is not None
    seeds = {engine.asked[-1].seed for engine in engines.values()}
    assert len(seeds) == 1
    prompts = [engine.tokenizer.rendered[-1]["messages"] for engine in engines.values()]
    assert prompts[0] == prompts[1]


def test_answers_that_are_the_same(comparing: Visitor, engines: Engines) -> None:
    engines["left"].script = engines["right"].script = "A cat."
    compare(comparing, "An animal?")
    status = comparing.page.get_by_role("status").filter(has_text=re.compile("same|identical"))
    see(status.first).to_be_visible()
    see(comparing.page.get_by_text("then differ")).to_have_count(0)


def test_one_that_goes_on_differs_where_the_other_ends(
    comparing: Visitor, engines: Engines
) -> None:
    engines["left"].script, engines["right"].script = "A cat", "A cat and a dog."
    compare(comparing, "An animal?")
    see(
        comparing.page.get_by_role("status").filter(has_text=re.compile(r"\b5 tokens"))
    ).to_be_visible()


def test_stop_ends_both(comparing: Visitor, engines: Engines) -> None:
    for engine in engines.values():
        engine.script = "A big cat."
        engine.pace(5)
    compare(comparing, "An animal?")
    page = comparing.page
    for name in ("Left", "Right"):
        see(page.get_by_role("region", name=f"{name} answer")).to_contain_text("A big")
    comparing.button("Stop", page.get_by_role("main")).click()
    for engine in engines.values():
        engine.run_on()
    see(comparing.button("Compare", page.get_by_role("main"))).to_be_enabled()
    for name in ("Left", "Right"):
        see(page.get_by_role("region", name=f"{name} answer")).to_contain_text("stopped")


def test_one_that_fails_leaves_the_other(comparing: Visitor, engines: Engines) -> None:
    engines["left"].script = engines["right"].script = "A cat."
    comparing.expected += [FAILED_LOAD]
    engines["right"].failures.append(ValueError("a cosmic ray"))
    compare(comparing, "An animal?")
    page = comparing.page
    see(page.get_by_role("region", name="Left answer")).to_contain_text("A cat.")
    see(page.get_by_role("region", name="Right answer").get_by_role("alert")).to_be_visible()
