from __future__ import annotations

import random

import pytest
from grammar_cases import VOCABULARIES, byte_level, sentencepiece

from halfbyte.engine.grammar.vocabulary import GrammarVocabulary, grammar_vocabulary
from halfbyte.engine.text.tokenizer import Tokenizer

PIECES = ["a", " ", "name", '"', "\n", "é", "日本", "🚀", "\u2581", "<|call|>", "<s>", "  ", "{"]


def words(name: str) -> tuple[GrammarVocabulary, Tokenizer]:
    tokenizer, rows = VOCABULARIES[name]()
    return grammar_vocabulary(tokenizer, rows, tokenizer.eos_ids), tokenizer


@pytest.mark.parametrize("name", VOCABULARIES)
def test_texts_are_cut_into_tokens_of_their_bytes(name: str) -> None:
    vocabulary, tokenizer = words(name)
    for _ in range(200):
        text = "".join(random.choices(PIECES, k=random.randrange(1, 8)))
        ids = vocabulary(text)
        assert b"".join(tokenizer.token_bytes(i) for i in ids) == text.encode()
        assert tokenizer.special_ids.isdisjoint(ids)


def test_a_text_is_cut_as_the_tokenizer_cuts_it() -> None:
    vocabulary, tokenizer = words("byte-level")
    text = '{"name": "Ada", "age": 36}'
    assert vocabulary(text) == tokenizer.encode(text, parse_special=False)


def test_a_text_is_cut_without_the_space_that_goes_in_front() -> None:
    vocabulary, tokenizer = words("sentencepiece")
    (line_break,) = (i for i in range(600) if tokenizer.token_bytes(i) == b"\n")
    other = 0
    for _ in range(200):
        text = "".join(random.choices("aehlnorstw", k=random.randrange(1, 9)))
        ids = tokenizer.encode("\n" + text, add_bos=False, parse_special=False)
        assert vocabulary(text) == ids[ids.index(line_break) + 1 :]
        other += vocabulary(text) != vocabulary._longest_first(text.encode())
    assert other


def test_special_and_forbidden_tokens_stand_for_no_text() -> None:
    tokenizer, rows = byte_level()
    vocabulary = grammar_vocabulary(tokenizer, rows, tokenizer.eos_ids)
    assert vocabulary.special_token_ids == sorted(tokenizer.special_ids)
    tokenizer.suppressed = frozenset({70})
    try:
        hidden = grammar_vocabulary(tokenizer, rows, tokenizer.eos_ids)
    finally:
        tokenizer.suppressed = frozenset()
    assert hidden.tokens[70] == b"" != vocabulary.tokens[70]
    assert hidden.tokens[:70] == vocabulary.tokens[:70]


def test_a_byte_that_utf_8_has_not_is_no_text() -> None:
    tokenizer, rows = sentencepiece()
    pieces = [tokenizer.token_bytes(i) for i in range(rows)]
    vocabulary = grammar_vocabulary(tokenizer, rows, tokenizer.eos_ids)
    assert b"\xff" in pieces and b"\xff" not in vocabulary.tokens


def test_the_longest_token_is_taken_first_without_a_tokenizer() -> None:
    vocabulary = GrammarVocabulary([b"a", b"ab", b"b", b"abc", b"</s>", b""], [], [4])
    assert vocabulary("ababcb") == [1, 3, 2]
    assert vocabulary("abx") == [1]  # it ends where no token fits
    assert vocabulary.eos_token_id == 4
