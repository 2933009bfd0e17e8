"""Tokenizer metadata of GGUF files."""

from __future__ import annotations

from pathlib import Path

import pytest
from loader_gguf_files import (
    BOOL,
    F32,
    I32,
    STRING,
    U8,
    U32,
    kv,
    kv_array,
    refuses,
    tiny_gguf,
    write,
)

from halfbyte.errors import CheckpointError, TokenizerError
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.base import TokenizerSource
from halfbyte.loaders.gguf.checkpoint import GGUFCheckpoint

FIXTURE = Path(__file__).parents[2] / "fixtures" / "gguf-q4_0-spm-llama" / "model.gguf"
PREFIX = "tokenizer.ggml."
BPE = {
    "model": (STRING, "gpt2"),
    "scores": None,
    "merges": (STRING, ["a b", "Ġ a"]),
    "pre": (STRING, "smollm"),
}


def opened(tmp_path, entries: dict[str, tuple | None]) -> GGUFCheckpoint:
    change = {}
    for name, entry in entries.items():
        key = name if name.startswith("tokenizer.") else PREFIX + name
        if entry is None:
            change[key] = None
        elif isinstance(entry[1], list):
            change[key] = kv_array(key, *entry)
        else:
            change[key] = kv(key, *entry)
    return GGUFCheckpoint(write(tmp_path / "m.gguf", tiny_gguf(change)))


def source(tmp_path, entries: dict[str, tuple | None]) -> TokenizerSource:
    checkpoint = opened(tmp_path, entries)
    try:
        return checkpoint.tokenizer()
    finally:
        checkpoint.close()


def test_sentencepiece_fields(tmp_path):
    found = source(tmp_path, {})
    assert found.kind == "gguf_spm"
    assert found.tokens == ("<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "<|eot_id|>")
    assert found.scores == tuple(float(-i) for i in range(8))
    assert found.token_types == (2, 3, 3, 1, 1, 1, 1, 3)
    assert found.merges == ()
    assert found.added_tokens == {"<s>": 1, "</s>": 2, "<|eot_id|>": 7}
    assert found.special_ids == {0, 1, 2, 7}
    assert (found.bos_id, found.eos_ids) == (1, (2, 7))
    assert (found.add_bos, found.add_space_prefix) == (True, True)
    assert found.special_map == {"bos_token": "<s>", "eos_token": "</s>"}
    assert (found.chat_template, found.chat_templates) == (None, {})


@pytest.mark.parametrize("kind,ends", [(3, True), (4, True), (1, True), (5, False)])
def test_a_turn_end_is_a_control_token_unless_it_is_unused(tmp_path, kind, ends):
    found = source(tmp_path, {"token_type": (I32, [2, 3, 3, 1, 1, 1, 1, kind])})
    assert found.eos_ids == ((2, 7) if ends else (2,))
    assert (7 in found.special_ids) is ends


@pytest.mark.parametrize(
    "text",
    [
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<｜end▁of▁sentence｜>",
    ],
)
def test_turn_ends_by_their_text(tmp_path, text):
    tokens = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", text]
    assert source(tmp_path, {"tokens": (STRING, tokens)}).eos_ids == (2, 7)
    unlike = [*tokens[:-1], text + " "]
    assert source(tmp_path, {"tokens": (STRING, unlike)}).eos_ids == (2,)


@pytest.mark.parametrize("name,swallows", [("Phi-3 mini", True), ("my phi3", True), ("x", False)])
def test_phi3_by_its_name(tmp_path, name, swallows):
    """As in llama.cpp: all control and user-defined tokens but three."""
    tokens = ["<unk>", "<s>", "</s>", "▁", "a", "<|endoftext|>", "<|user|>", "<|end|>"]
    change = {PREFIX + "tokens": kv_array(PREFIX + "tokens", STRING, tokens)}
    change[PREFIX + "token_type"] = kv_array(PREFIX + "token_type", I32, [2, 3, 4, 1, 1, 3, 4, 3])
    change["general.name"] = kv("general.name", STRING, name)
    checkpoint = GGUFCheckpoint(write(tmp_path / "m.gguf", tiny_gguf(change)))
    assert checkpoint.tokenizer().rstrip_ids == (frozenset({2, 6, 7}) if swallows else frozenset())
    checkpoint.close()


def test_byte_level_fields(tmp_path):
    found = source(tmp_path, BPE)
    assert (found.kind, found.pre, found.merges) == ("gguf_bpe", "smollm", ("a b", "Ġ a"))
    assert found.scores == ()
    assert (found.add_bos, found.add_space_prefix) == (False, False)


@pytest.mark.parametrize("pre,expected", [("llama-bpe", True), ("qwen2", False), ("tekken", True)])
def test_bos_rule_without_a_flag_follows_the_pre_tokenizer(tmp_path, pre, expected):
    assert source(tmp_path, BPE | {"pre": (STRING, pre)}).add_bos is expected
    off = source(tmp_path, BPE | {"pre": (STRING, pre), "add_bos_token": (BOOL, not expected)})
    assert off.add_bos is not expected


def test_no_bos_token_means_none_is_added(tmp_path):
    found = source(tmp_path, {"bos_token_id": None, "add_bos_token": (BOOL, True)})
    assert (found.bos_id, found.add_bos) == (None, False)


def test_chat_templates(tmp_path):
    found = source(
        tmp_path,
        {
            "tokenizer.chat_template": (STRING, "{{ 'main' }}"),
            "tokenizer.chat_template.tool_use": (STRING, "{{ 'tools' }}"),
            "tokenizer.chat_templates": (STRING, ["tool_use"]),
        },
    )
    assert found.chat_template == "{{ 'main' }}"
    assert found.chat_templates == {"tool_use": "{{ 'tools' }}"}


def test_add_eos_is_reported(tmp_path):
    checkpoint = opened(tmp_path, {"add_eos_token": (BOOL, True)})
    checkpoint.tokenizer()
    assert any("add_eos_token" in text for text in checkpoint.report().warnings)
    checkpoint.close()


def test_suppressed_tokens(tmp_path):
    assert source(tmp_path, {"suppress_tokens": (I32, [4, 6])}).suppressed == {4, 6}
    assert source(tmp_path, {}).suppressed == frozenset()


def test_normalizers_that_do_nothing_are_accepted(tmp_path):
    found = source(
        tmp_path,
        {"remove_extra_whitespaces": (BOOL, False), "precompiled_charsmap": (U8, [])},
    )
    assert found.kind == "gguf_spm"


@pytest.mark.parametrize(
    "entries,error,message",
    [
        (
            {"remove_extra_whitespaces": (BOOL, True)},
            TokenizerError,
            "remove_extra_whitespaces is true; only false is supported",
        ),
        (
            {"normalizer.lowercase": (BOOL, True)},
            TokenizerError,
            "normalizer.lowercase is true; only false is supported",
        ),
        (
            {"precompiled_charsmap": (U8, [1, 2])},
            TokenizerError,
            "precompiled_charsmap is array of 2 uint8; normalization tables are not supported",
        ),
        ({"model": None}, TokenizerError, "tokenizer.ggml.model is None; supported are 'gpt2'"),
        ({"model": (STRING, "bert")}, TokenizerError, "model is 'bert'"),
        ({"scores": None}, TokenizerError, "scores is missing; 'llama' needs it"),
        ({"scores": (F32, [0.0] * 7)}, CheckpointError, "scores has 7 items; expected 8"),
        ({"scores": (F32, [float("nan")] * 8)}, CheckpointError, "scores holds NaN"),
        ({"scores": (STRING, ["0"] * 8)}, CheckpointError, "expected an array of float"),
        ({"token_type": (I32, [1])}, CheckpointError, "token_type has 1 items; expected 8"),
        ({"token_type": (I32, [9] * 8)}, CheckpointError, "values outside 0 to 6"),
        ({"suppress_tokens": (I32, [8])}, CheckpointError, r"\[8\]; expected some ids below 8"),
        ({"suppress_tokens": (I32, [-1])}, CheckpointError, "expected some ids below 8"),
        ({"suppress_tokens": (I32, list(range(8)))}, CheckpointError, "expected some ids below 8"),
        ({"add_bos_token": (U32, 1)}, CheckpointError, "add_bos_token is 1; expected true or fal"),
        ({"tokenizer.chat_template": (U32, 1)}, CheckpointError, "chat_template is 1; expected a"),
    ],
)
def test_bad_tokenizers(tmp_path, entries, error, message):
    checkpoint = opened(tmp_path, entries)
    refuses(checkpoint.tokenizer, error, r"m\.gguf", message)
    checkpoint.close()


def test_a_model_without_tokens_opens_but_has_no_tokenizer(tmp_path):
    checkpoint = GGUFCheckpoint(
        write(
            tmp_path / "m.gguf",
            tiny_gguf(
                {PREFIX + "tokens": None, "llama.vocab_size": kv("llama.vocab_size", U32, 8)}
            ),
        )
    )
    refuses(checkpoint.tokenizer, TokenizerError, "tokenizer.ggml.tokens is missing or empty")
    checkpoint.close()


def test_fixture():
    checkpoint = open_checkpoint(FIXTURE)
    found = checkpoint.tokenizer()
    assert (found.kind, len(found.tokens), len(found.scores)) == ("gguf_spm", 600, 600)
    assert (found.bos_id, found.eos_ids, found.add_bos) == (1, (2,), True)
    assert found.special_map["unk_token"] == "<unk>"
    checkpoint.close()
