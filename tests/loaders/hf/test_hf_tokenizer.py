"""Tokenizer files of Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from loader_gguf_files import refuses
from loader_hf_files import tiny_folder

from halfbyte.errors import CheckpointError, TokenizerError
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.base import AddedFlags, TokenizerSource
from halfbyte.loaders.hf.folder import HFFolderCheckpoint

FIXTURE = Path(__file__).parents[2] / "fixtures" / "fp16-llama-spm"


def added(*tokens: tuple[int, str, bool]) -> list[dict]:
    return [{"id": i, "content": text, "special": special} for i, text, special in tokens]


def template(*pieces: str | None) -> dict:
    """A post-processor; None stands for the text."""
    single = [
        {"Sequence": {"id": "A", "type_id": 0}}
        if piece is None
        else {"SpecialToken": {"id": piece, "type_id": 0}}
        for piece in pieces
    ]
    return {"type": "TemplateProcessing", "single": single}


def tokenizer_json(**more) -> dict:
    return {
        "added_tokens": added((1, "<s>", True), (2, "</s>", True), (5, "<tool>", False)),
        "model": {"type": "BPE", "vocab": {"a": 0, "<s>": 1, "</s>": 2, "<turn>": 3}},
        **more,
    }


def opened(path: Path, config: dict | None = None, **files) -> HFFolderCheckpoint:
    return HFFolderCheckpoint(tiny_folder(path, config, **files))


def source(path: Path, config: dict | None = None, **files) -> TokenizerSource:
    checkpoint = opened(path, config, **files)
    try:
        return checkpoint.tokenizer()
    finally:
        checkpoint.close()


def test_tokenizer_json(tmp_path):
    found = source(
        tmp_path / "m",
        tokenizer=tokenizer_json(post_processor=template("<s>", None)),
        tokenizer_config={"bos_token": "<s>", "eos_token": {"content": "<turn>"}},
        generation_config={"eos_token_id": [2, 4]},
    )
    assert found.kind == "hf_json"
    assert found.path == (tmp_path / "m" / "tokenizer.json").resolve()
    assert found.added_tokens == {"<s>": 1, "</s>": 2, "<tool>": 5}
    # generation_config, then config, then the tokenizer's own eos token.
    assert found.eos_ids == (2, 4, 3)
    assert found.special_ids == {1, 2, 3, 4}
    assert (found.bos_id, found.add_bos) == (1, True)
    assert found.special_map == {"bos_token": "<s>", "eos_token": "<turn>"}


@pytest.mark.parametrize(
    "step,settings,expected",
    [
        (template("<s>", None), {"bos_token": "<s>"}, True),
        (template(None), {"bos_token": "<s>"}, False),
        ({"type": "ByteLevel"}, {"bos_token": "<s>"}, False),
        (
            {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template("<s>", None)]},
            {"bos_token": "<s>"},
            True,
        ),
        (None, {"bos_token": "<s>", "add_bos_token": True}, True),
        (None, {"bos_token": "<s>"}, False),
        (template("<s>", None), {"bos_token": "<s>", "add_bos_token": False}, True),
    ],
)
def test_bos_rule_is_that_of_the_post_processor(tmp_path, step, settings, expected):
    found = source(
        tmp_path / "m",
        tokenizer=tokenizer_json(post_processor=step),
        tokenizer_config=settings,
    )
    assert found.add_bos is expected


def test_post_processors_that_add_other_tokens_are_reported(tmp_path):
    checkpoint = opened(
        tmp_path / "m",
        tokenizer=tokenizer_json(post_processor=template("<s>", None, "</s>")),
        tokenizer_config={"bos_token": "<s>", "add_eos_token": True},
    )
    assert checkpoint.tokenizer().add_bos
    warnings = checkpoint.report().warnings
    assert any("adds tokens other than bos" in text for text in warnings)
    assert any("add_eos_token is set" in text for text in warnings)
    checkpoint.close()


def test_null_bos_means_none_is_added(tmp_path):
    found = source(
        tmp_path / "m",
        {"bos_token_id": None},
        tokenizer=tokenizer_json(),
        tokenizer_config={"bos_token": None, "add_bos_token": True},
    )
    assert (found.bos_id, found.add_bos) == (None, False)


def test_added_tokens_from_all_places(tmp_path):
    found = source(
        tmp_path / "m",
        tokenizer=tokenizer_json(),
        tokenizer_config={
            "added_tokens_decoder": {
                "2": {"content": "</s>", "special": True},
                "4": {"content": "<x>", "special": True},
            }
        },
        added_tokens={"<y>": 3},
        special_tokens_map={"unk_token": "<u>", "bos_token": "<s>"},
    )
    assert found.added_tokens == {"<s>": 1, "</s>": 2, "<tool>": 5, "<x>": 4, "<y>": 3}
    assert 4 in found.special_ids
    assert found.special_map == {"unk_token": "<u>", "bos_token": "<s>"}


def test_sentencepiece_model(tmp_path):
    folder = tiny_folder(
        tmp_path / "m",
        tokenizer_config={
            "bos_token": "<s>",
            "added_tokens_decoder": {"1": {"content": "<s>", "special": True}},
        },
    )
    (folder / "tokenizer.model").write_bytes(b"protobuf")
    checkpoint = open_checkpoint(folder)
    found = checkpoint.tokenizer()
    assert (found.kind, found.path) == ("spm", (folder / "tokenizer.model").resolve())
    assert (found.bos_id, found.eos_ids, found.add_bos) == (1, (2,), True)
    assert found.special_ids == {1, 2}
    checkpoint.close()


def test_tokenizer_json_is_preferred():
    checkpoint = open_checkpoint(FIXTURE)
    found = checkpoint.tokenizer()
    assert found.kind == "hf_json"
    assert found.added_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert (found.bos_id, found.eos_ids, found.add_bos) == (1, (2,), True)
    checkpoint.close()


def test_chat_templates(tmp_path):
    named = [
        {"name": "default", "template": "{{ 1 }}"},
        {"name": "tool_use", "template": "{{ 2 }}"},
    ]
    tokenizer = tokenizer_json()
    one = source(tmp_path / "a", tokenizer=tokenizer, tokenizer_config={"chat_template": "{{ 0 }}"})
    assert (one.chat_template, one.chat_templates) == ("{{ 0 }}", {})
    two = source(tmp_path / "b", tokenizer=tokenizer, tokenizer_config={"chat_template": named})
    assert (two.chat_template, two.chat_templates) == ("{{ 1 }}", {"tool_use": "{{ 2 }}"})
    folder = tmp_path / "b"
    (folder / "chat_template.jinja").write_text("{{ 'file' }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ 'rag' }}")
    checkpoint = open_checkpoint(folder)
    found = checkpoint.tokenizer()
    assert found.chat_template == "{{ 'file' }}"  # a file wins
    assert found.chat_templates == {"tool_use": "{{ 2 }}", "rag": "{{ 'rag' }}"}
    checkpoint.close()


def test_templates_may_not_be_links_out(tmp_path):
    (tmp_path / "secret.jinja").write_text("secret")
    folder = tiny_folder(tmp_path / "m", tokenizer=tokenizer_json())
    (folder / "chat_template.jinja").symlink_to("../secret.jinja")
    checkpoint = open_checkpoint(folder)
    refuses(checkpoint.tokenizer, CheckpointError, "outside the model folder")
    (folder / "chat_template.jinja").unlink()
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "x.jinja").write_text("secret")
    (folder / "additional_chat_templates").symlink_to("../templates")
    refuses(checkpoint.tokenizer, CheckpointError, "a link out of the model folder")
    checkpoint.close()


@pytest.mark.parametrize(
    "files,error,message",
    [
        ({}, TokenizerError, "has neither tokenizer.json nor tokenizer.model"),
        ({"tokenizer": {"added_tokens": 3}}, CheckpointError, "added_tokens is 3; expected a list"),
        (
            {"tokenizer": {"added_tokens": ["x"]}},
            CheckpointError,
            "added token is 'x'; expected an",
        ),
        (
            {"tokenizer": {"added_tokens": [{"content": "x"}]}},
            CheckpointError,
            "added token id is missing",
        ),
        (
            {"tokenizer": {"added_tokens": added((1, "x", True), (2, "x", True))}},
            CheckpointError,
            "added token 'x' has id 2; elsewhere it has 1",
        ),
        (
            {"tokenizer": {}, "tokenizer_config": {"bos_token": 3}},
            CheckpointError,
            "bos_token is 3; expected a string",
        ),
        (
            {"tokenizer": {}, "tokenizer_config": {"chat_template": 3}},
            CheckpointError,
            "chat_template is 3; expected a string",
        ),
        (
            {"tokenizer": {}, "tokenizer_config": {"added_tokens_decoder": {"-1": {}}}},
            CheckpointError,
            "added_tokens_decoder is '-1'; expected token ids as keys",
        ),
    ],
)
def test_bad_tokenizer_files(tmp_path, files, error, message):
    checkpoint = opened(tmp_path / "m", **files)
    refuses(checkpoint.tokenizer, error, message)
    checkpoint.close()


def test_deeply_nested_tokenizer_json(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    (folder / "tokenizer.json").write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    checkpoint = open_checkpoint(folder)
    refuses(checkpoint.tokenizer, CheckpointError, "nested over 64 levels deep")
    checkpoint.close()


def test_templates_have_a_size_limit(tmp_path):
    big = "x" * ((1 << 20) + 1)
    folder = tiny_folder(tmp_path / "m", tokenizer=tokenizer_json())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": big}))
    checkpoint = open_checkpoint(folder)
    refuses(checkpoint.tokenizer, TokenizerError, "chat template 'default' has 1048577 characters")
    checkpoint.close()


def test_legacy_and_flags_of_added_tokens(tmp_path):
    decoder = {"7": {"content": "<x>", "lstrip": True, "special": True}, "6": {"content": "y"}}
    config = {"added_tokens_decoder": decoder}
    found = source(tmp_path / "a", tokenizer=tokenizer_json(), tokenizer_config=config)
    assert found.added_flags == {
        "<x>": AddedFlags(single_word=False, lstrip=True, rstrip=False, normalized=False),
        "y": AddedFlags(single_word=False, lstrip=False, rstrip=False, normalized=True),
    }
    assert found.prefix_first_only
    for legacy in (True, False):
        config = {"legacy": legacy}
        found = source(tmp_path / str(legacy), tokenizer=tokenizer_json(), tokenizer_config=config)
        assert found.prefix_first_only is not legacy


def test_added_tokens_without_a_row_are_reported(tmp_path):
    more = added((5, "<in>", True), (6, "[PAD]", True))
    checkpoint = opened(tmp_path / "m", tokenizer=tokenizer_json(added_tokens=more))
    rows = checkpoint.config.vocab_size
    checkpoint.tokenizer()
    decisions = [t for t in checkpoint.report().decisions if "without a row" in t]
    checkpoint.close()
    assert rows == 6 and len(decisions) == 1 and "of 6: '[PAD]'" in decisions[0]
