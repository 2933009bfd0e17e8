"""A conversation at the page: asked, streamed, stopped, edited, branched, rendered."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from page_driver import PacedEngine, Visitor, see

if TYPE_CHECKING:
    from playwright.sync_api import Locator  # pyright: ignore[reportMissingImports]

pytestmark = pytest.mark.browser

CODE = 'def add(a, b):\n    return a + b  # "sum"\n'
ANSWER = f"""# Title

Some **bold** text and `inline`.

```python
{CODE}```

| left | right |
|------|-------|
| one  | two   |

The area is $x^2$.

1. first
2. second

Last words."""
RIGHT_TO_LEFT = "שלום עולם"


def begins(block: Locator) -> str:
    """The side of its box at which a short text stands."""
    return block.evaluate("""block => {
        const range = document.createRange();
        range.selectNodeContents(block);
        const text = range.getBoundingClientRect(), box = block.getBoundingClientRect();
        return text.left - box.left < box.right - text.right ? 'left' : 'right';
    }""")


def test_an_answer_streams_in(visitor: Visitor, engine: PacedEngine) -> None:
    engine.script = "One two three."
    engine.pace(len("One two"))
    engine.step_s = 0.01  # a time from which a rate follows
    visitor.send("Count")
    see(visitor.questions).to_have_count(1)
    see(visitor.questions.locator(".content")).to_have_text("Count")
    see(visitor.composer).to_have_value("")
    see(visitor.written).to_have_text("One two")
    see(visitor.button("Stop")).to_be_visible()
    engine.run_on()
    visitor.finished()
    see(visitor.written).to_have_text("One two three.")
    see(visitor.button("Stop")).to_be_hidden()
    figures = visitor.answer.locator(".figures")
    see(figures).to_contain_text("15 tokens")  # one a byte, and the end
    see(figures).to_contain_text(re.compile(r"[\d.,]+ tokens/s"))
    see(figures).to_contain_text(re.compile(r"first token [\d.]+ s"))
    see(visitor.page.get_by_role("status").filter(has_text="Answer complete")).to_have_count(1)


@pytest.mark.parametrize("by", ["button", "key"])
def test_stop_keeps_what_came(visitor: Visitor, engine: PacedEngine, by: str) -> None:
    engine.script = "One two three."
    engine.pace(len("One two"))
    visitor.send("Count")
    see(visitor.written).to_have_text("One two")
    if by == "button":
        visitor.button("Stop").click()
    else:
        visitor.composer.press("Escape")
    see(visitor.answer).to_contain_text("stopped")
    see(visitor.button("Send")).to_be_visible()
    engine.run_on()  # it ends the request now
    visitor.page.reload()
    see(visitor.written).to_have_text("One two")
    engine.script = "Four."
    visitor.ask("Go on")
    see(visitor.written).to_have_text("Four.")
    told = engine.tokenizer.rendered[-1]["messages"]
    assert [m["content"] for m in told] == ["Count", "One two", "Go on"]


def test_an_answer_that_was_stopped_goes_on(visitor: Visitor, engine: PacedEngine) -> None:
    engine.script = "One **two** three."
    engine.pace(len("One **two**"))
    visitor.send("Count")
    see(visitor.written.locator("strong")).to_have_text("two")
    visitor.button("Stop").click()
    engine.run_on()
    engine.script = " three."
    visitor.button("Continue", visitor.answer).click()
    see(visitor.written).to_have_text("One two three.")
    visitor.finished()
    told = engine.tokenizer.rendered[-1]["messages"]
    assert [m["content"] for m in told] == ["Count", "One **two**"]
    visitor.page.reload()
    see(visitor.written).to_have_text("One two three.")
    visitor.button("Previous version", visitor.answer).click()
    see(visitor.written).to_have_text("One two")


def test_enter_sends_and_shift_enter_breaks_the_line(visitor: Visitor, engine: PacedEngine) -> None:
    engine.script = "Yes."
    visitor.composer.press_sequentially("a")
    visitor.composer.press("Shift+Enter")
    visitor.composer.press_sequentially("b")
    see(visitor.composer).to_have_value("a\nb")
    visitor.composer.press("Enter")
    visitor.finished()
    assert engine.tokenizer.rendered[-1]["messages"][-1]["content"] == "a\nb"


def test_an_empty_message_is_not_sent(visitor: Visitor, engine: PacedEngine) -> None:
    visitor.send("  \n ")
    engine.script = "Yes."
    visitor.ask("now")
    see(visitor.questions).to_have_count(1)


def test_an_edit_makes_a_branch(visitor: Visitor, engine: PacedEngine) -> None:
    engine.script = "First answer."
    visitor.ask("First question")
    visitor.ask("More")
    question = visitor.questions.first
    visitor.button("Edit", question).click()
    box = visitor.page.get_by_role("textbox", name="Edit message")
    see(box).to_have_value("First question")
    box.fill("Thrown away")
    visitor.button("Cancel", question).click()
    see(question.locator(".content")).to_have_text("First question")
    visitor.button("Edit", question).click()
    box.fill("Second question")
    engine.script = "Second answer."
    visitor.button("Save and send", question).click()
    see(visitor.messages).to_have_count(2)
    visitor.finished()
    see(visitor.written).to_have_text("Second answer.")
    see(question).to_contain_text("2 / 2")
    assert len(engine.tokenizer.rendered[-1]["messages"]) == 1
    visitor.button("Previous version", question).click()
    see(visitor.messages).to_have_count(4)
    see(question.locator(".content")).to_have_text("First question")
    see(question).to_contain_text("1 / 2")
    visitor.button("Next version", question).click()
    see(visitor.messages).to_have_count(2)
    see(visitor.written).to_have_text("Second answer.")


def test_regenerate_keeps_the_version_before(visitor: Visitor, engine: PacedEngine) -> None:
    engine.script = "Heads."
    visitor.ask("Toss")
    engine.script = "Tails."
    visitor.button("Regenerate", visitor.answer).click()
    see(visitor.written).to_have_text("Tails.")
    visitor.finished()
    see(visitor.answer).to_contain_text("2 / 2")
    assert [m["content"] for m in engine.tokenizer.rendered[-1]["messages"]] == ["Toss"]
    visitor.button("Previous version", visitor.answer).click()
    see(visitor.written).to_have_text("Heads.")


def test_a_message_is_deleted(visitor: Visitor, engine: PacedEngine) -> None:
    engine.script = "Yes."
    visitor.ask("One")
    visitor.ask("Two")
    visitor.delete(visitor.questions.last)
    see(visitor.messages).to_have_count(2)
    see(visitor.questions.locator(".content")).to_have_text("One")


def test_markdown_is_shown_as_such(visit: Callable[..., Visitor], engine: PacedEngine) -> None:
    visitor = visit(permissions=["clipboard-read", "clipboard-write"])
    engine.script = ANSWER
    visitor.ask("Show me")
    written = visitor.written
    see(written.get_by_role("heading", name="Title")).to_be_visible()
    see(written.locator("strong")).to_have_text("bold")
    see(written.get_by_role("cell", name="two")).to_be_visible()
    see(written.get_by_role("columnheader")).to_have_count(2)
    see(written.locator("math")).to_have_count(1)
    see(written.locator("math msup")).to_have_count(1)
    see(written.locator("ol > li")).to_have_count(2)
    code = written.locator("pre.code")
    see(code.locator("code")).to_have_text(CODE.strip())
    colours = code.locator("code").evaluate(
        "code => [...new Set([...code.querySelectorAll('*')].map(e => getComputedStyle(e).color))]"
    )
    assert len(colours) > 2
    code.hover()
    written.get_by_role("button", name=re.compile("^Copy")).click()
    copied: Any = "() => navigator.clipboard.readText()"
    visitor.page.wait_for_function(f"async () => (await ({copied})()) === {CODE!r}.trim()")
    visitor.button("Copy", visitor.answer).last.click()
    visitor.page.wait_for_function(f"async () => (await ({copied})()).startsWith('# Title')")
    assert visitor.page.evaluate(copied) == ANSWER


def test_what_streamed_and_what_was_loaded_look_the_same(
    visitor: Visitor, engine: PacedEngine
) -> None:
    engine.script = ANSWER
    visitor.ask("Show me")
    see(visitor.written.locator("ol > li")).to_have_count(2)
    streamed = visitor.written.inner_text()
    visitor.page.reload()
    see(visitor.written.locator("ol > li")).to_have_count(2)
    assert visitor.written.inner_text() == streamed


def test_reasoning_is_folded_away(visitor: Visitor, engine: PacedEngine) -> None:
    engine.tokenizer.template = "{{ tools }}<think></think>"
    engine.script = "<think>Let me see.</think>Because."
    visitor.ask("Why?")
    see(visitor.written).to_have_text("Because.")
    details = visitor.answer.locator("details").filter(has_text="Reasoning")
    see(details).not_to_have_attribute("open", "")
    details.locator("summary").click()
    see(details.get_by_text("Let me see.")).to_be_visible()


def test_text_from_right_to_left(visitor: Visitor, engine: PacedEngine) -> None:
    engine.script = f"{RIGHT_TO_LEFT}\n\nLatin again."
    visitor.ask(RIGHT_TO_LEFT)
    see(visitor.written.locator("p")).to_have_count(2)
    assert begins(visitor.written.locator("p").nth(0)) == "right"
    assert begins(visitor.written.locator("p").nth(1)) == "left"
    assert begins(visitor.questions.get_by_text(RIGHT_TO_LEFT).last) == "right"


def test_tools_are_shown_and_answered_by_hand(visitor: Visitor, engine: PacedEngine) -> None:
    engine.tokenizer.template = "{{ tools }}<tool_call>"
    engine.script = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
    schema = '{"type": "object", "properties": {"city": {"type": "string"}}}'
    function = f'{{"name": "weather", "parameters": {schema}}}'
    visitor.set(Tools=f'[{{"type": "function", "function": {function}}}]')
    visitor.send("How is the weather?")
    see(visitor.answer).to_contain_text("weather")
    see(visitor.answer).to_contain_text("Köln")
    send = visitor.button("Send results", visitor.answer)
    see(send).to_be_visible()
    assert engine.tokenizer.rendered[-1]["tools"][0]["function"]["name"] == "weather"
    visitor.answer.get_by_role("textbox").fill("It rains.")
    engine.script = "Take an umbrella."
    send.click()
    see(visitor.answers).to_have_count(2)
    see(visitor.written).to_have_text("Take an umbrella.")
    see(visitor.page.locator("li[data-role=tool]")).to_contain_text("It rains.")
    asked, called, told = engine.tokenizer.rendered[-1]["messages"]
    assert (asked["role"], called["role"], told["role"]) == ("user", "assistant", "tool")
    assert told["content"] == "It rains."
    (call,) = called["tool_calls"]
    assert call["function"]["name"] == "weather" and told["tool_call_id"] == call["id"]


def test_probabilities_of_tokens_are_shown(visitor: Visitor, engine: PacedEngine) -> None:
    engine.script = "One two."
    visitor.open_settings().get_by_role("checkbox", name="Token probabilities").check()
    visitor.close_settings()
    visitor.ask("Count")
    assert engine.asked[-1].logprobs == 5
    visitor.button("Tokens", visitor.answer).click()
    tokens = visitor.answer.locator("[tabindex]").filter(has_text=re.compile("^O$"))
    tokens.first.hover()
    tooltip = visitor.page.get_by_role("tooltip")
    see(tooltip).to_contain_text(re.compile("60([.]0+)? ?%"))
    see(tooltip).to_contain_text("N")  # an alternative: its lowest bit differs
    see(tooltip).to_contain_text(re.compile("20([.]0+)? ?%"))
    tokens.first.focus()
    see(tooltip).to_be_visible()
