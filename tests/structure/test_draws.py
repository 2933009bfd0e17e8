"""Tests draw from the generators that tests/conftest.py seeds, or a failure cannot be repeated."""

from __future__ import annotations

import re

from source_tree import ROOT, tracked

# Generators that seed themselves.
UNSEEDED = re.compile(
    r"SystemRandom|\burandom\(|\bsecrets\.|default_rng\(\)|\bRandom\(\)|\.seed\(\)|RandomState\(\)"
)
# A draw outside of any function comes before the first seed.
AT_IMPORT = re.compile(r"^\S.*\brandom\.(?!Random\b|Generator\b)[a-z]\w*\(", re.MULTILINE)
# Seeds the run itself, and stands for an engine that draws its own seeds.
MEANT = {"tests/conftest.py", "tests/server/fake_engine.py", "tests/structure/test_draws.py"}


def test_no_test_draws_what_its_seed_does_not_repeat():
    for path in tracked():
        if path.startswith("tests/") and path.endswith(".py") and path not in MEANT:
            text = (ROOT / path).read_text(encoding="utf-8")
            assert UNSEEDED.findall(text) == [], path
            assert AT_IMPORT.findall(text) == [], path


def test_draws_are_told_apart():
    assert UNSEEDED.search("rng = np.random.default_rng()") and UNSEEDED.search("random.Random()")
    assert not UNSEEDED.search("np.random.default_rng(seed)")
    assert AT_IMPORT.search("SEED = random.randrange(5)")
    assert not AT_IMPORT.search("def draw(rng: random.Random) -> int:\n    random.randrange(5)")
