"""Which lines follow each other: those with a common beginning, within a window."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from batch_support import lines_of, request, text_of

from halfbyte.server.batch.lines import InputLine
from halfbyte.server.batch.order import beginning, submission_order


def order(texts: list[str], block: int, **bounds: int) -> list[int]:
    lines = lines_of(text_of(request("a", prompt=text) for text in texts))
    return [line.index for line in submission_order(lines, block, **bounds)]


def test_equal_beginnings_come_together_and_all_else_stays():
    texts = ["x", "aaaa1", "bbbb1", "y", "aaaa2", "bbbb2", "aaaa1", "x"]
    assert order(texts, 4) == [0, 7, 1, 6, 4, 2, 5, 3]
    assert order(texts, 6) == [0, 7, 1, 6, 2, 3, 4, 5]
    assert order(texts, 4, most_lines=4) == [0, 1, 2, 3, 4, 6, 5, 7]
    # Deeper beginnings within a group, again in the input's order.
    assert order(["aabbX", "aacc", "aabbY", "aaccZ", "aa"], 2) == [0, 2, 1, 3, 4]


def common_blocks(texts: list[str], block: int) -> int:
    """Whole blocks that neighbours have in common at their beginnings."""
    total = 0
    for one, other in itertools.pairwise(texts):
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
        total += len(list(same)) // block
    return total


def test_every_line_comes_once_and_longest_beginnings_are_neighbours():
    """As many blocks are shared with the line before as a walk of the prefix tree can share."""
    for _ in range(20):
        block = random.randint(1, 3)
        texts = ["".join(random.choices("ab", k=random.randrange(12))) for _ in range(40)]
        found = order(texts, block)
        assert sorted(found) == list(range(len(texts)))
        shared = common_blocks([texts[index] for index in found], block)
        # Sorting is such a walk, too: every edge of the tree is entered once.
        best = common_blocks(sorted(texts), block)
        assert shared == best


def test_long_equal_prompts_need_no_deep_stack():
    assert order(["z" * 100_000] * 3 + ["z" * 100_000 + "!"], 16) == [0, 1, 2, 3]


def test_no_more_lines_are_taken_than_the_window_holds():
    taken = 0

    def endless():
        nonlocal taken
        for index in itertools.count():
            taken += 1
            yield InputLine(index, "", b"x" * 1000, 0)

    lines = submission_order(endless(), 4, most_lines=7)
    for count in range(1, 30):
        next(lines)
        assert taken == -(-count // 7) * 7
    taken = 0
    lines = submission_order(endless(), 4, most_lines=1 << 20, most_bytes=3000)
    next(lines)
    assert taken == 3


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"prompt": "text"}, "text"),
        ({"prompt": ["one", "two"]}, "one"),
        ({"prompt": [104, 105]}, "hi"),
        ({"prompt": [[104], [1]]}, "h"),
        ({"prompt": "text", "cache_salt": "s"}, "s\0text"),
        ({"messages": [{"role": "system", "content": "be"}, 3]}, "system\nbe\0"),
        ({"prompt": None}, ""),
        ({"prompt": [[], 1 << 40, "x"]}, ""),
        ({"messages": {}}, ""),
        (3, ""),
    ],
)
def test_what_a_prompt_begins_with(body, expected):
    assert beginning(json.dumps({"body": body}).encode()) == expected


def test_what_is_no_request_has_no_beginning():
    assert [beginning(data) for data in (b"x", b"[]", b"", None)] == [""] * 4
