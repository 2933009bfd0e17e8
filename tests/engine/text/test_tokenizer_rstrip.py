"""Special tokens that swallow the whitespace after them (Phi-3), in both kinds of GGUF files."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tokenizers
from tokenizer_cases import SPECIALS, as_gguf, random_texts, spm_as_gguf, train

from halfbyte.engine.text.tokenizer import Tokenizer

TURNS = ("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>")
# Ids by llama.cpp's own library for the fixture's vocabulary with TURNS after it as 600 to 603,
# in a file called "My Phi-3 mini", and in one of another name.
LLAMA_CPP = [
    (
        "<|user|>\n Hi there<|end|>\n\n<|assistant|>\n",
        [602, 544, 75, 552, 261, 266, 601, 603],
        [602, 544, 13, 544, 75, 552, 261, 266, 601, 544, 13, 13, 603, 544, 13],
    ),
    ("a<|end|> b", [262, 601, 274], [262, 601, 267, 564]),
    ("x <|end|>  \t\n", [340, 544, 601], [340, 544, 601, 267, 544, 12, 13]),
    ("<|endoftext|> b", [600, 267, 564], [600, 267, 564]),
    ("<s> a", [1, 544, 262], [1, 544, 262]),
    ("</s>  b", [2, 274], [2, 267, 274]),
    ("<unk> a", [0, 544, 262], [0, 544, 262]),
    ("<|user|>  <|end|> <|user|>", [602, 601, 602], [602, 267, 544, 601, 267, 602]),
    ("<|assistant|>\r\n\x0bthe", [603, 261], [603, 544, 16, 13, 14, 546, 260]),
]


def spm(swallows: bool) -> Tokenizer:
    """The sentencepiece fixture with Phi-3's tokens."""
    plain = spm_as_gguf()
    ids = {text: len(plain.tokens) + i for i, text in enumerate(TURNS)}
    source = dataclasses.replace(
        plain,
        tokens=(*plain.tokens, *TURNS),
        scores=(*plain.scores, *[-1000.0] * 4),
        token_types=(*plain.token_types, *[3] * 4),
        special_ids=plain.special_ids | set(ids.values()),
        rstrip_ids=frozenset({2, *ids.values()} - {600}) if swallows else frozenset(),
    )
    return Tokenizer.from_source(source, len(source.tokens))


def test_sentencepiece_ids_equal_those_of_llama_cpp() -> None:
    phi3, other = spm(True), spm(False)
    for text, swallowed, kept in LLAMA_CPP:
        assert phi3.encode(text, add_bos=False) == swallowed
        assert other.encode(text, add_bos=False) == kept


def test_what_a_user_types_is_not_swallowed_unless_a_token_stands_before_it() -> None:
    phi3 = spm(True)
    typed = phi3.encode("a<|end|> b", add_bos=False, parse_special=False)
    assert 601 not in typed
    assert phi3.decode(typed) == "a<|end|> b"


@pytest.mark.parametrize("parse_special", [True, False])
def test_byte_level_ids_equal_the_original_pipeline(parse_special: bool) -> None:
    original = train()
    vocab = original.get_vocab()
    ends = frozenset({vocab["<|im_end|>"], vocab["<|im_start|>"]})
    source = dataclasses.replace(as_gguf(original), rstrip_ids=ends)
    ours = Tokenizer.from_source(source, len(vocab))
    state = json.loads(original.to_str())
    for token in state["added_tokens"]:
        token["rstrip"] = token["id"] in ends
    theirs = tokenizers.Tokenizer.from_str(json.dumps(state))
    swallowed = 0
    for text in [*random_texts(300), "a<|im_end|> b"]:
        while not parse_special and any(special in text for special in SPECIALS):
            # Once is not enough: what stands around a special text may be two halves of another.
            for special in SPECIALS:
                text = text.replace(special, "")
        want = theirs.encode(text, add_special_tokens=False).ids
        swallowed += want != original.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_bos=False, parse_special=parse_special) == want
    assert (swallowed > 0) is parse_special
