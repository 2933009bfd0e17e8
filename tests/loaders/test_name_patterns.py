"""Patterns answer as ``re.match`` does, and no pattern can hold the loader up."""

from __future__ import annotations

import random
import re
import time

import pytest

from halfbyte.errors import CheckpointError, HalfbyteError, UnsupportedModelError
from halfbyte.loaders.name_patterns import NamePattern

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


def test_random_patterns_against_re():
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng, compared = random.Random(seed), 0
    for _ in range(1500):
        pattern = _random_pattern(rng, 4)
        try:
            expected = re.compile(pattern)
        except re.error:
            continue
        compiled = NamePattern(pattern, "config")
        for _ in range(3):
            name = "".join(rng.choice("ab.1") for _ in range(rng.randrange(9)))
            assert compiled.matches(name) == (expected.match(name) is not None), (pattern, name)
            compared += 1
    assert compared > 3000


@pytest.mark.parametrize(
    "pattern",
    ["(a*)*b", "((((a*)*)*)*)*b", "(a|a)*b", "(a?){30}a{30}b", ".*.*.*.*.*.*.*.*x", "(?:.*a){40}b"],
)
def test_patterns_on_which_backtracking_never_ends(pattern):
    start = time.process_time()
    assert not NamePattern(pattern, "config").matches("a" * 60)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("pattern", "error", "part"),
    [
        ("(", CheckpointError, "is not a regular expression"),
        ("a{99999999999}", CheckpointError, "is not a regular expression"),
        ("a" * 513, CheckpointError, "has 513 characters; expected at most 512"),
        ("(" * 30 + "a" + ")" * 30, CheckpointError, "nests groups over 20 levels"),
        (r"(a)\1", UnsupportedModelError, "uses groupref"),
        ("(?<=a)b", UnsupportedModelError, "uses assert"),
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
