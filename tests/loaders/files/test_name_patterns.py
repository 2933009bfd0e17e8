"""Patterns answer as ``re.match`` does, and no pattern can hold the loader up."""

from __future__ import annotations

import random
import re

import pytest
from computing_time import computes_within

from halfbyte.errors import CheckpointError, HalfbyteError, UnsupportedModelError
from halfbyte.loaders.files import name_patterns
from halfbyte.loaders.files.name_patterns import MAX_PATTERNS, NamePattern, Patterns

NAMES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.11.mlp.down_proj",
    "model.layers.3.mlp.experts.17.gate_proj",
    "lm_head",
    "",
]
PATTERNS = [
    ".*lm_head",
    r".*self_attn\..*",
    r"model\.layers\.(?:[0-9]|1[0-3])\.mlp\..*_proj$",
    r"^(?!.*self_attn).*_proj",
    r".*\.mlp\.experts\.[0-9]+\.(gate|up|down)_proj",
    r".*?(q|k|v)_proj\Z",
    r"model\.layers\.\d{2}\.",
    r"(?=model)\w+\b",
    r"[^.]+$",
    "",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_that_tools_write(pattern):
    compiled = NamePattern(pattern, "config")
    for name in NAMES:
        assert compiled.matches(name) == (re.match(pattern, name) is not None)


def _random_pattern(rng: random.Random, depth: int) -> str:
    kind = rng.random()
    if depth == 0 or kind < 0.35:
        return rng.choice(["a", "b", ".", r"\.", "[ab]", "[^a-]", r"\d", r"\w", r"\b", "^", "$"])
    inner = _random_pattern(rng, depth - 1)
    if kind < 0.55:
        return inner + _random_pattern(rng, depth - 1)
    if kind < 0.7:
        return f"(?:{inner}|{_random_pattern(rng, depth - 1)})"
    if kind < 0.85:
        return f"({inner})" + rng.choice(["*", "+", "?", "{2}", "{1,3}", "*?", "{0,2}"])
    return f"{rng.choice(['(?=', '(?!'])}{inner})"


@pytest.mark.parametrize("simulated", [True, False])
def test_random_patterns_against_re(simulated):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng, compared = random.Random(seed), 0
    for _ in range(1000):
        pattern = _random_pattern(rng, 4)
        try:
            expected = re.compile(pattern)
        except re.error:
            continue
        compiled = NamePattern(pattern, "config")
        anywhere = NamePattern(pattern, "config", anchored=False)
        if simulated:  # what names too long for backtracking get
            compiled._find = anywhere._find = None
        for _ in range(3):
            name = "".join(rng.choice("ab.1") for _ in range(rng.randrange(9)))
            assert compiled.matches(name) == (expected.match(name) is not None), (pattern, name)
            assert anywhere.matches(name) == (expected.search(name) is not None), (pattern, name)
            compared += 1
    assert compared > 2000


@pytest.mark.parametrize(
    "pattern",
    ["(a*)*b", "((((a*)*)*)*)*b", "(a|a)*b", "(a?){30}a{30}b", ".*.*.*.*.*.*.*.*x", "(?:.*a){40}b"],
)
def test_patterns_on_which_backtracking_never_ends(pattern):
    with computes_within(0.5):
        assert not NamePattern(pattern, "config").matches("a" * 60)


@pytest.mark.parametrize(
    ("pattern", "error", "part"),
    [
        ("(", CheckpointError, "is not a regular expression"),
        ("a{99999999999}", CheckpointError, "is not a regular expression"),
        ("a" * 1001, CheckpointError, "has 1001 characters; expected at most 1000"),
        ("(" * 30 + "a" + ")" * 30, CheckpointError, "nests groups over 20 levels"),
        (r"(a)\1", UnsupportedModelError, "uses groupref"),
        ("(?:a*)*(?<=a)b", UnsupportedModelError, "uses assert"),
        ("(?i)a", UnsupportedModelError, "sets flags"),
        ("(?i:a)", UnsupportedModelError, "sets flags"),
    ],
)
def test_patterns_that_are_refused(pattern, error: type[HalfbyteError], part):
    with pytest.raises(error) as caught:
        NamePattern(pattern, "config.json: ignore")
    assert part in str(caught.value) and "config.json: ignore: pattern" in str(caught.value)


def test_a_pattern_with_too_many_steps_is_refused():
    pattern = NamePattern("(?:(?!(?:(?!.*b).)*b).)*c", "config.json: ignore")
    with pytest.raises(CheckpointError, match="takes over 5000 steps"):
        pattern.matches("a" * 60)


MODULES = [
    f"model.layers.{i}.{part}"
    for i in range(0, 32, 3)
    for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj", "mlp.gate_proj")
] + ["lm_head"]

USUAL = [
    r".*\.18\..*gate.*",
    r".*down_proj",
    r"model\.layers\.(?:3|6|1[0-9])\.mlp\.(gate|up|down)_proj",
    r"^(?!.*self_attn).*layers.*proj$",
    r"lm_head",
    r".*layers\.[0-9]+\..*(q|k|v)_proj$",
    r"(model\.)?layers\.\d{1,3}\.mlp",
    r"model(\.\w)+",
    r"[^.]*$",
    r".*(?<!gate)_proj$",
]


@pytest.mark.parametrize("anchored", [True, False])
def test_the_answers_are_those_of_re(anchored):
    patterns = Patterns("here", USUAL, anchored)
    method = re.match if anchored else re.search
    found = set()
    for name in MODULES:
        want = next((i for i, text in enumerate(USUAL) if method(text, name)), None)
        assert patterns.first(name) == want
        found.add(want)
    assert len(found) > 2


EVIL = [
    r"(a+)+$",
    r"(.*)*x",
    r"(a|a)*b",
    r"(\w+\.?)+!",
    r"(.*.*)+x$",
    r".*a.*b.*c.*d.*e.*f.*!",
    r"(?:a?){60}a{60}!",
    "(a|b|ab)" * 60 + "!",
    r"((a{0,50}){0,50}){0,50}!",
    r"(?:(?:a*)|b)+!",
    "a?" * 60 + "a" * 60,
]


@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("pattern", EVIL)
def test_slow_patterns_are_answered_or_refused_at_once(pattern, anchored):
    with computes_within(0.5):
        try:
            assert not NamePattern(pattern, "here", anchored).matches("a" * 50 + "?")
        except CheckpointError as error:
            assert "takes over 5000 steps" in str(error)


def test_looking_behind_is_for_names_that_backtracking_may_see():
    pattern = NamePattern("(?<=a)b", "here", anchored=False)
    assert pattern.matches("ab") and not pattern.matches("bb")
    with pytest.raises(UnsupportedModelError, match="looks behind"):
        pattern.matches("a" * 81)


def test_too_many_patterns_or_steps(monkeypatch):
    with pytest.raises(CheckpointError, match=f"{MAX_PATTERNS + 1} patterns"):
        Patterns("here", ["a"] * (MAX_PATTERNS + 1))
    monkeypatch.setattr(name_patterns, "MAX_TOTAL_STEPS", 20)
    patterns = Patterns("here", ["(a*)*b"])
    with pytest.raises(CheckpointError, match="over 20 steps in all"):
        for _ in range(10):
            patterns.first("a" * 60)


def test_random_patterns_are_quick():
    """On the names that cost most, whichever way they are matched."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    pieces = [".*", "a*", "a+", "(a|b)", "(ab)*", "a?", "[ab]{2,5}", "b", "(a|ab)(c|bcd)?", r"\w+?"]
    for _ in range(200):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 7))) + "!"
        pattern = NamePattern(text, "here")
        with computes_within(0.5):
            for name in ("a" * 80, "ab" * 40, "aab" * 26):
                assert not pattern.matches(name), text
