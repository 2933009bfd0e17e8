"""Tokenizers of folders and files whose parts say different things."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tokenizers
from tokenizer_cases import SPM_FOLDER, SPM_IDS, as_gguf, folder_reference, random_texts, train

from halfbyte.engine.text.tokenizer import Tokenizer
from halfbyte.errors import RequestError
from halfbyte.loaders.base import AddedFlags, TokenizerSource

# Ids by transformers 5.23 of a folder with the fixture's tokenizer.model and LlamaTokenizer.
LEGACY = [
    ("<s>a</s> b", [1, 262, 2, 274], [1, 550, 2, 274]),
    ("a<s>b", [262, 1, 274], [262, 1, 564]),
    (" a", [262], [262]),
    ("a  b<s>  c", [262, 267, 564, 1, 267, 558], [262, 267, 564, 1, 267, 558]),
]


def test_legacy_decides_about_the_space_after_a_special_token() -> None:
    source = TokenizerSource(kind="spm", path=SPM_FOLDER / "tokenizer.model", **SPM_IDS)
    always = Tokenizer.from_source(source, 600)
    first = Tokenizer.from_source(dataclasses.replace(source, prefix_first_only=True), 600)
    never = Tokenizer.from_source(dataclasses.replace(source, add_space_prefix=False), 600)
    for text, legacy, modern in LEGACY:
        assert always.encode(text, add_bos=False) == legacy, text
        assert first.encode(text, add_bos=False) == modern, text
    references = [(folder_reference(name), name) for name in ("always", "first", "never")]
    for text in [*random_texts(100), *(text for text, _, _ in LEGACY)]:
        for (reference, name), tokenizer in zip(references, (always, first, never), strict=True):
            expected = reference.encode(text, add_special_tokens=False).ids
            assert tokenizer.encode(text, add_bos=False) == expected, (name, text)


def test_an_added_token_without_a_row_is_text(tmp_path: Path) -> None:
    trained = train()
    bpe_source = as_gguf(trained)
    count = len(bpe_source.tokens)
    path = tmp_path / "tokenizer.json"
    grown = tokenizers.Tokenizer.from_str(trained.to_str())
    grown.add_special_tokens(["[PAD]"])
    grown.save(str(path))
    as_file = TokenizerSource(
        "hf_json", path, added_tokens={"[PAD]": count}, special_ids=frozenset({count})
    )
    as_gguf_file = dataclasses.replace(
        bpe_source,
        tokens=(*bpe_source.tokens, "[PAD]"),
        token_types=(*bpe_source.token_types, 3),
        added_tokens={**bpe_source.added_tokens, "[PAD]": count},
        special_ids=bpe_source.special_ids | {count},
    )
    for source in (as_file, as_gguf_file):
        with_row = Tokenizer.from_source(source, count + 1)
        assert with_row.encode("a[PAD]", add_bos=False)[1:] == [count]
        without = Tokenizer.from_source(source, count)
        ids = without.encode("a[PAD]<think>", add_bos=False)
        assert ids == trained.encode("a[PAD]<think>").ids and max(ids) == count - 1
        assert without.vocab_size == count and count not in without.special_ids
        with pytest.raises(RequestError, match=f"token id {count} is unknown"):
            without.decode([count])


@pytest.mark.parametrize("name", ["single_word", "lstrip", "rstrip", "normalized"])
def test_flags_of_other_files_decide_how_a_token_is_matched(tmp_path: Path, name: str) -> None:
    trained = train()
    path = tmp_path / "tokenizer.json"
    trained.save(str(path))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {name: True}
    known = trained.get_vocab()["<|im_end|>"]
    source = TokenizerSource(
        "hf_json",
        path,
        added_tokens={"<|im_end|>": known},
        added_flags={"<|im_end|>": AddedFlags(**flags)},
        special_ids=frozenset({known}),
    )
    reference = tokenizers.Tokenizer.from_file(str(path))
    reference.add_tokens([tokenizers.AddedToken("<|im_end|>", special=True, **flags)])
    tokenizer = Tokenizer.from_source(source, 1024)
    for text in ("a<|im_end|>b", "a <|im_end|> b", " <|im_end|>  <|im_end|> "):
        assert tokenizer.encode(text) == reference.encode(text).ids, text
