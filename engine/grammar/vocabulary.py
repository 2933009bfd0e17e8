"""The vocabulary of a model as grammars see it: the bytes of each token, and how text is cut.

The jailed worker loads this file by itself, so it imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

# Grammars are sets of UTF-8 texts, in which this byte never stands; llguidance marks special
# tokens with it.
_NEVER = b"\xff"


class GrammarVocabulary:
    """What llguidance asks of a tokenizer.

    Args:
        tokens: bytes of each of the V ids; none for ids that stand for no text.
        special: ids that carry structure. Text never becomes one of them.
        end_tokens: ids that end a text, at least one; they are special, too.
        encode: how the model's tokenizer cuts a text; None takes the longest token each time.

    Attributes:
        tokens: the bytes of each id.
        special_token_ids: ids that carry structure, in order.
        end_tokens: ids that end a text, in order.
        eos_token_id: the first of them.
        bos_token_id: not used.
        is_tokenizer_wrapper: how llguidance recognises such a class.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(
        self,
        tokens: Sequence[bytes],
        special: Collection[int],
        end_tokens: Collection[int],
        encode: Callable[[str], list[int]] | None = None,
    ) -> None:
        self._encode = encode
        self._structure = frozenset(special) | frozenset(end_tokens)
        self.tokens = [
            b"" if text.startswith(_NEVER) and i not in self._structure else bytes(text)
            for i, text in enumerate(tokens)
        ]
        self.special_token_ids = sorted(self._structure)
        self.end_tokens = sorted(end_tokens)
        self.eos_token_id = self.end_tokens[0]
        pairs = enumerate(self.tokens)
        self._by_text = {text: i for i, text in pairs if text and i not in self._structure}
        self._longest = max(map(len, self._by_text), default=0)

    def __call__(self, text: str) -> list[int]:
        """Ids whose bytes are exactly those of ``text``, cut as within a longer text."""
        data = text.encode()
        if self._encode is not None:
            ids = self._encode(text)
            if self._spells(ids, data):
                return ids
            # Some vocabularies put a space in front of a text, but not after a line break in it.
            ids = self._encode("\n" + text)
            for count in range(1, min(len(ids), 4)):
                if self._spells(ids[count:], data):
                    return ids[count:]
        return self._longest_first(data)

    def _spells(self, ids: list[int], data: bytes) -> bool:
        tokens = self.tokens
        return b"".join([tokens[i] for i in ids]) == data

    def _longest_first(self, data: bytes) -> list[int]:
        """Ids that take the longest token each time; they end where no token fits."""
        ids: list[int] = []
        start = 0
        while start < len(data):
            for stop in range(min(start + self._longest, len(data)), start, -1):
                token = self._by_text.get(data[start:stop])
                if token is not None:
                    ids.append(token)
                    start = stop
                    break
            else:
                break
        return ids


def grammar_vocabulary(
    tokenizer: Tokenizer, vocab_size: int, end_tokens: Collection[int]
) -> GrammarVocabulary:
    """The vocabulary of a model; tokens that its files forbid to draw stand for no text.

    Args:
        tokenizer: the model's.
        vocab_size: rows of the embedding, V.
        end_tokens: ids that end a text, at least one.
    """
    hidden = tokenizer.suppressed
    return GrammarVocabulary(
        [b"" if i in hidden else tokenizer.token_bytes(i) for i in range(vocab_size)],
        [i for i in tokenizer.special_ids if i < vocab_size],
        end_tokens,
        lambda text: tokenizer.encode(text, add_bos=False, parse_special=False),
    )
