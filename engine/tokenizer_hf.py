"""Vocabularies that run on the ``tokenizers`` library: tokenizer.json and GGUF byte-pair ones.

Building takes tens of milliseconds for the usual sizes; the library is imported inside the
functions because commands that need no tokenizer should start without it.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from halfbyte.errors import TokenizerError

from .special_text import SpecialGuard
from .tokenizer_pre import pre_tokenizer

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as HfTokenizer

    from ..loaders.base import TokenizerSource

# Several times the largest tokenizer.json of the supported families (about 35 MB).
MAX_FILE_BYTES = 256 << 20
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # GGUF token types
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Decoding:
    """How tokens become bytes.

    Attributes:
        to_bytes: bytes of an ordinary token's text.
        strips_space: the first space of a text is dropped.
        literal_added: added tokens are UTF-8 text, not written in the vocabulary's alphabet.
    """

    to_bytes: Callable[[str], bytes]
    strips_space: bool
    literal_added: bool


class HfBackend:
    """A vocabulary held by a ``tokenizers.Tokenizer``.

    Args:
        tokenizer: the ready pipeline; it is not changed afterwards.
        extra_special: ids to treat as special although the file does not call them so.
        size: ids from here on are place-holders, dropped from results; 0 means there are none.

    Attributes:
        size: one more than the highest known id.
        special: text -> id of tokens that carry structure, not text.
        guard: protects untrusted text against the special tokens.
        strips_space: decoding drops one space at the start of a text.

    Raises:
        TokenizerError: the vocabulary is empty or its ids are not plausible.
    """

    def __init__(
        self, tokenizer: HfTokenizer, extra_special: Iterable[int] = (), size: int = 0
    ) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        vocab: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        added: dict[int, AddedToken] = tokenizer.get_added_tokens_decoder()
        if not vocab:
            raise TokenizerError("the vocabulary is empty; expected at least one token")
        self.size = size or max(vocab.values()) + 1
        self._holds_places = size > 0 and max(vocab.values()) >= size
        if min(vocab.values()) < 0 or self.size > 1 << 24:
            raise TokenizerError(f"the vocabulary's highest id is {self.size - 1}; not plausible")
        self._texts = {token_id: text for text, token_id in vocab.items()}
        self._added = added
        extra = set(extra_special)
        self.special = {t.content: i for i, t in added.items() if t.special or i in extra}
        self.guard = SpecialGuard(self.special)
        self._decoding = _decoding(tokenizer)
        self.strips_space = self._decoding.strips_space

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; every special and user-defined token in it is matched."""
        return self._run(self._tokenizer, text)

    def encode_guarded(self, text: str) -> list[int]:
        """Ids of text marked by ``guard``: special tokens only where they are unbroken."""
        with self._lock:
            tokenizer, true_ids = self._guarded
        ids = self._run(tokenizer, text)
        return [true_ids.get(i, i) for i in ids] if true_ids else ids

    def piece(self, token_id: int) -> bytes:
        """Bytes that one id stands for; empty for an id that the vocabulary leaves out."""
        text = self._texts.get(token_id)
        if text is None:
            return b""
        added = self._added.get(token_id)
        if added is not None and (added.special or self._decoding.literal_added):
            return text.encode()
        return self._decoding.to_bytes(text)

    def _run(self, tokenizer: HfTokenizer, text: str) -> list[int]:
        ids = _shielded(lambda: tokenizer.encode(text, add_special_tokens=False).ids)
        return [i for i in ids if i < self.size] if self._holds_places else ids

    @cached_property
    def _guarded(self) -> tuple[HfTokenizer, dict[int, int]]:
        """A twin that drops the marks after matching special tokens, and its ids -> true ids.

        It shares the merge tables. The marks go in the normalizer: the library looks for added
        tokens before it and hands the rest of the text through it.
        """
        from tokenizers import AddedToken, Tokenizer, normalizers

        twin = Tokenizer(self._tokenizer.model)
        steps = [normalizers.Replace(code, to) for code, to in self.guard.meanings.items()]
        own = self._tokenizer.normalizer
        twin.normalizer = normalizers.Sequence([*steps, own] if own else steps)
        if self._tokenizer.pre_tokenizer:
            twin.pre_tokenizer = self._tokenizer.pre_tokenizer
        special_ids = set(self.special.values())
        tokens = [
            AddedToken(
                t.content,
                single_word=t.single_word,
                lstrip=t.lstrip,
                rstrip=t.rstrip,
                # A special token matched after the normalizer would be matched in user text.
                normalized=t.normalized and i not in special_ids,
                special=i in special_ids,
            )
            for i, t in sorted(self._added.items())
        ]
        twin.add_tokens(tokens)
        twin_ids = {i: twin.token_to_id(t.content) for i, t in self._added.items()}
        return twin, {k: i for i, k in twin_ids.items() if k is not None and k != i}


def from_json_file(source: TokenizerSource) -> HfBackend:
    """The vocabulary of a ``tokenizer.json``, with the added tokens that other files declare.

    Raises:
        TokenizerError: the file is missing, too large or damaged, its decoder is of a kind whose
            bytes per token are not known, or an added token has two ids.
    """
    from tokenizers import AddedToken, Tokenizer

    path = source.path
    if path is None:
        raise TokenizerError("the tokenizer source of kind 'hf_json' has no path; expected a file")
    check_file(path, MAX_FILE_BYTES)
    tokenizer = _shielded(lambda: Tokenizer.from_file(str(path)), f"{path} cannot be read")
    # A file may carry settings of its training run; a prompt must never be cut or padded.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    known = {t.content for t in tokenizer.get_added_tokens_decoder().values()}
    extra = sorted((i, text) for text, i in source.added_tokens.items() if text not in known)
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False, special=i in source.special_ids) for i, text in extra]
    )
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
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    rule = pre_tokenizer(source.pre)
    vocab = _unique(source.tokens)
    merges = [_merge(index, text) for index, text in enumerate(source.merges)]
    size = len(source.tokens)
    # A byte that is no token is dropped, but its neighbours must not merge across it. So it
    # takes part in merging under an id of its own, which is dropped afterwards.
    missing = [c for c in byte_alphabet() if c not in vocab]
    vocab |= {c: size + i for i, c in enumerate(missing)}
    model = _shielded(
        lambda: models.BPE(vocab=vocab, merges=merges, ignore_merges=rule.whole_words),
        "tokenizer.ggml.merges does not fit tokenizer.ggml.tokens",
    )
    tokenizer = Tokenizer(model)
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in rule.patterns]
    bytes_step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_step])
    tokenizer.decoder = decoders.ByteLevel()
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
    return HfBackend(tokenizer, size=size)


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


def byte_alphabet() -> dict[str, int]:
    """The 256 characters that byte-level vocabularies write bytes with, and their bytes.

    Printable Latin-1 characters stand for themselves; the others are moved, in order, to the
    code points from 256 on.
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [b for b in range(256) if b not in set(own)]
    table = {chr(b): b for b in own}
    return table | {chr(256 + i): b for i, b in enumerate(moved)}


def spaced_bytes(text: str) -> bytes:
    """Bytes of a sentencepiece token: ``<0xE4>`` is a byte, U+2581 is a space."""
    match = _BYTE_PIECE.fullmatch(text)
    return bytes([int(match[1], 16)]) if match else text.replace(_SPACE, " ").encode()


def _decoding(tokenizer: HfTokenizer) -> _Decoding:
    steps = _steps(tokenizer.decoder, "decoders")
    steps = steps or _steps(tokenizer.pre_tokenizer, "pretokenizers")
    kinds = [step.get("type") for step in steps]
    if "ByteLevel" in kinds:
        table = byte_alphabet()

        def byte_level(text: str) -> bytes:
            values = [table.get(c, -1) for c in text]
            return text.encode() if -1 in values else bytes(values)

        return _Decoding(byte_level, strips_space=False, literal_added=True)
    for step in steps:
        if step.get("type") == "Metaspace":
            strips = step.get("prepend_scheme", "always") != "never"
            return _Decoding(spaced_bytes, strips, literal_added=False)
    replaces = [s for s in steps if s.get("type") == "Replace" and s.get("content") == " "]
    if any(s.get("pattern") == {"String": _SPACE} for s in replaces):
        strips = any(
            s.get("type") == "Strip" and s.get("content") == " " and s.get("start") == 1
            for s in steps
        )
        return _Decoding(spaced_bytes, strips, literal_added=False)
    raise TokenizerError(
        f"its decoder is {kinds or None}; expected ByteLevel, Metaspace or sentencepiece's steps"
    )


def _steps(part: Any, member: str) -> list[Mapping[str, Any]]:
    """A pipeline part as a flat list of its JSON steps; empty when there is none."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    if state.get("type") != "Sequence":
        return [state]
    return [step for step in state.get(member, []) if isinstance(step, dict)]


def _unique(tokens: tuple[str, ...]) -> dict[str, int]:
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
    cut = text.find(" ", 1)
    if cut < 0 or cut == len(text) - 1:
        raise TokenizerError(
            f"tokenizer.ggml.merges[{index}] is {text!r:.60}; expected two parts and a space"
        )
    return text[:cut], text[cut + 1 :]


def _shielded(call: Callable[[], T], problem: str = "the text cannot be tokenized") -> T:
    """Run ``call``; the library's errors and Rust panics become TokenizerError."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a Rust panic is not an Exception
        raise TokenizerError(f"{problem}: {str(error)[:200]}") from error
