"""``halfbyte chat`` on a real terminal: keys, pastes, history, interruption."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import stat
import struct
import subprocess
import sys
import termios
import textwrap
import time

import pytest

PROGRAM = """
import sys
sys.path.insert(0, {here!r})
from cli_support import FakeEngine, fake_open
from halfbyte.cli import chat, main
engine = FakeEngine(delay=0.05)
chat.open_engine = lambda *args: fake_open(engine)
chat.check_room = lambda *args: None
main.main(["chat", *sys.argv[1:]])
"""


class Terminal:
    """A program on a pseudo-terminal of 40 columns."""

    def __init__(self, home: str, term: str = "xterm", *args: str) -> None:
        self.main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("4H", 24, 40, 0, 0))
        code = textwrap.dedent(PROGRAM).format(here=os.path.dirname(__file__))
        env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *args],
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
            preexec_fn=_own_terminal,
            env={**env, "TERM": term, "NO_COLOR": "1", "HALFBYTE_HOME": home},
        )
        os.close(side)
        self.seen = ""

    def expect(self, pattern: str, seconds: float = 30) -> str:
        """Read until a pattern shows; everything before and with it."""
        limit = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.main], [], [], max(0.0, limit - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.seen!r}"
            self.seen += os.read(self.main, 4096).decode()
        text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return text

    def send(self, text: str) -> None:
        os.write(self.main, text.encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.main)


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def start(tmp_path):
    """Start ``chat`` on a terminal."""
    terminals: list[Terminal] = []

    def start(*args: str) -> Terminal:
        terminals.append(Terminal(str(tmp_path), *args))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


# Editing is switched on; what comes before that is read by the terminal, not the editor.
READY = re.escape("\x1b[?2004h")


def test_ctrl_c_stops_the_answer_and_ctrl_d_the_program(start):
    terminal = start("dumb")
    terminal.expect("/help for help")
    terminal.expect(">>> ")
    terminal.send("dropped")
    terminal.expect("dropped")
    terminal.send("\x03")
    terminal.expect("ctrl-D or /bye leaves")
    terminal.expect(">>> ")
    terminal.send("x " * 140 + "w59\r")
    terminal.expect("95w")
    terminal.send("\x03")
    terminal.expect("answer [0-9]+ tok")
    terminal.expect("cancelled")
    terminal.expect(">>> ")
    terminal.send("/rest\r")
    terminal.expect("did you mean /reset")
    terminal.expect(">>> ")
    terminal.send("again\r")
    terminal.expect("niaga")
    terminal.expect(">>> ")
    terminal.send("\x04")
    assert terminal.process.wait(20) == 0
    assert "\x1b" not in terminal.seen


def test_ctrl_c_at_the_prompt_clears_the_line_and_then_says_how_to_leave(start):
    terminal = start("xterm")
    terminal.expect(READY)
    terminal.send("never sent")
    terminal.expect("sent")
    terminal.send("\x03")
    terminal.send("\x03")
    terminal.expect("ctrl-D or /bye leaves")
    terminal.send("ab\r")
    terminal.expect("ba ")
    terminal.expect(READY)
    terminal.send("/bye\r")
    assert terminal.process.wait(20) == 0


def test_a_paste_is_one_message_and_history_is_private(start, tmp_path):
    terminal = start("xterm")
    terminal.expect(READY)
    terminal.send("\x1b[200~one two\nthree\x1b[201~")
    terminal.expect("three")
    terminal.send("\r")
    terminal.expect("eerht owt eno")  # both lines in one answer
    terminal.expect(READY)
    terminal.send("\x04")
    assert terminal.process.wait(20) == 0
    file = tmp_path / "chat_history"
    assert json.loads(file.read_text()) == "one two\nthree"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = start("xterm")
    again.expect(READY)
    again.send("\x1b[A")
    again.expect("three")
    again.send("\r")
    again.expect("eerht owt eno")
    again.expect(READY)
    again.send("\x04")
    assert again.process.wait(20) == 0


def test_without_history_nothing_is_kept(start, tmp_path):
    terminal = start("xterm", "--no-history")
    terminal.expect(READY)
    terminal.send("ab\r")
    terminal.expect("ba ")
    terminal.expect(READY)
    terminal.send("\x04")
    assert terminal.process.wait(20) == 0
    assert list(tmp_path.iterdir()) == []
