"""``halfbyte chat``: turns, commands, interruption, piped input and a real terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from cli_support import FakeEngine, fake_open

from halfbyte.cli import chat as module
from halfbyte.cli.chat import Interrupt
from halfbyte.cli.main import app
from halfbyte.cli.session import ChatSession, is_command, read_message
from halfbyte.engine.request import FinishReason, SamplingParams
from halfbyte.errors import RequestError, TemplateError


class Chat:
    """A session with everything it wrote and said."""

    def __init__(self, **engine: float) -> None:
        self.engine = FakeEngine(**engine)  # type: ignore[arg-type]
        self.out: list[str] = []
        self.notes: list[str] = []
        self.stop_after = 1 << 30
        self.session = ChatSession(
            self.engine,  # type: ignore[arg-type]
            SamplingParams(),
            self.out.append,
            self.notes.append,
            lambda: len(self.out) >= self.stop_after,
        )


def test_turns_remember_each_other():
    chat = Chat()
    chat.session.command("/system be brief")
    chat.session.answer("ab cd")
    chat.session.answer("x")
    assert chat.out == ["dc ", "ba ", "x "]
    assert chat.engine.prompts[1] == ("system:be brief\nuser:ab cd\nassistant:dc ba \nuser:x\n")
    chat.session.command("/reset")
    chat.session.answer("y")
    assert chat.engine.prompts[2] == "system:be brief\nuser:y\n"


def test_an_interrupted_answer_is_kept_as_far_as_it_came():
    chat = Chat()
    chat.stop_after = 2
    completion = chat.session.answer("a b c d e")
    assert completion.finish_reason is FinishReason.CANCELLED
    assert completion.text == "e d " and not chat.engine.has_work()
    assert chat.session.turns[-1] == {"role": "assistant", "content": "e d "}


def test_a_turn_that_cannot_run_leaves_the_conversation_as_it_was():
    chat = Chat(max_context=40)
    chat.session.answer("short")
    before = list(chat.session.turns)
    with pytest.raises(RequestError) as caught:
        chat.session.answer("long " * 20)
    assert caught.value.hint == "/reset to start anew"
    assert chat.session.turns == before


def test_commands():
    chat = Chat()
    session = chat.session
    assert session.command("/set temperature 0.25") and session.params.temperature == 0.25
    assert session.command("/set top-k 7") and session.params.top_k == 7
    assert session.command("/set seed none") and session.params.seed is None
    session.command("/set")
    assert "temperature = 0.25" in chat.notes[-1] and "top_k = 7" in chat.notes[-1]
    session.command("/system")
    assert chat.notes[-1] == "no system message"
    session.command("/stats")
    assert "kv blocks total: 10" in chat.notes[-1]
    session.command("/help")
    assert all(name in chat.notes[-1] for name in ("/reset", "/system", "/set", "/stats", "/bye"))
    assert max(map(len, chat.notes[-1].splitlines())) <= 80
    assert not any(session.command(word) for word in ("/bye", "/exit", "/quit"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/rest", "no command /rest.*did you mean /reset"),
        ("/zzz", "/help lists them"),
        ("/set temprature 1", "no setting 'temprature'.*did you mean temperature"),
        ("/set temperature hot", "temperature is 'hot'; expected a number"),
        ("/set temperature -1", r"temperature is -1\.0"),
        ("/set temperature nan", "temperature is nan"),
        ("/set top_k 1.5", "top_k is '1.5'; expected a whole number"),
        ("/set engine 1", "no setting"),
    ],
)
def test_bad_commands_change_nothing(line, says):
    chat = Chat()
    before = chat.session.params
    with pytest.raises(RequestError, match=says):
        chat.session.command(line)
    assert chat.session.params == before


def test_what_is_a_command():
    assert is_command("/reset") and is_command("/system be brief") and is_command("/")
    assert not is_command("/usr/bin is what?") and not is_command("a /reset")


def test_messages_of_several_lines():
    rest = iter(["two", 'three"""', "never"])

    def read() -> str:
        line = next(rest, None)
        if line is None:
            raise EOFError
        return line

    assert read_message("plain", read) == "plain"
    assert read_message('"""one"""', read) == "one"
    assert read_message('"""one', read) == "one\ntwo\nthree"
    assert read_message('"""open', read) == "open\nnever"


def test_the_first_ctrl_c_sets_a_flag_and_the_second_ends():
    interrupt = Interrupt()
    before = signal.getsignal(signal.SIGINT)
    with interrupt.armed():
        signal.raise_signal(signal.SIGINT)
        assert interrupt.seen()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with interrupt.armed():
        assert not interrupt.seen()


@pytest.fixture
def piped(monkeypatch, capsys):
    """Run ``chat`` with piped input against a fake engine: exit code, stdout, stderr."""
    import io
    from types import SimpleNamespace

    def run(text: str, engine: FakeEngine) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        monkeypatch.setattr(
            module, "open_engine", lambda *args: fake_open(engine, SimpleNamespace())
        )
        code = app(["chat", "--system", "s"], standalone_mode=False)
        return code or 0, *capsys.readouterr()

    return run


def test_piped_lines_are_turns(piped):
    engine = FakeEngine()
    code, out, err = piped('ab\n\n/set temperature 0\n"""c\nd"""\n/bye\nnever\n', engine)
    assert code == 0 and out == "ba \nd c \n"
    assert engine.prompts[-1] == "system:s\nuser:ab\nassistant:ba \nuser:c\nd\n"
    assert engine.params[-1].temperature == 0
    assert err.count("answer") == 2 and "temperature = 0.0" in err


def test_piped_errors_end_the_program(piped):
    with pytest.raises(RequestError, match="too long"):
        piped("x" * 500 + "\n", FakeEngine())


def test_a_model_without_a_template_is_refused(piped):
    engine = FakeEngine()
    engine.tokenizer.has_chat_template = False
    with pytest.raises(TemplateError, match=r"no chat template.*halfbyte generate"):
        piped("x\n", engine)


PROGRAM = """
import sys
sys.path.insert(0, {here!r})
from types import SimpleNamespace
from cli_support import FakeEngine, fake_open
from halfbyte.cli import chat, main
engine = FakeEngine(delay=0.05)
chat.open_engine = lambda *args: fake_open(engine, SimpleNamespace())
main.main(["chat"])
"""


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self) -> None:
        self.main, side = pty.openpty()
        code = textwrap.dedent(PROGRAM).format(here=os.path.dirname(__file__))
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
            preexec_fn=_own_terminal,
            env={**os.environ, "TERM": "dumb"},
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

    def settle(self) -> None:
        """Wait until the program sleeps: readline shows its prompt before it listens, and a
        signal that comes in between stays unseen until the next key."""
        quiet = 0
        while quiet < 10:
            with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as file:
                asleep = file.read().rpartition(")")[2].split()[0] == "S"
            quiet = quiet + 1 if asleep else 0
            time.sleep(0.02)

    def send(self, text: str) -> None:
        os.write(self.main, text.encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.main)


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal():
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_ctrl_c_stops_the_answer_and_ctrl_d_the_program(terminal):
    terminal.expect("/help for help")
    terminal.expect(">>> ")
    terminal.send("x " * 140 + "w59\n")
    terminal.expect("95w ")
    terminal.send("\x03")
    assert "cancelled" in terminal.expect("answer [0-9]+ tok.*\n")
    terminal.expect(">>> ")
    terminal.send("/rest\n")
    terminal.expect("did you mean /reset")
    terminal.expect(">>> ")
    terminal.send("again\n")
    terminal.expect("niaga ")
    terminal.expect(">>> ")
    terminal.send("\x04")
    assert terminal.process.wait(20) == 0


def test_ctrl_c_at_the_prompt_ends_with_130(terminal):
    terminal.expect(">>> ")
    terminal.settle()
    terminal.send("\x03")
    assert terminal.process.wait(20) == 130
    assert "Traceback" not in terminal.seen
