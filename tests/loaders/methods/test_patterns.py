"""Patterns of model folders: the answers of ``re`` where it is quick, a refusal where it is not."""

from __future__ import annotations

import random
import re
import time

import pytest

from halfbyte.errors import CheckpointError, UnsupportedModelError
from halfbyte.loaders.methods.patterns import MAX_LENGTH, MAX_PATTERNS, Patterns

NAMES = [
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
]


@pytest.mark.parametrize("anchored", [True, False])
def test_the_answers_are_those_of_re(anchored):
    patterns = Patterns("here", USUAL, anchored)
    method = re.match if anchored else re.search
    found = set()
    for name in NAMES:
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
    r"(.+)\1",
    r"(?i)MODEL",
    r"((a{0,50}){0,50}){0,50}!",
    r"(?:(?:a*)|b)+!",
    "a?" * 60 + "a" * 60,
]


@pytest.mark.parametrize("pattern", EVIL)
def test_slow_patterns_are_refused_at_once(pattern):
    start = time.process_time()
    with pytest.raises(UnsupportedModelError, match="here: the pattern"):
        Patterns("here", [pattern])
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("pattern", ["(", "[z-a]", "*", "a{2,1}", "(?P<x>a)(?P<x>b)", "\\"])
def test_what_is_no_pattern(pattern):
    with pytest.raises(CheckpointError, match=r"here: .* is not a regular expression"):
        Patterns("here", [pattern])


def test_too_long_and_too_many():
    with pytest.raises(CheckpointError, match=f"{MAX_LENGTH + 1} characters; expected at most"):
        Patterns("here", ["a" * (MAX_LENGTH + 1)])
    with pytest.raises(CheckpointError, match=f"{MAX_PATTERNS + 1} patterns"):
        Patterns("here", ["a"] * (MAX_PATTERNS + 1))
    with pytest.raises(CheckpointError, match="a module name of 81 characters"):
        Patterns("here", ["a"]).first("a" * 81)


def test_accepted_patterns_are_quick():
    """Random patterns that pass are tried on the names that cost most."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    pieces = [".*", "a*", "a+", "(a|b)", "(ab)*", "a?", "[ab]{2,5}", "b", "(a|ab)(c|bcd)?", r"\w+?"]
    accepted = 0
    for _ in range(300):
        pattern = "".join(rng.choices(pieces, k=rng.randint(1, 7))) + "!"
        try:
            patterns = Patterns("here", [pattern])
        except UnsupportedModelError:
            continue
        accepted += 1
        start = time.process_time()
        for name in ("a" * 80, "ab" * 40, "aab" * 26):
            assert patterns.first(name) is None
        assert time.process_time() - start < 1, pattern
    assert accepted > 50
