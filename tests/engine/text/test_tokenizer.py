"""Tokenizer: exact ids of every kind of vocabulary and exact text back."""

from __future__ import annotations

import dataclasses
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from tokenizer_cases import (
    SPM_FOLDER,
    SPM_GGUF,
    SPM_IDS,
    as_gguf,
    folder_reference,
    random_texts,
    spm_as_gguf,
    train,
)
from tokenizers import Regex, pre_tokenizers

from halfbyte.engine.text.detokenizer import Detokenizer
from halfbyte.engine.text.tokenizer import Tokenizer
from halfbyte.engine.text.tokenizer_pre import pre_tokenizer
from halfbyte.errors import RequestError, TokenizerError
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.base import TokenizerSource
from halfbyte.loaders.store.model_store import ensure_model


@pytest.fixture(scope="module")
def trained() -> tokenizers.Tokenizer:
    return train()


@pytest.fixture(scope="module")
def bpe_source(trained: tokenizers.Tokenizer) -> TokenizerSource:
    return as_gguf(trained)


@pytest.fixture(scope="module")
def bpe(bpe_source: TokenizerSource) -> Tokenizer:
    return Tokenizer.from_source(bpe_source, 1024)


@pytest.fixture(scope="module")
def spm_source() -> TokenizerSource:
    return spm_as_gguf()


@pytest.fixture(scope="module")
def spm_kinds(spm_source: TokenizerSource) -> dict[str, Tokenizer]:
    """One vocabulary in its three forms."""
    sources = {
        "gguf_spm": spm_source,
        "spm": TokenizerSource(kind="spm", path=SPM_FOLDER / "tokenizer.model", **SPM_IDS),
        "hf_json": TokenizerSource(kind="hf_json", path=SPM_FOLDER / "tokenizer.json", **SPM_IDS),
    }
    return {name: Tokenizer.from_source(source, 600) for name, source in sources.items()}


def test_gguf_bpe_ids_equal_the_original_pipeline(
    bpe: Tokenizer, trained: tokenizers.Tokenizer
) -> None:
    for text in random_texts(300):
        assert bpe.encode(text) == trained.encode(text, add_special_tokens=False).ids, repr(text)


def test_hf_json_ids_equal_gguf_bpe(
    tmp_path: Path, bpe: Tokenizer, bpe_source: TokenizerSource, trained: tokenizers.Tokenizer
) -> None:
    path = tmp_path / "tokenizer.json"
    trained.enable_truncation(4)
    trained.enable_padding(length=64)
    try:
        trained.save(str(path))
    finally:
        trained.no_truncation()
        trained.no_padding()
    source = dataclasses.replace(bpe_source, kind="hf_json", path=path, tokens=(), token_types=())
    other = Tokenizer.from_source(source, 1024)
    assert (other.vocab_size, other.special_ids) == (bpe.vocab_size, bpe.special_ids)
    for text in random_texts(100):
        for flag in (True, False):
            assert other.encode(text, parse_special=flag) == bpe.encode(text, parse_special=flag)
    assert all(other.token_bytes(i) == bpe.token_bytes(i) for i in range(bpe.vocab_size))


def test_three_sentencepiece_forms_agree_with_the_reference(
    spm_kinds: dict[str, Tokenizer],
) -> None:
    reference = tokenizers.Tokenizer.from_file(str(SPM_GGUF / "reference_tokenizer.json"))
    folder = folder_reference("always")
    for text in [*random_texts(200), "", " ", "<s>a</s> b", "a<s> b", "x  y"]:
        for name, tokenizer in spm_kinds.items():
            by = folder if name == "spm" else reference
            expected = by.encode(text, add_special_tokens=False).ids
            ids = tokenizer.encode(text, add_bos=False)
            assert ids == expected, (name, text)
            assert tokenizer.decode(ids) == reference.decode(expected), (name, text)


def test_gguf_spm_pieces_equal_sentencepiece(spm_kinds: dict[str, Tokenizer]) -> None:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(SPM_FOLDER / "tokenizer.model"))
    for text in random_texts(200):
        # It knows no special tokens in text. A folder's prompt that begins with a space gets none.
        for name, part in (("gguf_spm", text), ("spm", text.lstrip(" \u2581"))):
            ids = spm_kinds[name].encode(part, add_bos=False, parse_special=False)
            assert ids == processor.encode(part), (name, text)


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "a 12  3x", "a| |1|2|  |3|x"),
        ("gpt-2", "it's 12  3x\n\ny", "it|'s| 12| | 3|x|\n|\n|y"),
        ("llama-bpe", "it'S 12345 #hi\n\n  z", "it|'S| |123|45| #|hi|\n\n| | z"),
        ("qwen2", "I'm 123\r\n\ta", "I|'m| |1|2|3|\r\n|\ta"),
        ("tekken", "HelloWorld XMLFile 12/\n", "Hello|World| XMLFile| |1|2|/\n"),
        ("gpt-4o", "HelloWorld's 1234", "Hello|World's| |123|4"),
        ("deepseek-v3", "a1234 b東京c .x", "a|123|4| b|東京|c| .|x"),
        ("deepseek-coder", "a b\n12", "a| b|\n|1|2"),
        ("default", "a+b 1234", "a|+|b| |123|4"),
        ("falcon", "a`b 1234", "a|`|b| |123|4"),
        ("bloom", "a b, c", "a| b|,| c"),
    ],
)
def test_pre_tokenizers_split_as_llama_cpp_does(pre: str, text: str, pieces: str) -> None:
    rule = pre_tokenizer(pre)
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in rule.patterns]
    got = pre_tokenizers.Sequence(steps).pre_tokenize_str(text)
    assert "|".join(piece for piece, _ in got) == pieces


def test_whole_words_skip_merging_where_the_model_says_so(bpe_source: TokenizerSource) -> None:
    count = len(bpe_source.tokens)
    extended = {
        "tokens": (*bpe_source.tokens, "Ġzqzq"),
        "token_types": (*bpe_source.token_types, 1),
    }
    merging = Tokenizer.from_source(dataclasses.replace(bpe_source, **extended), 1024)
    whole = Tokenizer.from_source(
        dataclasses.replace(bpe_source, pre="llama-bpe", **extended), 1024
    )
    assert whole.encode("a zqzq")[1:] == [count]
    assert count not in merging.encode("a zqzq")


def test_bytes_without_a_token_are_dropped_and_keep_neighbours_apart(
    bpe_source: TokenizerSource, bpe: Tokenizer
) -> None:
    assert len(bpe.encode("the")) < len(bpe.encode("t")) + len(bpe.encode("he"))
    index = bpe_source.tokens.index("Ā")  # byte 0
    tokens = list(bpe_source.tokens)
    tokens[index] = "[unused]"
    source = dataclasses.replace(bpe_source, tokens=tuple(tokens))
    ids = Tokenizer.from_source(source, len(tokens)).encode("t\x00he")
    assert ids == bpe.encode("t") + bpe.encode("he")


def test_user_defined_tokens_are_words_and_control_tokens_are_not(bpe: Tokenizer) -> None:
    think = bpe.encode("<think>")
    assert len(think) == 1 and think[0] not in bpe.special_ids
    assert bpe.encode("<think>", parse_special=False) == think
    plain = bpe.encode("a<|im_end|>b", parse_special=False)
    assert not set(plain) & bpe.special_ids
    assert bpe.decode(plain) == "a<|im_end|>b"


def test_bos_rule(spm_kinds: dict[str, Tokenizer], bpe_source: TokenizerSource) -> None:
    spm = spm_kinds["gguf_spm"]
    assert spm.encode("hi")[0] == 1 and spm.encode("hi", add_bos=False)[0] != 1
    assert spm.encode("<s>hi")[:2] == [1, spm.encode("hi")[1]]
    assert spm.encode("<s>hi", add_bos=True)[:2] == [1, 1]
    assert spm.encode("") == [1]
    none = Tokenizer.from_source(dataclasses.replace(bpe_source, bos_id=None), 1024)
    assert none.encode("") == []
    with pytest.raises(RequestError, match="no begin-of-text"):
        none.encode("hi", add_bos=True)


def test_decode_bytes_and_leading_space(spm_kinds: dict[str, Tokenizer], bpe: Tokenizer) -> None:
    for name, spm in spm_kinds.items():
        space = "" if name == "spm" else " "  # a folder's prompt has one space in front, not two
        ids = spm.encode(" Hello  wörld €")
        assert spm.decode(ids) == f"{space}Hello  wörld €", name
        assert spm.decode(ids, skip_special=False).startswith("<s>"), name
        # After a prompt the vocabulary's space is text.
        text = f"{space} Hello  wörld €"
        assert spm.decode(ids[1:], continuation=True) == text, name
        assert b"".join(map(spm.token_bytes, ids[1:])) == text.encode(), name
        assert spm.token_bytes(3 + 0xE4) == b"\xe4", name
    for text in random_texts(50):
        assert bpe.decode(bpe.encode(text), skip_special=False) == text
    rocket = bpe.encode("🦜")
    assert len(rocket) > 1 and bpe.decode(rocket[:1]) == "\ufffd"


def test_streamed_text_equals_decoded_text(spm_kinds: dict[str, Tokenizer], bpe: Tokenizer) -> None:
    for tokenizer in (*spm_kinds.values(), bpe):
        for text in random_texts(40):
            ids = tokenizer.encode(text)
            detokenizer = Detokenizer(tokenizer)
            streamed = "".join([detokenizer.feed([i]) for i in ids]) + detokenizer.finish()
            assert streamed == tokenizer.decode(ids, continuation=True)


def test_ids_beyond_the_vocabulary(bpe: Tokenizer) -> None:
    assert bpe.vocab_size < 1024 and bpe.token_bytes(1023) == b""
    assert bpe.decode([1023]) == ""
    for bad in (1024, -1):
        with pytest.raises(RequestError, match=rf"{bad}.*0 to 1023"):
            bpe.decode([bad])


def test_vocabulary_larger_than_the_embedding_is_refused(
    bpe_source: TokenizerSource, trained: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    count = len(bpe_source.tokens)  # the last one, <think>, is an added token
    assert Tokenizer.from_source(bpe_source, count).vocab_size == count
    path = tmp_path / "tokenizer.json"
    trained.save(str(path))
    as_file = dataclasses.replace(bpe_source, kind="hf_json", path=path, tokens=(), token_types=())
    for source in (bpe_source, as_file):
        with pytest.raises(
            TokenizerError, match=rf"knows {count - 1} ids.*{count - 2} rows|{count} ids"
        ):
            Tokenizer.from_source(source, count - 2)
    with pytest.raises(TokenizerError, match="end-of-text id 5000 is outside"):
        Tokenizer.from_source(dataclasses.replace(bpe_source, eos_ids=(5000,)), 1024)


def test_bad_vocabularies_are_typed_errors(
    tmp_path: Path, bpe_source: TokenizerSource, spm_source: TokenizerSource
) -> None:
    def refuses(match: str, source: TokenizerSource, **changes: object) -> None:
        with pytest.raises(TokenizerError, match=match):
            Tokenizer.from_source(dataclasses.replace(source, **changes), 1024)

    tokens, types = bpe_source.tokens, bpe_source.token_types
    refuses("'frobnicate'; known pre-tokenizers are .*smollm", bpe_source, pre="frobnicate")
    refuses("tokenizer.ggml.pre is missing", bpe_source, pre="")
    refuses("lists .* more than once", bpe_source, tokens=(*tokens[:-1], tokens[50]))
    refuses("is empty", bpe_source, tokens=(), added_tokens={}, eos_ids=(), bos_id=None)
    refuses(r"merges\[0\] is 'ab'; expected two parts", bpe_source, merges=("ab",))
    refuses("merges does not fit", bpe_source, merges=("qq zz",))
    refuses("kind is 'wordpiece'", bpe_source, kind="wordpiece")
    refuses("scores has 1 entries; expected 600", spm_source, scores=(0.0,))
    bad_types = (9, *spm_source.token_types[1:])
    refuses("token_type has 9; expected values from 0 to 6", spm_source, token_types=bad_types)
    refuses("sentencepiece refuses it", spm_source, tokens=("a",), scores=(0.0,), token_types=(6,))
    assert len(types) == len(tokens)
    path = tmp_path / "tokenizer.json"
    for kind in ("hf_json", "spm"):
        refuses("missing or not a file", TokenizerSource(kind=kind, path=tmp_path / "none"))
        refuses("has no path", TokenizerSource(kind=kind))
        path.write_bytes(b"")
        refuses("has 0 bytes", TokenizerSource(kind=kind, path=path))
        path.write_bytes(b"\x00garbage {" + struct.pack("<Q", 1 << 60))
        refuses("cannot be read|refuses it", TokenizerSource(kind=kind, path=path))
    path.write_text(
        json.dumps(
            json.loads((SPM_FOLDER / "tokenizer.json").read_text())
            | {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}
        )
    )
    refuses("decoder is .*WordPiece", TokenizerSource(kind="hf_json", path=path))


def test_added_tokens_from_other_files(trained: tokenizers.Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    trained.save(str(path))
    count = trained.get_vocab_size()
    source = TokenizerSource(
        kind="hf_json",
        path=path,
        added_tokens={"<|new|>": count},
        special_ids=frozenset({count}),
    )
    tokenizer = Tokenizer.from_source(source, 1024)
    assert tokenizer.encode("<|new|>") == [count] and count in tokenizer.special_ids
    assert count not in tokenizer.encode("<|new|>", parse_special=False)
    wrong = dataclasses.replace(source, added_tokens={"<|im_end|>": 77})
    with pytest.raises(TokenizerError, match=r"'<\|im_end\|>' the id 2; .* say 77"):
        Tokenizer.from_source(wrong, 1024)


def test_importing_loads_no_library() -> None:
    libraries = "{'torch', 'tokenizers', 'sentencepiece', 'jinja2'}"
    code = f"import sys, halfbyte.engine.text.tokenizer; print({libraries} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (out.stdout.strip(), out.returncode) == ("set()", 0), out.stderr


def test_lone_surrogates_are_refused(bpe: Tokenizer, spm_kinds: dict[str, Tokenizer]) -> None:
    for tokenizer in (bpe, *spm_kinds.values()):
        with pytest.raises(RequestError, match="character 2: a lone surrogate"):
            tokenizer.encode("ab\ud800")


# Ids as llama.cpp gives them for this file.
SMOLLM2_IDS = [
    ("Hello world", "19556 905"),
    ("The year 2024 had 366 days.", "504 713 216 34 32 34 36 761 216 35 38 38 2009 30"),
    ("  leading and   inner  spaces ", "216 2899 284 256 6210 216 5600 216"),
    ("line\n\n\nline\r\nx\ty\t\t", "1311 1116 198 1311 201 198 104 197 105 1656"),
    ("def f(x):\n    return x  # ok\n", "1604 275 24 104 727 472 1003 1792 216 907 10907 198"),
    ("don't WE'LL they'Re I'd", "12420 982 26587 23 16421 502 23 3733 339 6737"),
    ("Gr\xf6\xdfe na\xefve fa\xe7ade", "27302 7466 34878 85 15486 46494 40852"),
    (
        "\u65e5\u672c\u8a9e \ud55c\uad6d \u041f\u0440\u0438\u0432\u0435\u0442",
        "23274 115 40993 179 120 248 216 33085 246 181 130 251 5470 249 46879 16464 32547",
    ),
    (
        "\U0001f680\U0001f468\u200d\U0001f469\U0001f1e9\U0001f1ea",
        "10813 244 218 10813 235 118 321 231 10813 235 119 10813 225 119 10813 225 120",
    ),
    (
        "e\u0301 \u0928\u092e\u0938\u094d\u0924\u0947",
        "85 151 219 12335 118 35090 38770 16525 26293 30581",
    ),
    (
        "\xbd \xb2 \u2167 \u0661\u0662 1,000.5",
        "16738 216 19133 216 173 223 117 216 164 111 164 112 216 33 28 32 32 32 30 37",
    ),
    ("a\xa0b\u3000c\u2028d", "81 15442 82 12109 218 83 321 118 84"),
    ("<|im_start|>user\nhi<|im_end|>\n", "1 4093 198 6004 2 198"),
    ("<|im_start <repo_name>x|im_end|>", "44 108 306 79 3738 216 3 104 108 306 79 486 108 46"),
    ("http://a.b/c?d=e&f=1#g", "5031 1742 81 30 82 31 83 47 84 45 85 22 86 45 33 19 87"),
    ("\x00\x04\x1b[0m", "190 212 75 32 93"),
]


@pytest.mark.model
def test_default_model_ids_equal_llama_cpp() -> None:
    checkpoint = open_checkpoint(ensure_model("smollm2"))
    try:
        tokenizer = Tokenizer.from_source(checkpoint.tokenizer(), checkpoint.config.vocab_size)
    finally:
        checkpoint.close()
    for text, ids in SMOLLM2_IDS:
        assert tokenizer.encode(text) == [int(i) for i in ids.split()], repr(text)
    prompt = tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert prompt[0] == 1 and tokenizer.decode(prompt).endswith("user\nhi\nassistant\n")
