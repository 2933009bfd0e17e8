"""Vocabularies that run on the ``tokenizers`` library: tokenizer.json and GGUF byte-pair ones.

Building takes tens of milliseconds for the usual sizes; the library is imported inside the
functions because commands that need no tokenizer should start without it.
"""

from __future__ import annotations

import json
import re
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from halfbyte.errors import RequestError, TokenizerError

from ..loaders.base import AddedFlags
from .special_text import WEDGES, Span, UserText, bounded, own_spans, with_wedges
from .token_bound import TokenBound, TokenLimit, bound_of
from .tokenizer_pre import pre_tokenizer

if TYPE_CHECKING:
    from tokenizers import AddedToken, Encoding
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


@dataclass(frozen=True, slots=True)
class _Twin:
    """A pipeline that knows special tokens under other texts.

    Attributes:
        tokenizer: the pipeline.
        special: its ids of them -> true ids.
        ordinary: its ids of the other added tokens -> true ids.
    """

    tokenizer: HfTokenizer
    special: dict[int, int]
    ordinary: dict[int, int]


class HfBackend:
    """A vocabulary held by a ``tokenizers.Tokenizer``.

    Args:
        tokenizer: the ready pipeline; it is not changed afterwards.
        extra_special: ids to treat as special although the file does not call them so.
        size: ids from here on are place-holders, dropped from results; 0 means there are none.

    Attributes:
        size: one more than the highest known id.
        special: text -> id of tokens that carry structure, not text.
        normalizes: texts other than their own may become special tokens.
        blank: a character that is part of no special token.
        strips_space: decoding drops one space at the start of a text.
        bound: how few tokens a text can have.

    Raises:
        TokenizerError: the vocabulary is empty or its ids are not plausible.
    """

    def __init__(
        self, tokenizer: HfTokenizer, extra_special: Iterable[int] = (), size: int = 0
    ) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._twins: dict[str, _Twin] = {}
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
        bounded(self.special)
        self._find_ids = {*self.special.values()}
        self.normalizes = tokenizer.normalizer is not None and any(
            token.normalized for i, token in added.items() if i in self._find_ids
        )
        self.blank = next(c for c in WEDGES if not any(c in text for text in self.special))
        self._decoding = _decoding(tokenizer)
        self.strips_space = self._decoding.strips_space
        self.bound = _bound(tokenizer, self._decoding, self._holds_places)

    def encode(self, text: str, limit: TokenLimit | None = None) -> list[int]:
        """Ids of ``text``; every special and user-defined token in it is matched.

        Raises:
            RequestError: more ids than ``limit`` allows.
        """
        return self._ids(self._tokenizer, text, limit)

    def encode_untrusted(
        self, text: str, users: UserText, limit: TokenLimit | None = None
    ) -> list[int]:
        """As :meth:`encode`, but a special token with a character of ``users`` is plain text."""
        own, foreign = own_spans(text, users, self.blank, self.find)
        if not foreign:
            ids = self.encode(text, limit)
            if not self._makes_special(text, ids, own, users):
                return ids
        wedge = next((c for c in WEDGES if c not in text and self._survives(c)), None)
        if wedge is None:
            raise RequestError("the text holds every sign of the Tai Xuan Jing; leave one out")
        with self._lock:
            if wedge not in self._twins:
                self._twins = {wedge: self._twin(wedge)}
            twin = self._twins[wedge]
        wedged = with_wedges(text, own, wedge)
        places = [span.start + 1 + index for index, span in enumerate(own)]
        ids, count = self._rewritten(twin, wedged, places, users, limit)
        if count == len(own):
            return ids
        # A rule saw the wedge after all, so that a token was not matched.
        ids, start = [], 0
        for span in (*own, Span(-1, len(text), len(text))):
            part = text[start : span.start]
            ids += self._rewritten(twin, part, (), users.shifted(start), limit)[0]
            ids += [span.token_id] if span.token_id >= 0 else []
            start = span.stop
        if limit is not None:
            limit.check(len(ids))
        return ids

    def _makes_special(self, text: str, ids: list[int], own: list[Span], users: UserText) -> bool:
        """Whether the model makes a special token of a user's text, as Unigram may."""
        made = sum(i in self._find_ids for i in ids) - len(own)
        if not users or made <= 0:
            return False
        encoding = self._with_offsets(self._tokenizer, text)
        spans = [
            encoding.token_to_chars(index)
            for index, token_id in enumerate(encoding.ids)
            if token_id in self._find_ids and token_id != self._unknown
        ]
        return any(users.within(*span) for span in spans if span is not None)

    def find(self, text: str) -> list[Span]:
        """The special tokens that the library finds in a text, in order."""
        with self._lock:
            finder, true_ids = self._finder
        encoding = self._with_offsets(finder, text)
        spans: list[Span] = []
        for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            true_id = true_ids.get(token_id)
            if true_id not in self._find_ids:
                continue
            # The span has the whitespace that the token swallows or that it is matched with.
            content, part = self._added[true_id].content, text[start:stop]
            at = part.rfind(content)
            if at >= 0:
                start, stop = start + at, start + at + len(content)
            else:  # in another spelling, which the normalizer makes the same
                start += (len(part) - len(part.lstrip())) if content[:1].strip() else 0
                stop -= (len(part) - len(part.rstrip())) if content[-1:].strip() else 0
            if start < stop:
                spans.append(Span(true_id, start, stop))
        return spans

    def piece(self, token_id: int) -> bytes:
        """Bytes that one id stands for; empty for an id that the vocabulary leaves out."""
        text = self._texts.get(token_id)
        if text is None:
            return b""
        added = self._added.get(token_id)
        if added is not None and (added.special or self._decoding.literal_added):
            return text.encode()
        return self._decoding.to_bytes(text)

    def _ids(self, tokenizer: HfTokenizer, text: str, limit: TokenLimit | None) -> list[int]:
        # Of the library's calls those for a batch let other Python threads run.
        encoding = _shielded(
            lambda: tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
        )
        if limit is not None:
            limit.check(len(encoding))
        ids = encoding.ids
        return [i for i in ids if i < self.size] if self._holds_places else ids

    def _with_offsets(self, tokenizer: HfTokenizer, text: str) -> Encoding:
        return _shielded(lambda: tokenizer.encode_batch([text], add_special_tokens=False)[0])

    def _rewritten(
        self,
        twin: _Twin,
        text: str,
        wedges: Sequence[int],
        users: UserText,
        limit: TokenLimit | None,
    ) -> tuple[list[int], int]:
        """True ids of a text by the twin, and how many special tokens are among them.

        Args:
            twin: the pipeline.
            text: a text with wedges.
            wedges: where they are, ascending.
            users: the users' characters of the text without wedges.
            limit: the longest result of use.
        """
        encoding = self._with_offsets(twin.tokenizer, text)
        if limit is not None:
            limit.check(len(encoding))
        out: list[int] = []
        count = 0
        for index, token_id in enumerate(encoding.ids):
            true_id = twin.special.get(token_id)
            if true_id is not None:
                out.append(true_id)
                count += 1
                continue
            true_id = twin.ordinary.get(token_id)
            if true_id is not None:
                out.append(true_id)
                continue
            if token_id in self._find_ids and token_id != self._unknown:
                start, stop = encoding.token_to_chars(index) or (0, 0)
                start -= bisect_left(wedges, start)
                stop -= bisect_left(wedges, stop)
                if users.within(start, stop):  # the model made it of ordinary text
                    out += self._split_up(self._texts[token_id])
                    continue
            out.append(token_id)
        return [i for i in out if i < self.size] if self._holds_places else out, count

    def _split_up(self, piece: str) -> list[int]:
        """Ids of a piece of the model's alphabet without the special token that it spells."""
        ids: list[int] = []
        model = self._tokenizer.model
        for part in (piece[:1], piece[1:]) if len(piece) > 1 else ():
            for token in _shielded(lambda part=part: model.tokenize(part)) if part else ():
                special = token.id in self._find_ids and token.id != self._unknown
                ids += self._split_up(token.value) if special else [token.id]
        return ids

    def _survives(self, char: str) -> bool:
        normalizer = self._tokenizer.normalizer
        return normalizer is None or char in normalizer.normalize_str(f"a{char}b")

    @cached_property
    def _unknown(self) -> int | None:
        model = self._tokenizer.model
        if getattr(model, "unk_id", None) is not None:
            return model.unk_id
        text = getattr(model, "unk_token", None)
        return None if text is None else self._tokenizer.token_to_id(text)

    @cached_property
    def _finder(self) -> tuple[HfTokenizer, dict[int, int]]:
        """A tokenizer that has the added tokens only, and its ids -> true ids."""
        from tokenizers import Tokenizer, models

        finder = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
        if self._tokenizer.normalizer:
            finder.normalizer = self._tokenizer.normalizer
        finder.add_tokens(
            [self._copied(i, token.content) for i, token in sorted(self._added.items())]
        )
        ids = {finder.token_to_id(token.content): i for i, token in self._added.items()}
        return finder, {k: i for k, i in ids.items() if k is not None}

    def _twin(self, wedge: str) -> _Twin:
        """The same pipeline, whose special tokens have ``wedge`` behind their first character.

        It shares the merge tables. All rules that decide whether an added token is matched see
        the same first and last characters and the same flags.
        """
        from tokenizers import Tokenizer

        twin = Tokenizer(self._tokenizer.model)
        if self._tokenizer.normalizer:
            twin.normalizer = self._tokenizer.normalizer
        if self._tokenizer.pre_tokenizer:
            twin.pre_tokenizer = self._tokenizer.pre_tokenizer
        contents = {
            i: t.content[:1] + wedge + t.content[1:] if i in self._find_ids else t.content
            for i, t in sorted(self._added.items())
        }
        twin.add_tokens([self._copied(i, content) for i, content in contents.items()])
        ids = {twin.token_to_id(content): i for i, content in contents.items()}
        special = {k: i for k, i in ids.items() if k is not None and i in self._find_ids}
        ordinary = {k: i for k, i in ids.items() if k is not None and i not in self._find_ids}
        return _Twin(twin, special, ordinary)

    def _copied(self, token_id: int, content: str) -> AddedToken:
        from tokenizers import AddedToken

        token = self._added[token_id]
        return AddedToken(content, special=token.special, **asdict(_flags(token)))


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
    check_file(path, MAX_FILE_BYTES)
    tokenizer = _shielded(lambda: Tokenizer.from_file(str(path)), f"{path} cannot be read")
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
        if token is not None and flags in (None, _flags(token)):
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
    return _shielded(lambda: Tokenizer.from_str(json.dumps(state)), "tokenizer.json is damaged")


def _flags(token: AddedToken) -> AddedFlags:
    return AddedFlags(token.single_word, token.lstrip, token.rstrip, token.normalized)


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


def _bound(tokenizer: HfTokenizer, decoding: _Decoding, drops: bool) -> TokenBound:
    """How much text one token can stand for; ``drops``: bytes without a token are left out."""
    from tokenizers import models

    composes = strips = False
    for step in _steps(tokenizer.normalizer, "normalizers"):
        kind = step.get("type")
        if kind == "Replace":
            if step.get("pattern") != {"String": " "} or not step.get("content"):
                return TokenBound()
        elif kind in ("NFC", "NFKC"):
            composes = True
        elif kind in ("Strip", "Lowercase"):
            strips = True
        elif kind not in ("Prepend", "NFD"):
            return TokenBound()
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    if not isinstance(tokenizer.model, (models.BPE, models.Unigram)):
        return TokenBound()
    added = tokenizer.get_added_tokens_decoder().values()
    pieces = [decoding.to_bytes(text) for text in vocab]
    pieces += [token.content.encode() for token in added]
    steps = _steps(tokenizer.pre_tokenizer, "pretokenizers")
    kinds = {step.get("type") for step in steps}
    is_byte_level = "ByteLevel" in kinds
    alphabet = byte_alphabet() if is_byte_level else [f"<0x{b:02X}>" for b in range(256)]
    loses_signs = (
        (drops or strips or any(token.lstrip or token.rstrip for token in added))
        or not kinds <= {"ByteLevel", "Split", "Digits", "Metaspace", "Punctuation"}
        or any(step.get("behavior") == "Removed" for step in steps)
        or not all(char in vocab for char in alphabet)
        or not (is_byte_level or getattr(tokenizer.model, "byte_fallback", False))
    )
    return bound_of(pieces, composes=composes, loses_signs=loses_signs)


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
