"""What reaches the terminal: colours, widths, units, bars."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from halfbyte.cli import console
from halfbyte.cli.options import EngineFlags
from halfbyte.errors import ConfigError


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def make_screen(monkeypatch) -> Screen:
    """A terminal as stderr. Made in the test itself: pytest sets stderr after the fixtures."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return screen


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (96_573_440, "92.10 MiB"),
        (1 << 30, "1.00 GiB"),
        (1 << 50, "1024.00 TiB"),
    ],
)
def test_bytes(count, text):
    assert console.human_bytes(count) == text


def test_counts():
    found = [console.human_count(n) for n in (7, 1000, 134_515_008, 8_030_000_000)]
    assert found == ["7", "1.00 K", "134.52 M", "8.03 B"]


def test_clean_keeps_text_and_line_ends_only():
    assert console.clean("aé\n\tb漢") == "aé\n\tb漢"
    assert console.clean("\x1b[2J\x07\r\x9b") == "\ufffd[2J" + "\ufffd" * 3
    assert console.one_line(" a\n\x1bb\t c ") == "a \ufffdb c"


def test_columns_and_wrapping():
    text = console.columns(("name", "n"), [("a", "10"), ("long name", "2")])
    assert text.splitlines() == ["name        n", "a          10", "long name   2"]
    lines = console.wrapped("label", "word " * 40).splitlines()
    assert max(map(len, lines)) <= 80 and lines[0].startswith("label           word")
    assert all(line.startswith(" " * 16 + "word") for line in lines[1:])


def test_colour_only_where_it_is_wanted(monkeypatch):
    screen = make_screen(monkeypatch)
    console.print_error("bad\nthing", "do this")
    assert screen.getvalue() == "\x1b[1;31merror: bad thing\x1b[0m\n\x1b[2mhint: do this\x1b[0m\n"
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            screen.truncate(0)
            screen.seek(0)
            console.print_error("bad")
            assert screen.getvalue() == "error: bad\n"


def test_a_bar_appears_with_the_first_byte_and_vanishes(monkeypatch):
    screen = make_screen(monkeypatch)
    with console.progress_bar("pulling x"):
        pass
    assert screen.getvalue() == ""
    with console.progress_bar("pulling x") as progress:
        progress(1, 2)
        progress(2, 2)
    assert "pulling x" in screen.getvalue() and screen.getvalue().endswith("\x1b[2K")


def test_the_loading_bar_ends_with_its_last_step(monkeypatch):
    screen = make_screen(monkeypatch)
    with console.loading_bar("loading x") as progress:
        progress(1, 2)
        progress(2, 2)
        length = len(screen.getvalue())
        assert screen.getvalue().endswith("\x1b[2K")
        screen.write("served")
    assert len(screen.getvalue()) == length + len("served")


def test_no_bar_without_a_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with console.progress_bar("x", unit="steps") as progress:
        progress(1, 2)
    assert stream.getvalue() == ""


def test_a_batch_has_plain_lines_elsewhere(monkeypatch):
    """Now and then, with the speed of what is new; none where they were not asked for."""
    stream, now = io.StringIO(), 100.0
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with (
        console.batch_bar(100, "lines", before=40, every_s=10) as bar,
        console.batch_bar(100) as silent,
    ):
        for done in (40, 50, 60, 61):
            now += 5.0
            bar.update(done, 20 * (done - 40), " | 1 failed")
            silent.update(done, 1)
    assert stream.getvalue() == (
        "50/100 lines | 20 tok/s | 50 s left | 1 failed\n"
        "61/100 lines | 21 tok/s | 37 s left | 1 failed\n"
    )


def test_times_left():
    found = [console._duration(s) for s in (0, 59.4, 60, 185, 3600, 90_000)]
    assert found == ["0 s", "59 s", "1 min 0 s", "3 min 5 s", "1 h 0 min", "25 h 0 min"]


def test_engine_options_are_fields_of_the_configuration():
    options = EngineFlags("cpu", "bfloat16", "int8", "reference", "float", 128, 3, True).fields()
    assert options == {
        **{"device": "cpu", "dtype": "bfloat16", "kv_dtype": "int8"},
        **{"backend": "reference", "activations": "float", "max_context": 128},
        **{"threads": 3, "exact": True, "packed_cache": False, "quantize": None},
    }
    with pytest.raises(ConfigError, match="threads is -1"):
        EngineFlags("cpu", threads=-1).fields()


def test_logged_warnings_are_lines_of_ours(monkeypatch):
    """Where nobody has set up logging; one who has keeps what they chose."""
    screen, pipe = make_screen(monkeypatch), io.StringIO()
    monkeypatch.setattr(logging, "lastResort", console.WarningLines())
    log = logging.Logger("halfbyte.test")
    log.info("not shown")
    log.warning("slow: %s", "a\nb")
    assert screen.getvalue() == "\x1b[33mwarning: slow: a b\x1b[0m\n"
    monkeypatch.setattr(sys, "stderr", pipe)
    log.error("bad")
    assert pipe.getvalue() == "error: bad\n"
    log.addHandler(logging.StreamHandler(screen))
    log.warning("once")
    assert pipe.getvalue() == "error: bad\n" and screen.getvalue().endswith("\nonce\n")
