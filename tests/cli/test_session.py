"""``halfbyte chat``: turns, commands, interruption and piped input."""

from __future__ import annotations

import io
import itertools
import json
import re
import signal
import stat

import pytest
from cli_support import FakeEngine, fake_open

from halfbyte.cli import chat as module
from halfbyte.cli.chat import Interrupt
from halfbyte.cli.main import app
from halfbyte.cli.session import ChatSession, is_command, read_message
from halfbyte.engine.params import SamplingParams
from halfbyte.engine.request import FinishReason
from halfbyte.errors import RequestError


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
            "tiny",
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
    assert "--max-context" in caught.value.hint
    assert chat.session.turns == before


def test_the_oldest_turns_slide_out_and_the_system_message_stays():
    chat = Chat(max_context=120)
    session = chat.session
    session.command("/system S")
    firsts: list[int] = []
    for i in range(20):
        session.answer(f"m{i} xxxxxxxx")
        prompt = chat.engine.prompts[-1]
        assert prompt.startswith("system:S\nuser:m") and prompt.endswith(f"user:m{i} xxxxxxxx\n")
        # A quarter of the context is left for the answer.
        assert len(prompt) <= 90
        first, *_ = shown = [int(n) for n in re.findall(r"user:m(\d+)", prompt)]
        assert shown == list(range(first, i + 1))
        firsts.append(first)
    assert firsts[-1] > 0
    assert sum("oldest turns are left out" in note for note in chat.notes) == 1
    # Turns go many at a time, so that most prompts continue the one before.
    grown = sum(b.startswith(a) for a, b in itertools.pairwise(chat.engine.prompts))
    assert grown >= 9


def test_retry_takes_the_last_answer_back():
    chat = Chat()
    with pytest.raises(RequestError, match="no message yet"):
        chat.session.retry()
    chat.session.answer("ab")
    chat.session.answer("cd")
    chat.session.retry()
    assert chat.engine.prompts[2] == chat.engine.prompts[1]
    assert [t["content"] for t in chat.session.turns] == ["ab", "ba ", "cd", "dc "]


def test_retry_with_a_seed_draws_with_the_next_one():
    chat = Chat()
    chat.session.command("/set seed 7")
    chat.session.answer("ab")
    chat.session.retry()
    assert [params.seed for params in chat.engine.params] == [7, 8]
    chat.session.command("/set temperature 0")
    chat.session.retry()
    assert chat.engine.params[-1].seed == 8


def test_a_base_model_gets_plain_lines_and_stops_before_the_user():
    chat = Chat()
    chat.engine.tokenizer.has_chat_template = False
    chat.session.command("/set system be brief")
    chat.session.answer("ab")
    chat.session.answer("cd")
    assert chat.engine.prompts[1] == ("be brief\n\nUser: ab\nAssistant: ok\nUser: cd\nAssistant:")
    assert all(params.stop == ("\nUser:",) for params in chat.engine.params)


def test_save_and_load(tmp_path):
    chat, file = Chat(), tmp_path / "c.json"
    chat.session.command("/system S")
    chat.session.answer("ab é")
    chat.session.command(f"/save {file}")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    other = Chat()
    other.session.command(f"/load {file}")
    assert (other.session.system, other.session.turns) == ("S", chat.session.turns)
    other.session.command("/clear")
    other.session.command(f"/save {file}")
    assert json.loads(file.read_text())["messages"] == [{"role": "system", "content": "S"}]
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read .*No such file"),
        ("x", "is not JSON"),
        ("[1]", "no list of messages"),
        ('{"messages": [{"role": "tool", "content": ""}]}', r"messages\[0\].role is 'tool'"),
        ('{"messages": [{"role": "user", "content": 1}]}', r"messages\[0\].content is 1"),
    ],
)
def test_what_is_no_saved_chat_is_neither_loaded_nor_overwritten(tmp_path, content, says):
    chat, file = Chat(), tmp_path / "c.json"
    chat.session.answer("ab")
    before = list(chat.session.turns)
    if content is not None:
        file.write_text(content)
    with pytest.raises(RequestError, match=says):
        chat.session.command(f"/load {file}")
    assert chat.session.turns == before
    if content is not None:
        with pytest.raises(RequestError, match="left as it is"):
            chat.session.command(f"/save {file}")
        assert file.read_text() == content


def test_commands():
    chat = Chat()
    session = chat.session
    assert session.command("/set temperature 0.25") and session.params.temperature == 0.25
    assert session.command("/set top-k 7") and session.params.top_k == 7
    assert session.command("/set seed none") and session.params.seed is None
    session.command("/set")
    assert re.search(r"^temperature +0\.25$", chat.notes[-1], re.M)
    assert re.search(r"^top_k +7$", chat.notes[-1], re.M)
    session.command("/set max_tokens -1")
    assert session.params.max_tokens is None
    session.command("/set system be brief")
    session.command("/system")
    assert chat.notes[-1] == "system message: be brief"
    session.command("/help")
    lines = chat.notes[-1].splitlines()
    names = ["/clear", "/retry", "/system", "/set", "/stats", "/save", "/load", "/help", "/bye"]
    assert [line.split()[0] for line in lines[: len(names)]] == names
    # Aligned: every explanation begins in the same column.
    assert {len(re.match(r".{19} +", line)[0]) for line in lines} == {20}  # type: ignore[index]
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


def test_stats_tell_speed_and_memory():
    chat = Chat()
    chat.session.answer("ab cd")
    chat.session.answer("ef")
    chat.session.command("/stats")
    rows = dict(re.split(r" {2,}", line, maxsplit=1) for line in chat.notes[-1].splitlines())
    assert rows["last answer"] == "1 tokens at 20.0 tok/s, first after 0.10 s"
    assert rows["last prompt"] == "36 tokens, 0 cached, the others at 100 tok/s"
    assert rows["context"] == "37 of 400 tokens"
    assert rows["all answers"] == "2, 3 tokens at 20.0 tok/s"
    assert rows["weights"] == "3.00 MiB, read for each token"
    assert rows["KV cache"] == "1.00 KiB for each token of the context, float16"
    assert re.fullmatch(r"[0-9.]+ [MG]iB of memory at its largest", rows["process"])


def test_what_is_a_command():
    assert is_command("/reset") and is_command("/system be brief") and is_command("/")
    assert not is_command("/usr/bin is what?") and not is_command("a /reset")
    assert not is_command("/help\nme with this")  # a paste


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

    def run(text: str, engine: FakeEngine, *args: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        monkeypatch.setattr(module, "open_engine", lambda *args: fake_open(engine))
        monkeypatch.setattr(module, "check_room", lambda *args: None)
        code = app(["chat", "--system", "s", *args], standalone_mode=False)
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
    with pytest.raises(RequestError, match=r"makes 515 tokens .* context holds 400"):
        piped("x" * 500 + "\n", FakeEngine())


def test_a_model_without_a_template_is_warned_of(piped):
    engine = FakeEngine()
    engine.tokenizer.has_chat_template = False
    code, out, err = piped("x\n", engine)
    assert code == 0 and out == "ok \n"
    assert "warning: smollm2 has no chat template" in err


def test_a_prompt_is_the_first_message(piped):
    engine = FakeEngine()
    assert piped("cd\n", engine, "ab")[1] == "ba \ndc \n"
    assert piped("/retry\n", engine, "-p", "ab")[1] == "ba \nba \n"
