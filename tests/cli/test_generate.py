"""``halfbyte generate``: where prompts come from and where text goes."""

from __future__ import annotations

import json
import os
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
    monkeypatch.setattr(module, "open_engine", lambda *args: fake_open(engine))
    monkeypatch.setattr(module, "check_room", lambda *args: None)
    return engine


@pytest.fixture
def run(engine, monkeypatch, capsys):
    """Run ``generate`` against the fake engine: exit code, stdout, stderr."""

    def run(*args: str, stdin: bytes | None = None) -> tuple[int, str, str]:
        read, write = os.pipe()
        os.write(write, stdin or b"")
        os.close(write)
        with os.fdopen(read, encoding="utf-8") as pipe:
            monkeypatch.setattr("sys.stdin", pipe)
            code = app(["generate", *args], standalone_mode=False)
        return code or 0, *capsys.readouterr()

    return run


def test_prompt_sources(run, engine, tmp_path):
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeffein\r\nzwei é\r\n".encode())
    assert run("one two", "--raw")[1] == "owt eno \n"
    assert run("-", "--raw", stdin=b"three\n")[1] == "eerht \n"
    assert run("--raw", stdin=b"four")[1] == "ruof \n"
    run("--raw", "-f", str(file))
    run("--raw", "-p", "five")
    # One line end at the end is the editor's, all others are the user's.
    assert engine.prompts == ["one two", "three", "four", "ein\r\nzwei é", "five"]


def test_a_pipe_or_file_follows_the_prompt(run, engine, tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("a\nb\n")
    run("--raw", "sum up:", stdin=b"one\ntwo\n")
    run("--raw", "sum up:", "-f", str(file), stdin=b"not read")
    run("--raw", "--lines", "say:", stdin=b"one\ntwo\n")
    expected = ["sum up:\n\none\ntwo", "sum up:\n\na\nb", "say:\n\none", "say:\n\ntwo"]
    assert engine.prompts == expected


def test_a_device_beside_a_prompt_is_not_read(run, engine, monkeypatch):
    with open(os.devnull, encoding="utf-8") as device:
        monkeypatch.setattr("sys.stdin", device)
        app(["generate", "--raw", "alone"], standalone_mode=False)
    assert engine.prompts == ["alone"]


def test_no_prompt_at_a_terminal_is_wrong_usage(run, monkeypatch):
    monkeypatch.setattr("halfbyte.cli.prompts.is_terminal", lambda stream: True)
    with pytest.raises(typer.BadParameter, match="no prompt"):
        run()


def test_text_goes_to_stdout_and_speed_to_stderr(run):
    code, out, err = run("a b c", "--raw")
    assert code == 0 and out == "c b a \n"
    assert err == "prompt 5 tok at 100/s | answer 3 tok at 20.0/s | first after 0.10 s | stop\n"


def test_json_is_one_object_a_line_with_the_prompt(run):
    code, out, _ = run("a b", "--raw", "--json")
    assert code == 0 and out.count("\n") == 1
    result = json.loads(out)
    assert result["index"] == 0 and result["prompt"] == "a b" and result["text"] == "b a "
    assert result["finish_reason"] == "stop" and result["usage"]["total_tokens"] == 5
    assert result["timings"]["decode_tok_s"] == 20.0


def test_lines_come_as_they_finish(run, engine):
    code, out, err = run("--raw", "--lines", "--json", stdin=b"a b c d\n\nx\r\n")
    assert code == 0
    results = [json.loads(line) for line in out.splitlines()]
    assert [(r["index"], r["prompt"], r["text"]) for r in results] == [
        (1, "x", "x "),
        (0, "a b c d", "d c b a "),
    ]
    assert engine.prompts == ["a b c d", "x"] and "2 prompts, 5 tokens" in err
    plain = run("--raw", "--lines", stdin=b"a b\nx\n")[1]
    assert plain == "==> prompt 1 <==\nx \n\n==> prompt 0 <==\nb a \n"


def test_lines_are_written_before_the_last_is_done(run, engine, monkeypatch):
    """What is on stdout is looked at in the engine's steps."""
    said: list[str] = []
    monkeypatch.setattr("sys.stdout", SimpleNamespace(write=said.append, flush=lambda: None))
    seen, step = [], engine.step

    def watched():
        seen.append("".join(said).count('"index"'))
        return step()

    monkeypatch.setattr(engine, "step", watched)
    lengths = [3, 1, 2]
    run("--raw", "--lines", "--json", stdin="\n".join("x " * n for n in lengths).encode())
    assert seen == [0, 1, 2]


def test_many_lines_are_handed_over_bit_by_bit(run, engine, monkeypatch):
    most, step = 0, engine.step

    def watched():
        nonlocal most
        most = max(most, len(engine._live))
        return step()

    monkeypatch.setattr(engine, "step", watched)
    code, out, _ = run("--raw", "--lines", "--json", stdin=b"a b\n" * 200)
    assert code == 0 and len(out.splitlines()) == 200 and most == 64


def test_one_bad_prompt_does_not_end_the_batch(run):
    stdin = b"x" * 500 + b"\nok\nboom\n"
    code, out, err = run("--raw", "--lines", "--json", stdin=stdin)
    results = {r["index"]: r for r in map(json.loads, out.splitlines())}
    assert results[0]["code"] == "context_length_exceeded" and results[0]["prompt"] == "x" * 500
    assert results[1]["text"] == "ko "
    assert results[2]["finish_reason"] == "error" and results[2]["error"] == "it went boom"
    assert code == 1 and "error: prompt 0: too long" in err


def test_a_failed_answer_is_an_error(run):
    code, _, err = run("boom")
    assert code == 1 and "error: the answer failed: it went boom" in err


def test_the_template_is_used_where_the_model_has_one(run, engine):
    run("hello")
    run("hello", "--system", "s")
    run("hello", "--raw")
    engine.tokenizer.has_chat_template = False
    _, _, err = run("hello")
    assert "smollm2 has no chat template: the text is continued" in err
    _, _, err = run("hello", "--chat", "--system", "s")
    assert "warning: smollm2 has no chat template" in err
    templated = ["user:hello\n", "system:s\nuser:hello\n"]
    assert engine.prompts == [*templated, "hello", "hello", "s\n\nUser: hello\nAssistant:"]
    # A base model would go on with the user's next message.
    assert [params.stop for params in engine.params] == [()] * 4 + [("\nUser:",)]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["hush"], "no text: the model ended the answer at once; another wording"),
        (["hush", "--raw"], "without --raw it is answered as a message, or --ignore-eos"),
        (["a b c", "-n", "2"], "cut off after 2 tokens (-n); -n -1 goes on to the end"),
        (["a b c"], None),
    ],
)
def test_an_answer_that_ends_oddly_says_why(run, args, says):
    _, out, err = run(*args)
    first, *more = err.splitlines()
    assert first.startswith("prompt ") and "no text" not in out
    assert len(more) == (says is not None) and (says or "") in "".join(more)


def test_the_end_is_where_the_model_ends(run, engine):
    run("x", "-n", "-1")
    run("x", "--n-predict", "-1")
    run("x")
    assert [params.max_tokens for params in engine.params] == [None, None, 256]


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
        (["--raw", "--system", "s", "x"], None, r"continued \(--raw\) has no system message"),
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
    monkeypatch.setattr("halfbyte.cli.prompts.INPUT_LIMIT", 1 << 20)
    with pytest.raises(RequestError, match="more than 1 MiB"):
        run("-f", "/dev/zero")


def test_the_real_program_with_a_real_file():
    args = ("--backend", "reference", "--max-context", "64", "-n", "5", "--raw")
    sampling = ("--temperature", "0", "--ignore-eos", "--json")
    done = halfbyte("generate", str(TINY), "Hello there", *args, *sampling)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["prompt"] == "Hello there"
    assert len(result["token_ids"]) == 5 and result["finish_reason"] == "length"
    assert "answer 5 tok" in done.stderr
    assert issubclass(RequestError, HalfbyteError)
