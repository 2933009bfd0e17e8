"""GBNF: its own reader, and the texts of what it becomes."""

from __future__ import annotations

import json
import random
import re

import pytest
from computing_time import computes_within
from grammar_cases import accepts, compiler, drawn_text, start

from halfbyte.engine.grammar.base import GrammarSpec
from halfbyte.engine.grammar.gbnf import (
    Chars,
    Either,
    Expression,
    Repeat,
    Row,
    RuleRef,
    inverted,
    joined,
    parse_gbnf,
)
from halfbyte.engine.grammar.gbnf_lark import gbnf_grammar
from halfbyte.errors import RequestError

JSON = r"""
# a JSON object
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
    string ":" ws value
    ("," ws string ":" ws value)*   # more of them
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""


def readings(rules: dict[str, Expression], node: Expression, text: str, at: int) -> set[int]:
    """Where a reading of ``node`` from ``at`` on may end: the meaning, by trying everything."""
    match node:
        case Chars(ranges):
            fits = at < len(text) and any(a <= ord(text[at]) <= b for a, b in ranges)
            return {at + 1} if fits else set()
        case RuleRef(name):
            return readings(rules, rules[name], text, at)
        case Either(items):
            return {end for item in items for end in readings(rules, item, text, at)}
        case Row(items):
            ends = {at}
            for item in items:
                ends = {after for end in ends for after in readings(rules, item, text, end)}
            return ends
        case Repeat(item, least, most):
            ends, found = {at}, {at} if least == 0 else set()
            for count in range(1, len(text) + least + 2 if most is None else most + 1):
                ends = {after for end in ends for after in readings(rules, item, text, end)}
                found |= ends if count >= least else set()
            return found


def random_expression(depth: int, names: list[str]) -> str:
    """What may name only rules of ``names``, and ``root`` in brackets: no left recursion."""
    if depth == 0 or random.random() < 0.25:
        return random.choice(['"a"', '"ab"', '"b"', "[ab]", "[^b]", '"ba"', *names])
    inner = [random_expression(depth - 1, names) for _ in range(random.randrange(1, 4))]
    match random.randrange(4):
        case 0:
            return " ".join(inner)
        case 1:
            return f"({' | '.join(inner)})"
        case 2:
            return f"({' '.join(inner)})" + random.choice(["*", "+", "?", "{2}", "{0,2}", "{1,}"])
    return f'"(" {random.choice([*names, "root"])} ")"'


def random_gbnf() -> str:
    lines = [f"x ::= {random_expression(2, [])}", f"y ::= {random_expression(2, ['x'])}"]
    return "\n".join([*lines, f'root ::= {random_expression(3, ["x", "y"])} | "("'])


def test_converted_grammars_have_the_same_texts() -> None:
    matched = 0
    for _ in range(30):
        source = random_gbnf()
        rules, spec = parse_gbnf(source, "grammar"), GrammarSpec.gbnf(source)
        texts = {"".join(random.choices("aabbc()", k=random.randrange(6))) for _ in range(12)}
        text = drawn_text(start(spec), most=25)
        if text is not None and len(text) < 12:
            texts.add(text)
            assert accepts(spec, text), source
        for other in texts:
            within = len(other) in readings(rules, rules["root"], other, 0)
            assert accepts(spec, other) == within, (source, other)
            matched += within
    assert matched > 10


def test_a_lexeme_leaves_what_belongs_to_the_next_one() -> None:
    # The longest match of x would take the last "b", and the text could never end.
    spec = GrammarSpec.gbnf('root ::= x | "(" root ")"\nx ::= [ab]* "b" y\ny ::= "" | "b" root')
    for text in ("b", "ab", "(abb)", "((aab))", "bbb", "abb(b)"):
        assert accepts(spec, text)
    for text in ("a", "(a)", "(b", ""):
        assert not accepts(spec, text)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ('root ::= x "b" root | "d"\nx ::= "a" [ab]* "c"?', "aabd"),
        ('root ::= x y* "b" root | "d"\nx ::= "a" [ab]*\ny ::= "e"', "abd"),
        ('root ::= r "b" | "c"\nr ::= "(" root ")" x\nx ::= [ab]+', "(c)abb"),
        ('root ::= x z root | "d"\nx ::= "a" | "abc"\nz ::= "bd" | "e"', "abdd"),
        ('root ::= "a" "bc" root | "ab" "e" root | "ab" "cd" | "d"', "abcd"),
        # x is taken apart, and is a part of the lexeme y as well.
        ('root ::= x "b" root | "(" y ")"\nx ::= [ab]+\ny ::= "c" x "c"', "aab(cabac)"),
        ('root ::= x "b" root | "d"\nx ::= [ab]+\nunused ::= x', "aabd"),
    ],
)
def test_lexemes_that_may_clash_are_taken_apart(source: str, text: str) -> None:
    assert accepts(GrammarSpec.gbnf(source), text)


def test_json_is_cut_into_long_lexemes() -> None:
    lark = gbnf_grammar(JSON, "grammar")["lark_grammar"]
    assert len(re.findall(r"^(start|r\d+):", lark, re.MULTILINE)) == 4  # value, object, array
    spec = GrammarSpec.gbnf(JSON)
    for text in ("{}", '{"a":[1,2.5e3, true,null] }', '{"a\\n": {"b":\n  "é"}}'):
        assert accepts(spec, text)
    for text in ("[1]", '{"a"  :1}', '{"a":01}'):
        assert not accepts(spec, text)
    ended = [text for _ in range(8) if (text := drawn_text(start(spec), most=200)) is not None]
    assert all(isinstance(json.loads(text), dict) for text in ended)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r'root ::= "\x41\u00e9\U0001F680\"\\\n\t"', 'Aé🚀"\\\n\t'),
        (r"root ::= [\x41-\x43\]\-\\]{4}", "B]-\\"),
        ("root ::= [a-]{2}", "-a"),
        ("root ::= [^a\\n]", "é"),
        ("root ::= .{3}", "a\n🚀"),
        ('root ::= "a"{2,}', "aaaa"),
        ('root ::= a-b | "x"\na-b ::= "y" # z', "y"),
        ('root ::= ("a" |\n  "b"\n)\n\n\nx ::= "c"\n', "b"),
        ('root ::= "" "a"? ""', "a"),
        ('root ::= "a"{0} "b"', "b"),
        ('# first\n\nroot\t::=\n  "a"', "a"),
    ],
)
def test_every_form_of_the_language(source: str, text: str) -> None:
    spec = GrammarSpec.gbnf(source)
    assert accepts(spec, text) and not accepts(spec, text + "?!")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ('root ::= "a', "line 1, column 10: the text in quotes has no end"),
        ("root ::= [a", "line 1, column 10: the set has no end"),
        ('x ::= "a"\nroot :: "a"', "line 2, column 6: expected '::='"),
        ("root ::= b", "line 1, column 10: there is no rule 'b'"),
        ('x ::= "a"', "there is no rule 'root'"),
        ("root ::= [z-a]", "a range of characters runs backwards"),
        ("root ::= []", "the set has no characters"),
        ('root ::= ("a"', "line 1, column 10: the group has no end"),
        ('root ::= "a"\nroot ::= "b"', "line 2, column 1: the rule 'root' is there twice"),
        (r'root ::= "\q"', "line 1, column 11: the escape is unknown"),
        (r"root ::= [\uD800]", "the escape is unknown"),
        (r"root ::= [\U00110000]", "the escape is unknown"),
        ('root ::= "a"{3,2}', "numbers of repeats in order"),
        ('root ::= "a"{99999}', "numbers of repeats in order"),
        ('root ::= "a"{x}', "expected {m}"),
        ("root ::= <x>", "expected the end of the rule"),
        ('root ::= "a"**', "expected the end of the rule"),
        ("root ::= " + "(" * 100 + '"a"' + ")" * 100, "over 64 levels"),
        ("root ::= " + '"a" ' * 30_000, "over 20000 parts"),
    ],
)
def test_a_malformed_source_is_refused_with_the_place(source: str, problem: str) -> None:
    with pytest.raises(RequestError) as caught:
        compiler("byte-level").compile(GrammarSpec.gbnf(source), param="grammar")
    assert problem in caught.value.message and caught.value.param == "grammar"


def test_huge_grammars_are_refused_in_time() -> None:
    chain = "\n".join(f"a{i} ::= a{i + 1} a{i + 1}" for i in range(60)) + '\na60 ::= "x"'
    sets = "\n".join(f"a{i} ::= [{chr(97 + i % 20)}-z]* a{i + 1}" for i in range(900))
    for source in (
        f'root ::= a0 | "(" root ")"\n{chain}',
        f'root ::= a0 root | "b"\n{sets}\na900 ::= "x"',
    ):
        with computes_within(5), pytest.raises(RequestError):  # 0.6 s on one machine
            compiler("byte-level").compile(GrammarSpec.gbnf(source))


def test_sets_of_characters() -> None:
    window, surrogates = range(0xD7E0, 0xE020), range(0xD800, 0xE000)
    for _ in range(10):
        pairs = tuple((min(p), max(p)) for p in (random.choices(window, k=2) for _ in range(4)))
        members = {c for c in window if any(a <= c <= b for a, b in pairs)}
        assert members == {c for c in window if any(a <= c <= b for a, b in joined(pairs))}
        outside = {c for c in window if any(a <= c <= b for a, b in inverted(pairs))}
        assert outside == set(window) - members - set(surrogates)
    assert inverted(()) == ((0, 0xD7FF), (0xE000, 0x10FFFF))
