"""Regular expressions and choices against Python's own."""

from __future__ import annotations

import random
import re

import pytest
from grammar_cases import accepts, compiler, drawn_text, start

from halfbyte.engine.grammar.base import GrammarSpec
from halfbyte.errors import RequestError

NAMES = ["byte-level", "sentencepiece"]


def random_regex(depth: int = 3) -> str:
    if depth == 0 or random.random() < 0.3:
        return random.choice(
            ["a", "b", "é", "[a-c]", "[^ab]", "[0-9٣]", r"\.", "/", " ", "\n", '"']
        )
    match random.randrange(4):
        case 0:
            return "".join(random_regex(depth - 1) for _ in range(random.randrange(1, 4)))
        case 1:
            return f"({'|'.join(random_regex(depth - 1) for _ in range(random.randrange(1, 4)))})"
        case 2:
            return f"(?:{random_regex(depth - 1)})" + random.choice(["*", "+", "?", "{2}", "{0,2}"])
    return f"(?:{random_regex(depth - 1)})" + random.choice(["{1,3}", "{2,}", "??", "*?"])


def random_text() -> str:
    return "".join(random.choices('abcé1٣. /\n"', k=random.randrange(5)))


@pytest.mark.parametrize("name", NAMES)
def test_drawn_texts_match_and_others_do_not(name: str) -> None:
    for _ in range(12):
        pattern = random_regex()
        spec = GrammarSpec.regex(pattern) if pattern.strip() else GrammarSpec.regex("a")
        text = drawn_text(start(spec, name), name, most=60)
        if text is not None:
            assert re.fullmatch(spec.text, text), (spec.text, text)
            assert accepts(spec, text, name)
        for other in {random_text() for _ in range(4)}:
            matched = re.fullmatch(spec.text, other) is not None
            assert accepts(spec, other, name) == matched, (spec.text, other)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("b(a", "unclosed group, at character 2 of the pattern 'b(a'"),
        ("a(?=b)", "look-around"),
        (r"(a)\1", "backreferences"),
        (r"\bfoo", "lookarounds"),
        ("[z-a]", "invalid"),
        ("(" * 5000 + ")" * 5000, "nest"),
    ],
)
def test_a_bad_pattern_is_refused_with_the_place(pattern: str, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        compiler("byte-level").compile(GrammarSpec.regex(pattern), param="guided_regex")
    assert words in caught.value.message and caught.value.param == "guided_regex"
    assert len(caught.value.message) < 600


def test_classes_are_those_of_unicode_as_in_python() -> None:
    # Not drawn: the library may know digits of a later Unicode than Python does.
    for pattern, text in ((r"\d\d", "1٣"), (r"\w+", "éa_日"), (r"\s", "\u3000"), (r"\D", "é")):
        assert re.fullmatch(pattern, text) and accepts(GrammarSpec.regex(pattern), text)


@pytest.mark.parametrize("name", NAMES)
def test_one_of_the_choices_comes_out(name: str) -> None:
    pool = ["a", "ab", "abc", "b c", '"', "\\", "/x/", "é\n", "日本", "\x00", "a|b", "(", "🚀"]
    choices = random.sample(pool, 5)
    spec = GrammarSpec.choice(choices)
    for text in pool:
        assert accepts(spec, text, name) == (text in choices)
    found = {drawn_text(start(spec, name), name) for _ in range(40)}
    assert found <= set(choices) and len(found) > 1
