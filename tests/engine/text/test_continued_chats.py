"""Prompts that end within the last message: transformers' ids, and texts of templates at large."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import transformers
from pipeline_cases import TEMPLATES, draw_pipeline, draw_text, reference, save_folder

from halfbyte.engine.text.tokenizer import Tokenizer
from halfbyte.errors import RequestError, TemplateError
from halfbyte.loaders.base import TokenizerSource

SAY = [{"role": "user", "content": "Hi"}]


def ours(folder: Path, template: str) -> Tokenizer:
    source = TokenizerSource("hf_json", folder / "tokenizer.json", chat_template=template)
    return Tokenizer.from_source(source, 1 << 16)


def test_ids_of_continued_chats_are_those_of_transformers(tmp_path: Path) -> None:
    transformers.logging.set_verbosity_error()
    first = random.randrange(1 << 32)
    print(f"seed {first}")
    compared = 0
    # This one changes the letters of transformers' mark, which it then does not find.
    templates = [template for template in TEMPLATES if "lower" not in template]
    for number, template in enumerate(templates):
        draw = random.Random(first + number)
        folder = tmp_path / str(number)
        folder.mkdir()
        save_folder(draw_pipeline(draw), template, folder)
        theirs, mine = reference(folder), ours(folder, template)
        for _ in range(4):
            begun = draw_text(draw) + draw.choice(("", " ", "\n", " \n "))
            messages = [*SAY, {"role": "assistant", "content": begun}]
            try:
                expected = theirs.apply_chat_template(
                    messages, tokenize=True, return_dict=False, continue_final_message=True
                )
            except ValueError:  # a text of spaces alone, of which nothing is left
                continue
            got = mine.encode_chat(messages, continue_final_message=True)
            assert got == expected, (first + number, template, messages)
            compared += 1
    assert compared > 10


TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ CONTENT }}<|im_end|>\n{% endfor %}"


@pytest.fixture
def chat(tmp_path: Path) -> Tokenizer:
    pipeline = draw_pipeline(random.Random(5))
    template = TURNS.replace("CONTENT", "m.content")
    save_folder(pipeline, template, tmp_path)
    return ours(tmp_path, template)


def test_what_the_text_ends_with(tmp_path: Path) -> None:
    for content, end in (("m.content", "Sure, \n"), ("m.content | trim", "Sure,")):
        folder = tmp_path / end.strip("Sure,\n ").join("x") / content.replace(" ", "")
        folder.mkdir(parents=True)
        template = TURNS.replace("CONTENT", content)
        save_folder(draw_pipeline(random.Random(5)), template, folder)
        tokenizer = ours(folder, template)
        for begun in ("Sure, \n", [{"type": "text", "text": "Sure, \n"}]):
            messages = [*SAY, {"role": "assistant", "content": begun}]
            text = tokenizer.render_chat(messages, continue_final_message=True)
            assert text == f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{end}"


@pytest.mark.parametrize(
    "last",
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": []},
        {"role": "assistant", "content": [{"type": "image"}]},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]},
    ],
)
def test_what_cannot_be_continued(chat: Tokenizer, last: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="continue_final_message"):
        chat.encode_chat([*SAY, last], continue_final_message=True)


def test_a_template_that_leaves_out_the_end_is_told_so(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content[:3] }}{% endfor %}"
    save_folder(draw_pipeline(random.Random(5)), template, tmp_path)
    tokenizer = ours(tmp_path, template)
    with pytest.raises(TemplateError, match="end of the last message"):
        tokenizer.encode_chat(
            [*SAY, {"role": "assistant", "content": "Sure, it"}], continue_final_message=True
        )
