"""Word wrap of text that comes in pieces."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from halfbyte.cli.wrap import AnswerWriter, WordWrap

_TEXTS = st.text(alphabet="ab ,.\t\né漢`", max_size=200)


def wrap(pieces: list[str], width: int) -> str:
    out: list[str] = []
    wrapper = WordWrap(out.append, lambda: width)
    for piece in pieces:
        wrapper.feed(piece)
    wrapper.end()
    return "".join(out)


def test_words_go_to_the_next_line_whole():
    assert wrap(["one two three four"], 10) == "one two\nthree four"
    assert wrap(["one two", "x three"], 9) == "one twox\nthree"
    assert wrap(["  - item that is long\nnext"], 12) == "  - item\nthat is long\nnext"
    assert wrap(["漢字漢字漢"], 4) == "漢字\n漢字\n漢"


def test_a_word_is_written_when_its_end_is_known():
    out: list[str] = []
    wrapper = WordWrap(out.append, lambda: 10)
    wrapper.feed("one tw")
    assert "".join(out) == "one"
    wrapper.feed("o ")
    assert "".join(out) == "one two"


def test_long_words_and_code_are_left_to_the_terminal():
    assert wrap(["see " + "x" * 25 + " end"], 10) == "see\n" + "x" * 25 + " end"
    code = "```python\nif a and b and c and d:\n```\n"
    assert wrap([code + "one two three"], 10) == code + "one two\nthree"


def test_a_terminal_that_changes_its_width():
    out: list[str] = []
    widths = iter([10, 5, 5, 5])
    wrapper = WordWrap(out.append, lambda: next(widths))
    wrapper.feed("one two three four")
    wrapper.end()
    assert "".join(out) == "one two\nthree\nfour"


@given(_TEXTS, st.integers(1, 30), st.randoms(use_true_random=False))
def test_pieces_do_not_matter_and_nothing_is_lost(text, width, random):
    cuts = sorted(random.sample(range(len(text) + 1), min(3, len(text) + 1)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = wrap([text], width)
    assert wrap(pieces, width) == whole
    assert "".join(whole.split()) == "".join(text.split())
    if "```" not in text and "\t" not in text:
        for line in whole.split("\n"):
            longest = max(map(_cells, line.split()), default=0)
            assert _cells(line.rstrip()) <= max(width, longest + _indent(line))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _cells(text: str) -> int:
    return sum(2 if c == "漢" else 1 for c in text)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_no_control_characters_and_a_file_the_text():
    screen, file = Screen(), io.StringIO()
    for stream in (screen, file):
        writer = AnswerWriter(stream)
        for piece in ("a\x1b[2J\tb\n", "\x07é", "\n"):
            writer.write(piece)
        writer.end()
        writer.write("x")
        writer.end()
    assert screen.getvalue() == "a\ufffd[2J\tb\n\ufffdé\nx\n"
    assert file.getvalue() == "a\x1b[2J\tb\n\x07é\nx\n"
