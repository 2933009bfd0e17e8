"""``halfbyte generate``: where prompts come from and where text goes."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
import typer
from cli_support import TINY, FakeEngine, fake_open, halfbyte

from halfbyte.cli import generate as module
from halfbyte.cli.main import app
from halfbyte.errors import HalfbyteError, RequestError


@pytest.fixture
def engine(monkeypatch) -> FakeEngine:
    engine = FakeEngine()
    seen = SimpleNamespace(used=False)
    monkeypatch.setattr(module, "open_engine", lambda *args: fake_open(engine, seen))
    return engine


@pytest.fixture
def run(engine, monkeypatch, capsys):
    """Run ``generate`` against the fake engine: exit code, stdout, stderr."""

    def run(*args: str, stdin: bytes | None = None) -> tuple[int, str, str]:
        if stdin is not None:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = app(["generate", *args], standalone_mode=False)
        return code or 0, *capsys.readouterr()

    return run


def test_prompt_sources(run, engine, tmp_path):
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeffein\r\nzwei é\r\n".encode())
    assert run("one two")[1] == "owt eno \n"
    assert run("-", stdin=b"three\n")[1] == "eerht \n"
    assert run(stdin=b"four")[1] == "ruof \n"
    run("-f", str(file))
    # One line end at the end is the editor's, all others are the user's.
    assert engine.prompts == ["one two", "three", "four", "ein\r\nzwei é"]


def test_no_prompt_at_a_terminal_is_wrong_usage(run, monkeypatch):
    monkeypatch.setattr(module, "is_terminal", lambda stream: True)
    with pytest.raises(typer.BadParameter, match="no prompt"):
        run()


def test_text_goes_to_stdout_and_speed_to_stderr(run):
    code, out, err = run("a b c")
    assert code == 0 and out == "c b a \n"
    assert err == "prompt 5 tok at 100/s | answer 3 tok at 20.0/s | first after 0.10 s | stop\n"


def test_json_is_one_object_a_line(run):
    code, out, _ = run("a b", "--json")
    assert code == 0 and out.count("\n") == 1
    result = json.loads(out)
    assert result["index"] == 0 and result["text"] == "b a "
    assert result["finish_reason"] == "stop" and result["usage"]["total_tokens"] == 5
    assert result["timings"]["decode_tok_s"] == 20.0


def test_lines_are_a_batch_in_order(run, engine):
    code, out, err = run("--lines", "--json", stdin=b"a b c d\n\nx\r\n")
    assert code == 0
    results = [json.loads(line) for line in out.splitlines()]
    assert [r["index"] for r in results] == [0, 1]
    assert [r["text"] for r in results] == ["d c b a ", "x "]
    assert engine.prompts == ["a b c d", "x"] and "2 prompts, 5 tokens" in err
    plain = run("--lines", stdin=b"a b\nx\n")[1]
    assert plain == "==> prompt 0 <==\nb a \n\n==> prompt 1 <==\nx \n"


def test_one_bad_prompt_does_not_end_the_batch(run):
    code, out, err = run("--lines", "--json", stdin=b"x" * 500 + b"\nok\nboom\n")
    first, second, third = [json.loads(line) for line in out.splitlines()]
    assert first["code"] == "context_length_exceeded" and first["index"] == 0
    assert second["text"] == "ko " and second["index"] == 1
    assert third["finish_reason"] == "error" and third["error"] == "it went boom"
    assert code == 1 and "error: prompt 0: too long" in err


def test_a_failed_answer_is_an_error(run):
    code, _, err = run("boom")
    assert code == 1 and "error: the answer failed: it went boom" in err


def test_chat_uses_the_template(run, engine):
    run("hello", "--chat")
    assert engine.prompts == ["user:hello\n"]


def test_sampling_options_arrive(run, engine):
    run(
        *("x", "-n", "7", "--temp", "0.5", "--top-k", "3", "--top-p", "0.9", "--min-p", "0.1"),
        *("--repetition-penalty", "1.1", "--presence-penalty", "0.2"),
        *("--frequency-penalty", "0.3", "--seed", "5", "--stop", "a", "--stop", "b"),
        "--ignore-eos",
    )
    params = engine.params[0]
    assert (params.max_tokens, params.temperature, params.top_k) == (7, 0.5, 3)
    assert (params.top_p, params.min_p, params.repetition_penalty) == (0.9, 0.1, 1.1)
    assert (params.presence_penalty, params.frequency_penalty, params.seed) == (0.2, 0.3, 5)
    assert params.stop == ("a", "b") and params.ignore_eos


@pytest.mark.parametrize(
    ("args", "stdin", "says"),
    [
        ([""], None, "prompt is empty"),
        ([], b"", "prompt is empty"),
        ([], b"ab\xffc", "stdin is not UTF-8: byte 0xff at offset 2"),
        (["--lines"], b" \n\n", "no line with text"),
        (["a\udcff"], None, "not valid UTF-8"),
        (["-f", "."], None, "cannot read prompt file ."),
    ],
)
def test_unusable_prompts_are_refused_before_a_model_is_loaded(
    run, engine, monkeypatch, args, stdin, says
):
    monkeypatch.setattr(module, "open_engine", None)
    with pytest.raises(RequestError, match=says):
        run(*args, stdin=stdin)


def test_a_huge_prompt_file_is_refused(run, monkeypatch):
    monkeypatch.setattr(module, "INPUT_LIMIT", 1 << 20)
    with pytest.raises(RequestError, match="more than 1 MiB"):
        run("-f", "/dev/zero")


def test_a_terminal_gets_no_control_characters(monkeypatch, capsys):
    monkeypatch.setattr(module, "is_terminal", lambda stream: True)
    module.write_text("a\x1b[2J\tb\n\x07é")
    assert capsys.readouterr().out == "a\ufffd[2J\tb\n\ufffdé"


def test_the_real_program_with_a_real_file():
    args = ("-m", str(TINY), "--backend", "reference", "--max-context", "64", "-n", "5")
    sampling = ("--temperature", "0", "--ignore-eos", "--json")
    done = halfbyte("generate", "Hello there", *args, *sampling)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["token_ids"]) == 5 and result["finish_reason"] == "length"
    assert "answer 5 tok" in done.stderr
    assert issubclass(RequestError, HalfbyteError)
