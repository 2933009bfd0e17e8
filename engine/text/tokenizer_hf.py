"""Vocabularies that run on the ``tokenizers`` library, with its own rules for added tokens."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from halfbyte.errors import RequestError, TokenizerError

from ...loaders.base import AddedFlags
from .pipeline_steps import decoding_of, pipeline_bound, shielded
from .special_text import WEDGES, Span, UserText, bounded, own_spans, with_wedges
from .token_bound import TokenLimit

if TYPE_CHECKING:
    from tokenizers import AddedToken, Encoding
    from tokenizers import Tokenizer as HfTokenizer


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
        vocab: all tokens, added ones among them: text -> id; None asks the pipeline, which takes
            a while.

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
        self,
        tokenizer: HfTokenizer,
        extra_special: Iterable[int] = (),
        size: int = 0,
        vocab: Mapping[str, int] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._twins: dict[str, _Twin] = {}
        if vocab is None:
            vocab = tokenizer.get_vocab(with_added_tokens=True)
        added: dict[int, AddedToken] = tokenizer.get_added_tokens_decoder()
        if not vocab:
            raise TokenizerError("the vocabulary is empty; expected at least one token")
        highest = max(vocab.values())
        self.size = size or highest + 1
        self._holds_places = size > 0 and highest >= size
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
        self._decoding = decoding_of(tokenizer)
        self.strips_space = self._decoding.strips_space
        self.bound = pipeline_bound(tokenizer, vocab, self._decoding, self._holds_places)

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
        encoding = shielded(
            lambda: tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
        )
        if limit is not None:
            limit.check(len(encoding))
        ids = encoding.ids
        return [i for i in ids if i < self.size] if self._holds_places else ids

    def _with_offsets(self, tokenizer: HfTokenizer, text: str) -> Encoding:
        return shielded(lambda: tokenizer.encode_batch([text], add_special_tokens=False)[0])

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
            for token in shielded(lambda part=part: model.tokenize(part)) if part else ():
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
        return AddedToken(content, special=token.special, **asdict(flags_of(token)))


def flags_of(token: AddedToken) -> AddedFlags:
    """How an added token is matched."""
    return AddedFlags(token.single_word, token.lstrip, token.rstrip, token.normalized)
