"""The page's settings: what is asked of the server, what it looks like, in which language."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from page_driver import PacedEngine, Visitor, see
from page_texts import texts_of

from halfbyte.engine.grammar.base import GrammarSpec

if TYPE_CHECKING:
    from playwright.sync_api import Locator  # pyright: ignore[reportMissingImports]

pytestmark = pytest.mark.browser

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def test_sampling_reaches_the_engine(visitor: Visitor, engine: PacedEngine) -> None:
    engine.script = "Yes."
    visitor.ask("Plain")
    usual = engine.asked[-1]
    dialog = visitor.open_settings()
    for name, value in (("temperature", "0.25"), ("top_p", "0.5"), ("seed", "17")):
        dialog.get_by_label(name, exact=True).fill(value)
    dialog.get_by_label("System prompt").fill("Be brief.")
    visitor.close_settings()
    visitor.ask("Set")
    asked = engine.asked[-1]
    assert (asked.temperature, asked.top_p, asked.seed) == (0.25, 0.5, 17)
    system = engine.tokenizer.rendered[-1]["messages"][0]
    assert system == {"role": "system", "content": "Be brief."}
    visitor.page.reload()
    see(visitor.answers).to_have_count(2)
    see(visitor.open_settings().get_by_label("temperature", exact=True)).to_have_value("0.25")
    visitor.button("Reset", visitor.settings).click()
    see(visitor.settings.get_by_label("temperature", exact=True)).to_have_value("")
    visitor.close_settings()
    visitor.ask("Reset")
    asked = engine.asked[-1]
    assert (asked.temperature, asked.top_p) == (usual.temperature, usual.top_p)


def test_a_field_that_is_not_usual(visitor: Visitor, engine: PacedEngine) -> None:
    dialog = visitor.open_settings()
    dialog.get_by_text("More", exact=True).click()
    field = dialog.get_by_label("ignore_eos", exact=True)
    field.scroll_into_view_if_needed()
    see(field).to_be_visible()


@pytest.mark.parametrize(
    ("name", "value", "range"),
    [
        ("temperature", "101", "0 to 100"),
        ("top_p", "-0.5", "0 to 1"),
        ("top_k", "x", "whole number"),
    ],
)
def test_a_value_out_of_range_is_refused(
    visitor: Visitor, engine: PacedEngine, name: str, value: str, range: str
) -> None:
    engine.script = "Yes."
    visitor.ask("Plain")
    field = visitor.open_settings().get_by_label(name, exact=True)
    field.fill(value)
    field.press("Tab")
    see(field).to_have_attribute("aria-invalid", "true")
    told = visitor.settings.get_by_text(re.compile(f"{name} is {re.escape(value)}"))
    see(told).to_contain_text(range)
    field.press("Escape")
    visitor.ask("Sent all the same?")
    plain, asked = engine.asked
    assert getattr(asked, name) == getattr(plain, name)


def test_a_schema_is_asked_for(visitor: Visitor, engine: PacedEngine) -> None:
    engine.script = '{"city": "Köln"}'
    visitor.set(JSON=json.dumps(SCHEMA))
    visitor.ask("Where?")
    assert engine.asked[-1].grammar == GrammarSpec.json_schema(SCHEMA)
    visitor.set(JSON="")
    visitor.ask("Where?")
    assert engine.asked[-1].grammar is None


@pytest.mark.parametrize("box", ["JSON schema", "Tools"])
def test_a_box_that_is_no_json_is_told(visitor: Visitor, engine: PacedEngine, box: str) -> None:
    visitor.open_settings().get_by_role("textbox", name=box).fill('{"type": ')
    visitor.close_settings()
    visitor.send("Where?")
    see(visitor.page.get_by_role("alert").filter(has_text=box)).to_be_visible()
    see(visitor.composer).to_have_value("Where?")
    assert engine.asked == []


@pytest.mark.parametrize(
    ("locale", "code"), [("de-DE", "de"), ("zh-CN", "zh"), ("es-ES", "es"), ("fr-FR", "fr")]
)
def test_the_page_speaks_the_browsers_language(
    visit: Callable[..., Visitor], locale: str, code: str
) -> None:
    visitor = visit(locale=locale)
    see(visitor.page.locator("html")).to_have_attribute("lang", re.compile(f"^{code}"))
    for english in ("New chat", "Settings", "Send", "Export"):
        see(named(visitor, english, code)).to_be_visible()
        see(visitor.button(english)).to_have_count(0)


def named(visitor: Visitor, english: str, code: str) -> Locator:
    """A button by its English name, in another language."""
    other = texts_of(code)
    names = [other[k]["other"] for k, v in texts_of("en").items() if v["other"] == english]
    pattern = re.compile("|".join(f"^{re.escape(name)}$" for name in names))
    return visitor.page.get_by_role("button", name=pattern).first


def test_an_unknown_language_gets_english(visit: Callable[..., Visitor]) -> None:
    visitor = visit(locale="eo")
    see(visitor.button("New chat")).to_be_visible()
    see(visitor.page.locator("html")).to_have_attribute("lang", re.compile("^en"))


def test_the_language_is_chosen(visitor: Visitor) -> None:
    visitor.open_settings().get_by_label("Language").select_option("de")
    see(visitor.page.locator("html")).to_have_attribute("lang", re.compile("^de"))
    visitor.page.reload()
    see(named(visitor, "New chat", "de")).to_be_visible()


def colours(visitor: Visitor) -> list[str]:
    return visitor.page.evaluate(
        "() => [getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.body).color]"
    )


def test_both_themes(visit: Callable[..., Visitor]) -> None:
    visitor = visit(color_scheme="light")
    light = colours(visitor)
    visitor.page.emulate_media(color_scheme="dark")
    dark = colours(visitor)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    theme = visitor.open_settings().get_by_label("Theme")
    theme.select_option(label="Light")
    assert colours(visitor) == light
    visitor.page.reload()
    assert colours(visitor) == light
    visitor.open_settings().get_by_label("Theme").select_option(label="System")
    assert colours(visitor) == dark


def test_the_live_panel_shows_what_metrics_say(visitor: Visitor, engine: PacedEngine) -> None:
    panel = visitor.page.get_by_role("region", name="Server")
    see(panel).to_contain_text(re.compile("running", re.I))
    engine.script = "One two three."
    engine.pace(3)
    visitor.send("Count")
    see(visitor.written).to_have_text("One")
    see(panel).to_contain_text(re.compile(r"1\s*running|running\s*:?\s*1", re.I))
    see(panel).to_contain_text(
        re.compile(r"1([.]0)?\s?%")
    )  # the fake's cache: as many of 100 as run
    engine.run_on()
    see(panel).to_contain_text(re.compile(r"0\s*running|running\s*:?\s*0", re.I))
