"""Token types that contradict the vocabulary or the chat template, and files without types."""

from __future__ import annotations

import pytest
from loader_gguf_files import (
    F32,
    I32,
    Q8_0_TYPE,
    STRING,
    TINY_TENSORS,
    kv,
    kv_array,
    tiny_gguf,
    write,
)

from halfbyte.engine.text.tokenizer import Tokenizer
from halfbyte.loaders.base import TokenizerSource
from halfbyte.loaders.gguf.checkpoint import GGUFCheckpoint
from halfbyte.loaders.gguf.token_types import checked_types, turn_ends
from halfbyte.loaders.model.report import LoadReport

PREFIX = "tokenizer.ggml."
LETTERS = ["<unk>", "<s>", "</s>", *"▁abcdefhilmnorstu_<>\n|/"]
TURNS = ["<start_of_turn>", "<end_of_turn>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}"
    "<end_of_turn>\n{% endfor %}"
)


def opened(tmp_path, kind: int | None, template: str = TEMPLATE) -> tuple[TokenizerSource, list]:
    """A sentencepiece file whose turn tokens have this type; None leaves all types out."""
    tokens = [*LETTERS, *TURNS]
    types = None if kind is None else [2, 3, 3, *[1] * (len(LETTERS) - 3), kind, kind]
    change = {
        PREFIX + "tokens": kv_array(PREFIX + "tokens", STRING, tokens),
        PREFIX + "scores": kv_array(
            PREFIX + "scores", F32, [-float(i) for i in range(len(tokens))]
        ),
        PREFIX + "token_type": types and kv_array(PREFIX + "token_type", I32, types),
        "tokenizer.chat_template": kv("tokenizer.chat_template", STRING, template),
    }
    tensors = TINY_TENSORS | {"token_embd.weight": ((32, len(tokens)), Q8_0_TYPE)}
    checkpoint = GGUFCheckpoint(write(tmp_path / f"{kind}.gguf", tiny_gguf(change, tensors)))
    found, decisions = checkpoint.tokenizer(), checkpoint.report().decisions
    checkpoint.close()
    return found, decisions


def ids_of(found: TokenizerSource) -> list[int]:
    tokenizer = Tokenizer.from_source(found, len(found.tokens))
    return tokenizer.encode_chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("kind", [1, 4, None])
def test_turn_tokens_of_another_type_are_control_tokens(tmp_path, kind) -> None:
    control, _ = opened(tmp_path, 3)
    wrong, decisions = opened(tmp_path, kind)
    start, end = len(LETTERS), len(LETTERS) + 1
    assert ids_of(wrong) == ids_of(control)
    assert {start, end} <= set(ids_of(control)) and len(ids_of(control)) == 13
    assert end in wrong.eos_ids and start not in wrong.eos_ids
    if kind is None:
        assert any("token_type is missing" in text for text in decisions)
    else:
        assert any("what they are called: <end_of_turn>" in text for text in decisions)
    # A user-defined token is matched whole, so that only its name makes it a control token.
    assert any("writes them out whole: <start_of_turn>" in t for t in decisions) == (kind != 4)


def test_what_the_template_does_not_write_stays_as_it_is(tmp_path) -> None:
    found, _ = opened(tmp_path, 1, "{{ bos_token }}{{ messages[0].content }}")
    assert found.token_types[len(LETTERS) :] == (1, 3)


def types_of(tokens: list[str], types: list[int], template: str = "") -> tuple[int, ...]:
    report = LoadReport(kind="gguf")
    return checked_types(tokens, types, (), {}, [template], report)


def test_names_and_tags() -> None:
    tokens = ["<think>", "</think>", "<tool_call>", "<|user|>", "<b>", "user", "<", "[INST]"]
    template = "<think></think><tool_call><|user|>{{ m.role }}user<[INST]"
    assert types_of(tokens, [1] * 8, template) == (4, 4, 4, 3, 1, 1, 1, 3)
    assert types_of(tokens, [4] * 8, template) == (4,) * 8
    names = ["<|im_end|>", "<|eot_id|>", "<|end|>", "<|fim_prefix|>", "<fim_middle>", "</s>"]
    assert types_of(names, [1] * 6) == (3, 3, 3, 3, 3, 1)
    assert types_of(names, [5] * 6) == (5,) * 6


def test_ends_by_name_and_by_place() -> None:
    tokens = ["</s>", "<|im_end|>", "<|turn_end|>", "<|end_header|>", "<|sep|>"]
    template = "<|end_header|>{{ message['content'] | trim }}<|turn_end|><|sep|>"
    assert turn_ends(tokens, [3] * 5, [template]) == (0, 1, 2)
    assert turn_ends(tokens, [4] * 5, [template]) == (1,)
    joined = "{{ m.content + '<|turn_end|>' }}{{ m.content + '<|sep|>' }}"
    assert turn_ends(tokens, [3] * 5, [joined]) == (0, 1, 2)


def test_messages_do_not_end_a_text_of_many() -> None:
    tokens = ["<|end|>", "<|return|>", "<|call|>", "<|endoftext|>"]
    template = "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}"
    assert turn_ends(tokens, [3] * 4, [template]) == (1, 2, 3)
    assert turn_ends(tokens[:1], [3], [template]) == (0,)


def test_byte_level_files_without_types() -> None:
    report = LoadReport(kind="gguf")
    tokens = ["a", "b", "ab", "<|end|>", "<|x|>", "extra", "abab"]
    types = checked_types(tokens, (), ["a b", "ab ab"], {"bos": 0}, [""], report)
    assert types == (3, 1, 1, 3, 3, 4, 1)
    assert "token_type is missing" in report.decisions[0]
