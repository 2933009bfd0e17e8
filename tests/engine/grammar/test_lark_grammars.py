import json
import re

import pytest
from grammar_cases import accepts, compiler, drawn_text, start

from halfbyte.engine.grammar.base import GrammarSpec
from halfbyte.errors import RequestError


def test_a_recursive_grammar() -> None:
    spec = GrammarSpec.lark('start: "(" start ")" | NUMBER // the rest\nNUMBER: /[0-9]{1,3}/')
    for text in ("7", "((12))", "(123)"):
        assert accepts(spec, text)
    for text in ("(7", "1234", "()", ""):
        assert not accepts(spec, text)
    for _ in range(5):
        text = drawn_text(start(spec))
        assert text is None or re.fullmatch(r"\(*[0-9]{1,3}\)*", text)


def test_a_schema_within_is_checked_and_its_blanks_are_bounded() -> None:
    inner = '%json {"type": "array", "items": {"enum": ["}", "%json {"]}}'
    spec = GrammarSpec.lark(f'# %json {{"not": 1}}\nstart: "x=" v ";"\nv: {inner}\n')
    assert accepts(spec, 'x=["}", "%json {"];')
    assert not accepts(spec, 'x=["}",  "}"];')
    with pytest.raises(RequestError, match=r"guided: the schema in line 2: #/items/not is a key"):
        source = 'start: v\nv: %json {"items": {"not": {}}}'
        compiler("byte-level").compile(GrammarSpec.lark(source), param="guided")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('start: "a', "lexer error"),
        ("start: b", 'unknown name: "b"'),
        ("start: A\nA: B\nB: A", "circular"),
        ("start: a\na: a", "no text can follow"),
        ('start: %json {"a": 1, "a": 2}', "duplicate key"),
        ('start: %json {"a": }', "no JSON"),
        ('start: x\nx[temperature=0.5]: "a"', "'temperature' in line 2"),
        ('start: x\n x: "b"\n?x[lazy, stop="]"]: "a"', "'stop' in line 3"),
        ('start: x\nx[capture]: "a"', "'capture' in line 2"),
        ("start: " + "(" * 20_000 + '"a"' + ")" * 20_000, "too deeply nested"),
    ],
)
def test_a_bad_grammar_is_refused_with_the_place(source: str, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        compiler("byte-level").compile(GrammarSpec.lark(source))
    assert words in caught.value.message and caught.value.param == "grammar"


def test_attributes_that_choose_tokens_are_honoured() -> None:
    spec = GrammarSpec.lark('start: x "!"\nx[max_tokens=2]: /[a-c]*/')
    for _ in range(5):
        text = drawn_text(start(spec))
        assert text is not None and text.endswith("!")
    assert accepts(GrammarSpec.lark('start: x "c"\nx[lazy]: /[a-c]*b/'), "aabc")


def test_a_source_in_the_librarys_own_format_is_a_lark_source() -> None:
    own = json.dumps({"grammars": [{"json_schema": {"not": {}}}]})
    with pytest.raises(RequestError):
        compiler("byte-level").compile(GrammarSpec.lark(own))
