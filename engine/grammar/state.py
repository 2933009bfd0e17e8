"""A compiled grammar and the state of one text, on llguidance's matcher."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GrammarError

from .checker import LIMITS, STEP_SECONDS, llguidance
from .vocabulary import GrammarVocabulary

# A grammar that took longer to compile is not compiled again in the middle of a text.
_MAX_RENEWAL_SECONDS = 0.25


class MatcherGrammar:
    """A grammar that llguidance compiled. Safe to share between requests and threads.

    Args:
        source: the grammar in llguidance's format.
        tokenizer: llguidance's, made of ``vocabulary``.
        vocabulary: the model's.

    Attributes:
        vocabulary: the model's.
        failure: why it cannot be used; "" when it can.
        ends: uint32 [ceil(V / 32)], the mask of the end tokens.
    """

    def __init__(self, source: str, tokenizer: Any, vocabulary: GrammarVocabulary) -> None:
        self._source, self._tokenizer = source, tokenizer
        self.vocabulary = vocabulary
        self._lock = threading.Lock()
        start = time.thread_time()
        root = self._compiled()
        self._seconds = time.thread_time() - start
        self._root: Any = root
        self.failure = str(root.get_error())
        words = -(-len(vocabulary.tokens) // 32)
        self.ends = np.zeros(words, np.uint32)
        for token in vocabulary.end_tokens:
            self.ends[token // 32] |= np.uint32(1 << token % 32)

    def start(self) -> MatcherState:
        """The state of an empty text."""
        with self._lock:
            if self._root is None:
                self._root = self._compiled()
            return MatcherState(self, self._root.deep_copy(), [])

    def renewed(self, spent: Any) -> Any:
        """A matcher at the start of a text, with a lexer of its own.

        Matchers of one grammar share a lexer, which keeps every state that any text led to, and
        refuses them all once it has too many. The texts to come share a new one.

        Args:
            spent: the matcher that failed.

        Raises:
            GrammarError: the grammar is too large for that.
        """
        if self._seconds > _MAX_RENEWAL_SECONDS:
            raise GrammarError(f"the grammar is too complex: {reason(spent)}")
        with self._lock:
            self._root = None
        return self._compiled()

    def _compiled(self) -> Any:
        lib = llguidance()
        limits = lib.LLParserLimits(**LIMITS)
        return lib.LLMatcher(self._tokenizer, self._source, log_level=0, limits=limits)


class MatcherState:
    """Where one text stands. Not thread-safe.

    Where only one text can follow, it follows in the tokens that the tokenizer cuts it into, and
    the mask allows the first of these alone.

    Args:
        grammar: what the text must be in.
        matcher: llguidance's state after ``tokens``.
        tokens: the text so far.
    """

    def __init__(self, grammar: MatcherGrammar, matcher: Any, tokens: list[int]) -> None:
        self._grammar = grammar
        self._matcher = matcher
        self._tokens = tokens
        self._forced: list[int] | None = None
        self._mask: NDArray[np.uint32] | None = None
        self._renewable = True

    @property
    def ended(self) -> bool:
        """Whether nothing may follow but an end token.

        Raises:
            GrammarError: finding out takes more than the grammar's limits allow.
        """
        if self._matcher.is_stopped() and not self._matcher.is_error():
            return True
        return not (self._allowed() & ~self._grammar.ends).any()

    def mask(self) -> NDArray[np.int32]:
        """The tokens that may follow, int32 [ceil(V / 32)]; see ``GrammarState``.

        Raises:
            GrammarError: finding out takes more than the grammar's limits allow, or nothing may
                follow although the text may not end: a dead end.
        """
        return self._allowed().view(np.int32).copy()

    def accept(self, token: int) -> bool:
        """Append a token; False when it may not follow.

        Raises:
            GrammarError: finding out takes more than the grammar's limits allow.
        """
        allowed = self._allowed()
        if not (0 <= token < len(self._grammar.vocabulary.tokens)):
            return False
        if not allowed[token // 32] >> np.uint32(token % 32) & 1:
            return False
        forced = self._forced or []
        if not self._timed(lambda matcher: matcher.consume_token(token)):
            raise GrammarError(f"the grammar failed: {reason(self._matcher)}")
        self._tokens.append(token)
        self._mask = None
        # The rest of a forced text stays cut as it was.
        self._forced = forced[1:] or None
        return True

    def forced(self) -> list[int]:
        """Tokens that must follow, whatever the logits; see ``GrammarState``.

        Raises:
            GrammarError: finding out takes more than the grammar's limits allow.
        """
        return list(self._ahead())

    def fork(self) -> MatcherState:
        """A state of another text that begins in the same way."""
        other = MatcherState(self._grammar, self._matcher.deep_copy(), list(self._tokens))
        other._forced, other._mask = self._forced, self._mask
        other._renewable = self._renewable
        return other

    def _ahead(self) -> list[int]:
        if self._forced is None:
            ends = self._grammar.vocabulary.end_tokens
            ahead = self._timed(lambda matcher: matcher.compute_ff_tokens())
            stop = next((i for i, token in enumerate(ahead) if token in ends), len(ahead))
            self._forced = ahead[:stop]
        return self._forced or []

    def _allowed(self) -> NDArray[np.uint32]:
        """uint32 words of the mask; not to be changed."""
        if self._mask is None:
            ahead = self._ahead()
            if ahead:
                mask = np.zeros_like(self._grammar.ends)
                mask[ahead[0] // 32] = np.uint32(1 << ahead[0] % 32)
            else:
                words = self._timed(lambda matcher: matcher.compute_bitmask())
                mask = np.frombuffer(words, "<u4")[: len(self._grammar.ends)].copy()
                if self._matcher.is_accepting():
                    mask |= self._grammar.ends
                else:
                    mask &= ~self._grammar.ends
            if not mask.any():
                raise GrammarError("the grammar came to a dead end: no token may follow")
            self._mask = mask
        return self._mask

    def _timed(self, work: Any) -> Any:
        """What ``work`` gives for the matcher.

        Nobody can interrupt the library; a text whose grammar keeps the engine that long ends.
        """
        start = time.thread_time()
        result = work(self._matcher)
        if self._matcher.is_error() and self._renewable:
            self._renewable = False
            self._matcher = self._grammar.renewed(self._matcher)
            start = time.thread_time()
            if self._matcher.consume_tokens(self._tokens) or not self._tokens:
                result = work(self._matcher)
        if self._matcher.is_error():
            raise GrammarError(f"the grammar is too complex here: {reason(self._matcher)}")
        seconds = time.thread_time() - start
        if seconds > STEP_SECONDS:
            raise GrammarError(
                f"the grammar is too complex here: a step took {seconds:.2f} s of computing time; "
                f"at most {STEP_SECONDS} s are allowed"
            )
        return result


def reason(matcher: Any) -> str:
    """Why a matcher failed, in one line."""
    return plain(str(matcher.get_error())) or "no reason given"


def plain(message: str) -> str:
    """llguidance's message without what it adds for its own authors."""
    text = message.partition("\n<")[0].strip()
    return {"NoExtensionBias": "no text can follow"}.get(text, text)[:400]
