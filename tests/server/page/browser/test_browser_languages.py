"""The page's texts: every language has all of them, with the same places for values."""

from __future__ import annotations

import re

import pytest
from page_texts import LANGUAGES, STATIC, Texts, texts_of

# Plural forms of whole numbers, from the Unicode CLDR.
FORMS = {
    "en": {"one", "other"},
    "de": {"one", "other"},
    "es": {"one", "many", "other"},
    "fr": {"one", "many", "other"},
    "zh": {"other"},
}
OTHERS = sorted(FORMS.keys() - {"en"})


def places(text: str) -> list[str]:
    """What stands in braces."""
    return sorted(re.findall(r"\{\w+\}", text))


def by_number(texts: Texts) -> set[str]:
    """Names of what depends on a number."""
    return {key for key, forms in texts.items() if forms.keys() != {"other"}}


def test_there_are_the_promised_languages() -> None:
    assert set(LANGUAGES) == FORMS.keys()
    assert len(texts_of("en")) > 100


@pytest.mark.parametrize("code", FORMS)
def test_a_language_has_every_text(code: str) -> None:
    english, texts = texts_of("en"), texts_of(code)
    assert sorted(english.keys() ^ texts.keys()) == []
    for key, forms in texts.items():
        assert all(text.strip() for text in forms.values()), key
        assert places(forms["other"]) == places(english[key]["other"]), key
        # "the first token" needs no number.
        for text in forms.values():
            assert set(places(forms["other"])) - set(places(text)) <= {"{count}"}, key
            assert set(places(text)) <= set(places(forms["other"])), key


@pytest.mark.parametrize("code", FORMS)
def test_a_language_has_every_plural(code: str) -> None:
    texts = texts_of(code)
    for key in by_number(texts_of("en")):
        assert texts[key].keys() == FORMS[code], key
    assert by_number(texts) <= by_number(texts_of("en"))


@pytest.mark.parametrize("code", OTHERS)
def test_a_language_is_translated(code: str) -> None:
    english, texts = texts_of("en"), texts_of(code)
    # Names and units may be the same in two languages; most texts are not.
    same = [key for key in english if english[key]["other"] == texts[key]["other"]]
    assert len(same) < len(english) / 10, same


def test_every_text_that_the_page_asks_for_is_there() -> None:
    asked = {
        (path.name, key)
        for path in STATIC.glob("*.js")
        for key in re.findall(r"""\bt\(\s*["'](\w+\.\w+)["']""", path.read_text("utf-8"))
    }
    assert len(asked) > 50
    english = texts_of("en")
    assert sorted(item for item in asked if item[1] not in english) == []


def test_every_text_is_used() -> None:
    code = "".join(path.read_text("utf-8") for path in STATIC.glob("*.js"))
    code += (STATIC / "index.html").read_text("utf-8")
    unused = []
    for name in texts_of("en"):
        section, key = name.split(".")
        # By its whole name, or by its section and a key that is put together.
        whole = re.search(rf"""["'`]{section}\.{key}["'`]""", code)
        if not whole and not re.search(rf"`{section}\.[^`]*\$\{{", code):
            unused.append(name)
    assert unused == []
