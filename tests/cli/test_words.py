"""Which word is the model and which the prompt."""

from __future__ import annotations

import pytest
import typer

from halfbyte.cli.words import model_and_prompt
from halfbyte.errors import ModelNotFoundError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with a model file, a model folder and things that are none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"GGUF\3\0\0\0")
    (tmp_path / "notes").write_text("Hello")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "config.json").write_text("{}")
    (tmp_path / "docs").mkdir()


@pytest.mark.parametrize(
    ("words", "model", "prompt", "expected"),
    [
        ([], None, None, ("smollm2", None)),
        (["Hello there"], None, None, ("smollm2", "Hello there")),
        (["smollm2"], None, None, ("smollm2", None)),
        (["SmolLM2"], None, None, ("SmolLM2", None)),
        (["owner/name:Q4_K_M"], None, None, ("owner/name:Q4_K_M", None)),
        (["hf.co/owner/name:Q4_K_M"], None, None, ("hf.co/owner/name:Q4_K_M", None)),
        (["https://host.example/a.gguf"], None, None, ("https://host.example/a.gguf", None)),
        (["file"], None, None, ("file", None)),
        (["made"], None, None, ("made", None)),
        (["./nowhere"], None, None, ("./nowhere", None)),
        (["no.gguf"], None, None, ("no.gguf", None)),
        # A file or folder that holds no model does not make a word one.
        (["notes"], None, None, ("smollm2", "notes")),
        (["Hello!"], None, None, ("smollm2", "Hello!")),
        (["2+2"], None, None, ("smollm2", "2+2")),
        ([], None, "llama3.2:1b", ("smollm2", "llama3.2:1b")),
        (["docs"], None, None, ("smollm2", "docs")),
        (["/etc is what?"], None, None, ("smollm2", "/etc is what?")),
        (["-"], None, None, ("smollm2", "-")),
        ([""], None, None, ("smollm2", "")),
        (["smollm2", "why?"], None, None, ("smollm2", "why?")),
        (["smollm2", "why", "so?"], None, None, ("smollm2", "why so?")),
        (["made", "file"], None, None, ("made", "file")),
        # The options settle it.
        (["smollm2"], "made", None, ("made", "smollm2")),
        (["made"], None, "smollm2", ("made", "smollm2")),
        ([], "made", "x", ("made", "x")),
        ([], None, "smolm2", ("smollm2", "smolm2")),
    ],
)
def test_words(words, model, prompt, expected):
    assert model_and_prompt(words, model, prompt) == expected


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["smolm2"], "no model 'smolm2'; did you mean smollm2.*-p smolm2"),
        (["smolm2", "hi"], "did you mean smollm2"),
        # What other programs call a model is no prompt for the default one.
        (["llama3.2"], "no model 'llama3.2'.*-p llama3.2.*halfbyte list"),
        (["llama3.2:1b"], "no model 'llama3.2:1b'"),
        (["mistral:latest"], "no model 'mistral:latest'"),
        (["smollm2:latest"], "did you mean smollm2"),
        (["why", "not"], 'no model .why.*in quotes: "why not"'),
    ],
)
def test_what_could_be_a_slip_is_asked_about(words, says):
    with pytest.raises(ModelNotFoundError, match=says):
        model_and_prompt(words, None, None)


def test_two_prompts_are_one_too_many():
    with pytest.raises(typer.BadParameter, match="give one prompt"):
        model_and_prompt(["smollm2", "a"], None, "b")
