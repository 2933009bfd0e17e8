"""Builds tokenizers of the ``tokenizers`` library: from tokenizer.json and from GGUF files.

Building takes tens of milliseconds for the usual sizes; the library is imported inside the
functions because commands that need no tokenizer should start without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from halfbyte.errors import TokenizerError

from ...loaders.base import AddedFlags
from .pipeline_steps import byte_alphabet, shielded
from .tokenizer_hf import HfBackend, flags_of
from .tokenizer_pre import pre_tokenizer

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as HfTokenizer

    from ...loaders.base import TokenizerSource

# Several times the largest tokenizer.json of the supported families (about 35 MB).
_MAX_FILE_BYTES = 256 << 20
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # GGUF token types


def from_json_file(source: TokenizerSource, rows: int) -> HfBackend:
    """The vocabulary of a ``tokenizer.json``, with the added tokens that other files declare.

    Args:
        source: names the file.
        rows: added tokens with this id or a higher one are left out.

    Raises:
        TokenizerError: the file is missing, too large or damaged, its decoder is of a kind whose
            bytes per token are not known, or an added token has two ids.
    """
    from tokenizers import AddedToken, Tokenizer

    path = source.path
    if path is None:
        raise TokenizerError("the tokenizer source of kind 'hf_json' has no path; expected a file")
    check_file(path, _MAX_FILE_BYTES)
    tokenizer = shielded(lambda: Tokenizer.from_file(str(path)), f"{path} cannot be read")
    if any(index >= rows for index in tokenizer.get_added_tokens_decoder()):
        tokenizer = _without_rowless(tokenizer, rows)
    # A file may carry settings of its training run; a prompt must never be cut or padded.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    known = {t.content: t for t in tokenizer.get_added_tokens_decoder().values()}
    plain = AddedFlags(single_word=False, lstrip=False, rstrip=False, normalized=False)
    more: list[AddedToken] = []
    for text, index in sorted(source.added_tokens.items(), key=lambda item: item[1]):
        token, flags = known.get(text), source.added_flags.get(text)
        if token is not None and flags in (None, flags_of(token)):
            continue
        special = index in source.special_ids or (token is not None and token.special)
        more.append(AddedToken(text, special=special, **asdict(flags or plain)))
    tokenizer.add_tokens(more)
    for text, index in source.added_tokens.items():
        if text and tokenizer.token_to_id(text) != index:
            raise TokenizerError(
                f"{path} gives {text!r:.60} the id {tokenizer.token_to_id(text)}; the other "
                f"tokenizer files of the model say {index}",
                hint="the files belong to different versions of the model; download them again",
            )
    try:
        return HfBackend(tokenizer, source.special_ids)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error.message}", hint=error.hint) from error


def from_gguf_bpe(source: TokenizerSource) -> HfBackend:
    """The byte-level byte-pair vocabulary of a GGUF file.

    Raises:
        TokenizerError: unknown pre-tokenizer, no tokens, a token listed twice, or a merge whose
            parts or result are not tokens.
    """
    vocab = unique_tokens(source.tokens)
    size = len(source.tokens)
    # A byte that is no token is dropped, but its neighbours must not merge across it. So it
    # takes part in merging under a separate id, which is dropped afterwards.
    missing = [c for c in byte_alphabet() if c not in vocab]
    vocab |= {c: size + i for i, c in enumerate(missing)}
    return HfBackend(gguf_bpe_pipeline(source, vocab), size=size, vocab=vocab)


def gguf_bpe_pipeline(source: TokenizerSource, vocab: dict[str, int]) -> HfTokenizer:
    """The pipeline of a byte-level vocabulary, ``vocab``: the file's, and what is put to it.

    Raises TokenizerError for an unknown pre-tokenizer, and for a merge whose parts or result are
    not in the vocabulary.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    rule = pre_tokenizer(source.pre)
    merges = [_merge(index, text) for index, text in enumerate(source.merges)]
    model = shielded(
        lambda: models.BPE(vocab=vocab, merges=merges, ignore_merges=rule.whole_words),
        "tokenizer.ggml.merges does not fit tokenizer.ggml.tokens",
    )
    tokenizer = Tokenizer(model)
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in rule.patterns]
    bytes_step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_step])
    tokenizer.decoder = decoders.ByteLevel()
    match_added_tokens(tokenizer, source, vocab)
    return tokenizer


def match_added_tokens(
    tokenizer: HfTokenizer, source: TokenizerSource, vocab: Mapping[str, int]
) -> None:
    """Have a pipeline match the added tokens of a GGUF file, which all are in ``vocab`` already."""
    from tokenizers import AddedToken

    added, special = added_tokens(source)
    tokens = [
        AddedToken(
            text,
            rstrip=token_id in source.rstrip_ids,
            normalized=False,
            special=token_id in special,
        )
        for text, token_id in sorted(added.items(), key=lambda item: item[1])
        if vocab.get(text) == token_id
    ]
    tokenizer.add_tokens(tokens)


def added_tokens(source: TokenizerSource) -> tuple[dict[str, int], frozenset[int]]:
    """Tokens matched before splitting (text -> id) and the ids of the special ones among them.

    User-defined tokens are words of the vocabulary that happen to be matched first; they are
    not special.
    """
    added = dict(source.added_tokens)
    special = set(source.special_ids)
    for index, kind in enumerate(source.token_types[: len(source.tokens)]):
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) and source.tokens[index]:
            added.setdefault(source.tokens[index], index)
        if kind in (_UNKNOWN, _CONTROL):
            special.add(index)
    return added, frozenset(special)


def _without_rowless(tokenizer: HfTokenizer, rows: int) -> HfTokenizer:
    """The pipeline without the added tokens that have ids from ``rows`` on."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.to_str())
    gone = {token["content"] for token in state["added_tokens"] if token["id"] >= rows}
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in gone]
    vocab = state["model"]["vocab"]
    if isinstance(vocab, dict):  # some files list added tokens in the vocabulary as well
        state["model"]["vocab"] = {t: i for t, i in vocab.items() if i < rows or t not in gone}
    state["post_processor"] = None  # it may name them, and adds nothing here
    return shielded(lambda: Tokenizer.from_str(json.dumps(state)), "tokenizer.json is damaged")


def check_file(path: Path, limit: int) -> None:
    """Raise TokenizerError unless ``path`` is a file of 1 to ``limit`` bytes."""
    try:
        size = path.stat().st_size if path.is_file() else -1
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from error
    if size < 0:
        raise TokenizerError(f"{path} is missing or not a file", hint="download the model again")
    if not 0 < size <= limit:
        raise TokenizerError(f"{path} has {size} bytes; expected 1 to {limit}")


def unique_tokens(tokens: tuple[str, ...]) -> dict[str, int]:
    """Token text -> id. Raises TokenizerError when a text is listed twice or there is none."""
    vocab = {text: index for index, text in enumerate(tokens) if text}
    if len(vocab) < sum(map(bool, tokens)):
        first = next(t for i, t in enumerate(tokens) if t and vocab[t] != i)
        raise TokenizerError(f"tokenizer.ggml.tokens lists {first!r:.60} more than once")
    if not vocab:
        raise TokenizerError("tokenizer.ggml.tokens is empty; expected the vocabulary")
    return vocab


def _merge(index: int, text: str) -> tuple[str, str]:
    """The two parts of a merge; a part may itself begin with a space, so search from 1."""
    left, _, right = text[1:].partition(" ")
    if not right:
        raise TokenizerError(
            f"tokenizer.ggml.merges[{index}] is {text!r:.60}; expected two parts and a space"
        )
    return text[:1] + left, right
