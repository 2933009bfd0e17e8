"""The page without a mouse, on a phone, and for those who hear it: keyboard, 390 px, axe-core."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from accessibility import axe_source, findings
from page_driver import PacedEngine, Visitor, see
from server_support import LiveServer
from test_browser_chat import ANSWER

if TYPE_CHECKING:
    from playwright.sync_api import Locator  # pyright: ignore[reportMissingImports]

pytestmark = pytest.mark.browser

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 800}
WIDE = f"""{"Rindfleischetikettierungsueberwachungsaufgabenuebertragungsgesetz" * 4}

{"`" + "long_name_" * 20 + "`"}

```
{"a line of code " * 30}
```

| {" | ".join(f"column {i}" for i in range(20))} |
|{"---|" * 20}
| {" | ".join(f"cell {i}" for i in range(20))} |

$${"+".join(f"x_{{{i}}}" for i in range(80))}$$

https://example.org/{"path/" * 40}

{ANSWER}"""
# Of the element that has the focus, or of the box around it.
FOCUS_SHOWS = """() => {
    const ring = node => {
        const style = getComputedStyle(node);
        return (style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1)
            || style.boxShadow !== 'none';
    };
    const node = document.activeElement;
    return ring(node) || ring(node.parentElement) || ring(node.parentElement.parentElement);
}"""


def tab_to(visitor: Visitor, target: Locator, key: str = "Tab") -> None:
    """Press a key until the target has the focus; what has it on the way must show that."""
    for _ in range(100):
        visitor.page.keyboard.press(key)
        where = visitor.page.evaluate("() => document.activeElement.outerHTML.slice(0, 200)")
        if where.startswith("<body"):
            continue  # past the end
        assert visitor.page.evaluate(FOCUS_SHOWS), where
        if target.evaluate("node => node === document.activeElement"):
            return
    pytest.fail(f"{key} does not lead to {target}")


def press(visitor: Visitor, target: Locator, key: str = "Tab") -> None:
    """Go to a button by keyboard and press it."""
    tab_to(visitor, target, key)
    visitor.page.keyboard.press("Enter")


def assert_fits(visitor: Visitor) -> None:
    """Nothing makes the page as a whole scroll sideways."""
    wide: str = """() => {
        const limit = document.documentElement.clientWidth;
        const scrolls = e => e && (['auto', 'scroll', 'hidden', 'clip'].includes(
            getComputedStyle(e).overflowX) || scrolls(e.parentElement));
        return [...document.querySelectorAll('main *, dialog[open] *, header *')]
            .filter(e => e.getBoundingClientRect().right > limit + 1 && !scrolls(e.parentElement))
            .map(e => e.outerHTML.slice(0, 120));
    }"""
    assert visitor.page.evaluate(
        "() => document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        " && document.body.scrollWidth <= document.documentElement.clientWidth"
    ), visitor.page.evaluate(wide)


def test_a_conversation_by_keyboard(visitor: Visitor, engine: PacedEngine) -> None:
    keyboard = visitor.page.keyboard
    engine.script = "First answer."
    visitor.page.evaluate("() => document.activeElement.blur()")
    skip = visitor.page.get_by_role("link", name="Skip to message")
    press(visitor, skip)
    see(visitor.composer).to_be_focused()
    keyboard.type("First question")
    keyboard.press("Enter")
    see(visitor.written).to_have_text("First answer.")
    visitor.finished()
    see(visitor.composer).to_be_focused()
    press(visitor, visitor.button("Edit", visitor.questions.first), "Shift+Tab")
    see(visitor.page.get_by_role("textbox", name="Edit message")).to_be_focused()
    keyboard.press("Control+A")
    keyboard.type("Second question")
    engine.script = "Second answer."
    press(visitor, visitor.button("Save and send"))
    see(visitor.written).to_have_text("Second answer.")
    visitor.finished()
    press(visitor, visitor.button("Previous version"), "Shift+Tab")
    see(visitor.written).to_have_text("First answer.")
    # The version switch is drawn anew, and the focus is still there.
    see(visitor.page.locator("li[data-role=user] :focus")).to_have_count(1)
    press(visitor, visitor.button("Regenerate", visitor.answer))
    see(visitor.answer).to_contain_text("2 / 2")
    visitor.finished()
    keyboard.press("Control+Shift+O")
    see(visitor.messages).to_have_count(0)
    see(visitor.composer).to_be_focused()
    keyboard.press("Control+k")
    see(visitor.sidebar.get_by_role("searchbox")).to_be_focused()
    press(visitor, visitor.title("First question"))
    see(visitor.answers).to_have_count(1)


def test_settings_by_keyboard(visitor: Visitor) -> None:
    opener = visitor.button("Settings")
    press(visitor, opener)
    see(visitor.settings).to_be_visible()
    tab_to(visitor, visitor.settings.get_by_label("System prompt"))
    visitor.page.keyboard.type("Be brief.")
    visitor.page.keyboard.press("Escape")
    see(visitor.settings).to_be_hidden()
    see(opener).to_be_focused()
    visitor.page.keyboard.press("Enter")
    see(visitor.settings.get_by_label("System prompt")).to_have_value("Be brief.")


def test_it_fits_a_phone(visit: Callable[..., Visitor], engine: PacedEngine) -> None:
    visitor = visit(viewport=PHONE, has_touch=True, is_mobile=True)
    assert_fits(visitor)
    see(visitor.sidebar).to_be_hidden()
    engine.script = WIDE
    visitor.ask(WIDE)
    see(visitor.written).to_contain_text("Last words.")
    assert_fits(visitor)
    visitor.button("Conversations").click()
    see(visitor.sidebar).to_be_visible()
    assert_fits(visitor)
    visitor.button("New chat", visitor.sidebar).click()
    see(visitor.messages).to_have_count(0)
    see(visitor.composer).to_be_in_viewport()
    visitor.open_settings()
    assert_fits(visitor)
    visitor.close_settings()
    visitor.open("#compare")
    see(visitor.page.get_by_role("textbox", name="Prompt")).to_be_visible()
    assert_fits(visitor)


@pytest.mark.parametrize("locale", ["de", "es", "fr", "zh"])
def test_other_languages_fit_a_phone(visit: Callable[..., Visitor], locale: str) -> None:
    visitor = visit(viewport=PHONE, is_mobile=True, locale=locale, hash="#compare")
    see(visitor.page.locator("main textarea:visible")).to_be_visible()
    assert_fits(visitor)
    visitor.open("#chat")
    assert_fits(visitor)
    visitor.page.locator("header button[aria-haspopup=dialog], header button").last.click()
    see(visitor.page.locator("dialog[open]")).to_be_visible()
    assert_fits(visitor)


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(
    visit: Callable[..., Visitor],
    two_models: LiveServer,
    engines: dict[str, PacedEngine],
    pytestconfig: pytest.Config,
    theme: str,
    size: dict[str, int],
) -> None:
    source = axe_source(pytestconfig)
    visitor = visit(two_models.url, color_scheme=theme, viewport=size, bypass_csp=True)
    assert findings(visitor, source) == []
    engines["left"].script = ANSWER
    visitor.open_settings().get_by_role("checkbox", name="Token probabilities").check()
    assert findings(visitor, source) == []
    visitor.close_settings()
    visitor.ask("Show me")
    assert findings(visitor, source) == []
    visitor.button("Tokens", visitor.answer).click()
    assert findings(visitor, source) == []
    if size == PHONE:
        visitor.button("Conversations").click()
        see(visitor.sidebar).to_be_visible()
        # What the sidebar covers is out of reach meanwhile, the main part with it.
        found = findings(visitor, source)
        assert [text for text in found if "landmark-one-main" not in text] == []
        visitor.page.keyboard.press("Escape")
        see(visitor.sidebar).to_be_hidden()
    engines["left"].script, engines["right"].script = "A big cat.", "A big bat."
    visitor.open("#compare")
    visitor.page.get_by_role("combobox", name="Right model").select_option("right")
    visitor.page.get_by_role("textbox", name="Prompt").fill("An animal?")
    visitor.button("Compare", visitor.page.get_by_role("main")).click()
    see(visitor.page.get_by_role("table").last).to_contain_text("%")
    assert findings(visitor, source) == []
