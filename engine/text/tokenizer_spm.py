"""Sentencepiece vocabularies: ``tokenizer.model`` files and the ones inside GGUF files.

A GGUF file keeps the pieces, scores and types of a sentencepiece model but not the model. They
are written back into the model's protobuf form, so that the real library does the merging and
its rules (ties, byte fallback, unused pieces) hold exactly.

Control and added tokens are split off here. The text between them gets sentencepiece's dummy
space each time, as llama.cpp and the original Llama tokenizer do.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from halfbyte.errors import TokenizerError

from .pipeline_steps import spaced_bytes
from .special_text import WEDGES, Span, UserText, longest_first_pattern, own_spans, windows
from .token_bound import TokenBound, TokenLimit, bound_of
from .tokenizer_files import added_tokens, check_file

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

    from ...loaders.base import TokenizerSource

# Several times the largest tokenizer.model of the supported families (about 4 MB).
_MAX_FILE_BYTES = 64 << 20
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"
_WHITESPACE = re.compile(r"[^\S\x1c-\x1f]+")  # Unicode's; Python counts four control codes, too
# Merging the field ``normalizer_spec { add_dummy_prefix: false }`` into a serialized model.
_NO_PREFIX = b"\x1a\x02\x18\x00"


@dataclass(frozen=True, slots=True)
class SpacePrefix:
    """The space that goes in front of a text.

    Attributes:
        texts: in front of each text between added tokens, of the first of a prompt, or of none.
        joins: a text that begins with a space gets no other one.
        by_library: sentencepiece puts it there by itself.
        strips_space: decoding drops it.
    """

    texts: Literal["always", "first", "never"]
    joins: bool = False
    by_library: bool = False

    @property
    def strips_space(self) -> bool:
        """Whether decoding drops one space at the start of a text."""
        return self.texts != "never"

    def put(self, text: str, is_first: bool) -> str:
        """``text`` as sentencepiece must get it."""
        if self.by_library or self.texts == "never" or (self.texts == "first" and not is_first):
            return text
        return text if self.joins and text[0] in f" {_SPACE}" else f" {text}"


class SpmBackend:
    """A vocabulary held by a ``SentencePieceProcessor``.

    Args:
        processor: the loaded model.
        pieces: text of each id, added tokens included.
        raw_ids: ids whose text is literal: U+2581 in it is no space, ``<0x0A>`` no byte.
        added: text -> id of tokens split off before sentencepiece sees the text.
        special: ids of those that carry structure, not text.
        prefix: the space in front of a text.
        bound: how few tokens a text can have.
        rstrip: ids of added tokens that swallow the whitespace after them.

    Attributes:
        size: one more than the highest known id.
        special: text -> id of tokens that carry structure, not text.
        normalizes: texts other than their own may become special tokens: no.
        blank: a character that is part of no special token.
        strips_space: decoding drops one space at the start of a text.
        bound: how few tokens a text can have.
    """

    normalizes = False

    def __init__(
        self,
        processor: SentencePieceProcessor,
        pieces: dict[int, str],
        raw_ids: Iterable[int],
        added: dict[str, int],
        special: frozenset[int],
        prefix: SpacePrefix,
        bound: TokenBound,
        rstrip: frozenset[int] = frozenset(),
    ) -> None:
        self._processor = processor
        self._pieces = pieces
        self._raw = frozenset(raw_ids)
        self._added = added
        self.size = max(pieces) + 1
        self.special = {text: i for text, i in added.items() if i in special}
        self.blank = next(c for c in WEDGES if not any(c in text for text in self.special))
        self.strips_space = prefix.strips_space
        self._prefix = prefix
        self._swallowers = frozenset(text for text, i in added.items() if i in rstrip)
        ordinary = [text for text, i in added.items() if i not in special]
        self._ordinary_pattern = longest_first_pattern(ordinary)
        self._all_pattern = longest_first_pattern(added)
        self._reach = max(map(len, added), default=0)
        self.bound = replace(bound, most_bytes=0) if rstrip else bound  # spaces are swallowed

    def encode(self, text: str, limit: TokenLimit | None = None) -> list[int]:
        """Ids of ``text``; every special and user-defined token in it is matched.

        Raises:
            RequestError: more ids than ``limit`` allows.
        """
        return self._encode(self._split(text, self._matches(text, self._all_pattern)), limit)

    def encode_untrusted(
        self, text: str, users: UserText, limit: TokenLimit | None = None
    ) -> list[int]:
        """As :meth:`encode`, but a special token with a character of ``users`` is plain text."""
        own, foreign = own_spans(text, users, self.blank, self.find)
        if not foreign:
            return self.encode(text, limit)
        matches: list[tuple[int, int]] = []
        start = 0
        for span in (*own, Span(-1, len(text), len(text))):
            part = text[start : span.start]
            matches += [
                (start + a, start + b) for a, b in self._matches(part, self._ordinary_pattern)
            ]
            if span.token_id >= 0:
                matches.append((span.start, span.stop))
            start = span.stop
        return self._encode(self._split(text, matches), limit)

    def find(self, text: str) -> list[Span]:
        """The special tokens of a text, in order."""
        special = self.special
        return [
            Span(special[text[a:b]], a, b)
            for a, b in self._matches(text, self._all_pattern)
            if text[a:b] in special
        ]

    def piece(self, token_id: int) -> bytes:
        """Bytes that one id stands for; empty for an id that the vocabulary leaves out."""
        text = self._pieces.get(token_id, "")
        return text.encode() if token_id in self._raw else spaced_bytes(text)

    def _encode(
        self, parts: Iterable[tuple[str, str, bool]], limit: TokenLimit | None
    ) -> list[int]:
        ids: list[int] = []
        for part, token, is_first in parts:
            if part:
                ids += self._processor.encode(self._prefix.put(part, is_first), out_type=int)
            if token:
                ids.append(self._added[token])
            if limit is not None:
                limit.check(len(ids))
        return ids

    def _matches(self, text: str, pattern: re.Pattern[str] | None) -> list[tuple[int, int]]:
        if pattern is None:
            return []
        return [match.span() for match in windows(pattern, text, self._reach)]

    def _split(
        self, text: str, matches: Iterable[tuple[int, int]]
    ) -> Iterable[tuple[str, str, bool]]:
        """(text before, token, whether it is the first) in order; the last one has no token."""
        start = 0
        for first, stop in matches:
            if first < start:
                continue  # a token of whitespace that the one before has swallowed
            yield text[start:first], text[first:stop], start == 0
            start = stop
            if text[first:stop] in self._swallowers and (space := _WHITESPACE.match(text, start)):
                start = space.end()
        yield text[start:], "", start == 0


def from_model_file(source: TokenizerSource) -> SpmBackend:
    """The vocabulary of a sentencepiece ``tokenizer.model``.

    Raises:
        TokenizerError: the file is missing, too large or damaged.
    """
    if source.path is None:
        raise TokenizerError("the tokenizer source of kind 'spm' has no path; expected a file")
    check_file(source.path, _MAX_FILE_BYTES)
    data = source.path.read_bytes()
    processor = _load(data, str(source.path))
    # The model may say "no dummy prefix" itself; what it does to a text is what counts.
    prefix = SpacePrefix("never")
    if source.add_space_prefix and _begins_with_space(processor, "a"):
        prefix = SpacePrefix("first" if source.prefix_first_only else "always", joins=True)
    bare = _load(data + _NO_PREFIX, str(source.path))
    if prefix.texts == "never" or _begins_with_space(bare, " a"):
        processor = bare
    else:  # spaces in front are stripped, so that only the library can put one there
        prefix = SpacePrefix("always", by_library=True)
    count = processor.get_piece_size()
    pieces = {i: processor.id_to_piece(i) for i in range(count)}
    added = dict(source.added_tokens)
    special = set(source.special_ids)
    for index, text in pieces.items():
        if processor.is_control(index) or processor.is_unknown(index):
            added.setdefault(text, index)
            special.add(index)
    pieces |= {i: text for text, i in added.items()}
    return SpmBackend(
        processor,
        pieces,
        raw_ids=added.values(),
        added=added,
        special=frozenset(special),
        prefix=prefix,
        bound=bound_of(  # it may normalize
            [spaced_bytes(t) for t in pieces.values()], composes=True, loses_signs=True
        ),
    )


def _begins_with_space(processor: SentencePieceProcessor, text: str) -> bool:
    pieces = processor.encode(text, out_type=str)
    return bool(pieces) and pieces[0].startswith(_SPACE)


def from_gguf_spm(source: TokenizerSource) -> SpmBackend:
    """The sentencepiece vocabulary of a GGUF file.

    Raises:
        TokenizerError: lists of unequal length, an unknown token type, or a vocabulary that
            sentencepiece refuses.
    """
    count = len(source.tokens)
    for name, values in (("scores", source.scores), ("token_type", source.token_types)):
        if len(values) != count:
            raise TokenizerError(
                f"tokenizer.ggml.{name} has {len(values)} entries; expected {count}, one per token"
            )
    processor = _load(
        model_proto(source.tokens, source.scores, source.token_types, source.add_space_prefix),
        "tokenizer.ggml.tokens",
    )
    added, special = added_tokens(source)
    has_bytes = source.token_types.count(_BYTE) == 256  # else letters may share a token
    return SpmBackend(
        processor,
        dict(enumerate(source.tokens)) | {i: text for text, i in added.items()},
        raw_ids=added.values(),
        added=added,
        special=special,
        prefix=SpacePrefix("always" if source.add_space_prefix else "never", by_library=True),
        bound=bound_of(
            [spaced_bytes(t) for t in source.tokens], composes=False, loses_signs=not has_bytes
        ),
        rstrip=source.rstrip_ids,
    )


def model_proto(
    tokens: tuple[str, ...], scores: tuple[float, ...], types: tuple[int, ...], add_prefix: bool
) -> bytes:
    """A sentencepiece BPE ``ModelProto`` in protobuf wire format.

    User-defined tokens are written as control pieces: they are split off before sentencepiece,
    which must not match them a second time. ``add_prefix`` is the dummy space.

    Raises:
        TokenizerError: a token type outside 0 to 6.
    """
    kinds = set(types)
    if kinds - set(range(_BYTE + 1)):
        raise TokenizerError(
            f"tokenizer.ggml.token_type has {sorted(kinds - set(range(_BYTE + 1)))[0]}; "
            "expected values from 0 to 6"
        )
    out = bytearray()
    seen: set[str] = set()
    has_unknown = False
    for index, (text, score, kind) in enumerate(zip(tokens, scores, types, strict=True)):
        if kind == _UNKNOWN and has_unknown:
            kind = _CONTROL  # sentencepiece allows one unknown piece
        has_unknown |= kind == _UNKNOWN
        # The library refuses empty pieces and repeated ones; ids must stay where they are.
        if not text or text in seen:
            text, kind = f"{_SPACE}[unused {index}]", _CONTROL
        seen.add(text)
        kind = {_USER_DEFINED: _CONTROL, 0: _NORMAL}.get(kind, kind)  # 0: type not given
        body = _bytes_field(1, text.encode()) + b"\x15" + struct.pack("<f", score)
        out += _bytes_field(1, body + b"\x18" + _varint(kind))
    # BPE, byte fallback (field 35) only where the vocabulary has the byte pieces for it.
    fallback = b"\x98\x02" + _varint(int(_BYTE in kinds))
    out += _bytes_field(2, b"\x18\x02" + fallback)
    # identity normalization; spaces are neither dropped nor joined, and become U+2581
    prefix = b"\x18" + _varint(int(add_prefix))
    out += _bytes_field(3, _bytes_field(1, b"identity") + prefix + b"\x20\x00\x28\x01")
    return bytes(out)


def _load(data: bytes, name: str) -> SentencePieceProcessor:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        loaded = processor.LoadFromSerializedProto(data)
    except (RuntimeError, ValueError, TypeError) as error:
        raise TokenizerError(f"{name}: sentencepiece refuses it: {str(error)[:200]}") from error
    if not loaded or processor.get_piece_size() == 0:
        raise TokenizerError(f"{name}: not a sentencepiece model")
    return processor


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes_field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data
