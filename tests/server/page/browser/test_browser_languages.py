"""The page's texts: every language has all of them, with the same places for values."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from server_support import ROOT

STATIC = ROOT / "server" / "page" / "static"
OTHERS = ("de", "zh", "es", "fr")
Languages = dict[str, dict[str, str]]


def places(text: str) -> Counter[str]:
    """What stands in braces, and how often."""
    return Counter(re.findall(r"\{\w+\}", text))


def test_there_are_the_promised_languages(languages: Languages) -> None:
    assert languages.keys() >= {"en", *OTHERS}
    assert len(languages["en"]) > 50


@pytest.mark.parametrize("code", OTHERS)
def test_a_language_has_every_text(languages: Languages, code: str) -> None:
    english, other = languages["en"], languages[code]
    assert sorted(english.keys() ^ other.keys()) == []
    wrong = [key for key in english if places(english[key]) != places(other[key])]
    assert wrong == []
    assert [key for key in other if not other[key].strip()] == []
    # Names and units may be the same in two languages; most texts are not.
    same = [key for key in english if english[key] == other[key]]
    assert len(same) < len(english) / 5, same


def test_every_text_that_the_page_asks_for_is_there(languages: Languages) -> None:
    asked = {
        (path.name, key)
        for path in STATIC.glob("*.js")
        for key in re.findall(r"""\bt\(\s*["'](\w+\.\w+)["']""", path.read_text("utf-8"))
    }
    assert len(asked) > 50
    assert sorted(item for item in asked if item[1] not in languages["en"]) == []
