"""Ids of chats equal transformers', over pipelines x flags x templates x messages."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import transformers
from pipeline_cases import OTHER, TEMPLATES, draw_pipeline, draw_text, reference, save_folder

from halfbyte.engine.text.tokenizer import Tokenizer
from halfbyte.loaders.base import TokenizerSource

Message = dict[str, str]


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.logging.set_verbosity_error()


def seeds(count: int) -> list[int]:
    first = random.randrange(1 << 32)
    print(f"seed {first}")
    return list(range(first, first + count))


def ours(folder: Path, template: str) -> Tokenizer:
    source = TokenizerSource("hf_json", folder / "tokenizer.json", chat_template=template)
    return Tokenizer.from_source(source, 1 << 16)


def draw_messages(draw: random.Random, whole: tuple[str, ...] = ()) -> list[Message]:
    count = draw.randrange(1, 4)
    return [{"role": "user", "content": draw_text(draw, whole)} for _ in range(count)]


def check_plain(seed: int, folder: Path, chats: int) -> None:
    """No special token stands whole in a message: the ids are transformers'."""
    draw = random.Random(seed)
    pipeline, template = draw_pipeline(draw), draw.choice(TEMPLATES)
    save_folder(pipeline, template, folder)
    theirs, mine = reference(folder), ours(folder, template)
    for _ in range(chats):
        messages = draw_messages(draw)
        expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert mine.encode_chat(messages) == expected, (seed, template, messages)


def check_typed(seed: int, folder: Path, chats: int) -> None:
    """Users type a special token: it is text, as in a pipeline that does not know it."""
    full = draw_pipeline(random.Random(seed), with_other=True)
    draw = random.Random(seed)
    without, template = draw_pipeline(draw), draw.choice(TEMPLATES)
    theirs = reference(save_folder(without, template, folder / "without"))
    mine = ours(save_folder(full, template, folder / "full"), template)
    other = full.token_to_id(OTHER)
    for _ in range(chats):
        messages = draw_messages(draw, (OTHER,))
        ids = mine.encode_chat(messages)
        expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert ids == expected and other not in ids, (seed, template, messages)


def test_chats_equal_those_of_transformers(tmp_path: Path) -> None:
    for seed in seeds(12):
        check_plain(seed, tmp_path, 6)


def test_a_special_token_in_a_message_is_text_and_all_else_is_equal(tmp_path: Path) -> None:
    for seed in seeds(8):
        check_typed(seed, tmp_path, 6)


@pytest.mark.slow
def test_chats_of_many_pipelines(tmp_path: Path) -> None:
    for seed in seeds(600):
        check_plain(seed, tmp_path, 12)
        check_typed(seed, tmp_path, 6)


# Llama 2's pipeline: the special tokens are looked for in normalized text.
LLAMA2 = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {
            "id": i,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": True,
            "special": True,
        }
        for i, text in enumerate(("<unk>", "<s>", "</s>"))
    ],
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ],
    },
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
}


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ '<s>[INST] ' + m.content + ' [/INST]' }}{% endfor %}",
        "{% for m in messages %}{{ '<s>' + m.content + '</s>' }}{% endfor %}",
    ],
)
def test_normalized_specials_beside_parts_of_specials(tmp_path: Path, template: str) -> None:
    letters = [*(f"<0x{b:02X}>" for b in range(256)), *"\u2581abcINST[]/<>s "]
    vocab = {t: i for i, t in enumerate(dict.fromkeys(["<unk>", "<s>", "</s>", *letters]))}
    model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>"}
    model |= {"fuse_unk": True, "byte_fallback": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**LLAMA2, "model": model}))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs, mine = reference(tmp_path), ours(tmp_path, template)
    for content in ("a", "<", "/s>", "a <", "s> b", "</s", " <s", "s>", "a < b > c", "<  "):
        messages = [{"role": "user", "content": content}] * 2
        expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert mine.encode_chat(messages) == expected, content
    for content in ("<s>", "a</s>b", "</s> <s>", "< s></s>"):
        messages = [{"role": "user", "content": content}]
        plain = [{"role": "user", "content": "a"}]
        wanted = [i for i in mine.encode_chat(plain) if i in (1, 2)]
        assert [i for i in mine.encode_chat(messages) if i in (1, 2)] == wanted, content
