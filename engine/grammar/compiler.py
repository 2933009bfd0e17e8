"""Grammars as users write them, compiled for a model's vocabulary, each once."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import Future
from functools import cached_property
from typing import Any

from halfbyte.errors import RequestError

from ..params import SamplingParams
from ..text.tokenizer import Tokenizer
from .base import Grammar, GrammarSpec
from .checker import GrammarChecker, llguidance
from .gbnf_lark import gbnf_grammar
from .json_schema import schema_grammar, with_options
from .lark import lark_grammar
from .limit import LimitedGrammar
from .state import MatcherGrammar, plain
from .vocabulary import GrammarVocabulary, grammar_vocabulary

# How Rust's regex crate shows where a pattern is wrong.
_PATTERN = re.compile(r"\n    (.*)\n    ( *)\^+\nerror: (.*)")
_PLACE = re.compile(r"^at \d+\(\d+\): ")
CACHED = 32
"""So many compiled grammars are kept, those used last."""


class GrammarCompiler:
    """Compiles grammars. Safe to use from several threads.

    The library and the vocabulary in its form are loaded at the first grammar.

    Args:
        tokenizer: the model's.
        vocab_size: rows of the embedding, V.
        end_tokens: ids that end a text.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_tokens: Collection[int]) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._ends = frozenset(i for i in end_tokens if i < vocab_size)
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._cached: OrderedDict[GrammarSpec, Future[MatcherGrammar]] = OrderedDict()

    def compile(self, spec: GrammarSpec, *, param: str | None = None) -> MatcherGrammar:
        """The compiled grammar; an equal one is compiled once, also by several threads at a time.

        It is tried in another process first, under limits of time and memory.

        Args:
            spec: the grammar.
            param: the field that an error names; that of ``spec`` when left out.

        Raises:
            RequestError: the grammar is malformed, has something that cannot be honoured, or
                exceeds the limits; the model has no end token; or llguidance is missing.
            GrammarProcessError: the process that tries it cannot start, or ended by itself.
        """
        with self._lock:
            future = self._cached.get(spec)
            mine = future is None
            if future is None:
                future = self._cached[spec] = Future()
            self._cached.move_to_end(spec)
            while len(self._cached) > CACHED:
                self._cached.popitem(last=False)
        if mine:
            try:
                future.set_result(self._compiled(spec, param or spec.param))
            except BaseException as error:
                with self._lock:
                    if self._cached.get(spec) is future:
                        del self._cached[spec]
                future.set_exception(error)
        return future.result()

    def of(self, params: SamplingParams) -> Grammar | None:
        """What the answers to a request must match; None: anything. Raises what `compile` does."""
        inner = None if params.grammar is None else self.compile(params.grammar)
        if params.reasoning_limit is None:
            return inner
        bytes_of = self._tokenizer.token_bytes
        return LimitedGrammar(params.reasoning_limit, bytes_of, self._vocab_size, inner)

    def _compiled(self, spec: GrammarSpec, param: str) -> MatcherGrammar:
        source = json.dumps({"grammars": [_grammar(spec, param)]})
        tokenizer, vocabulary, checker = self._loaded
        failure = checker.failure(source)
        grammar = None if failure else MatcherGrammar(source, tokenizer, vocabulary)
        failure = failure or (grammar.failure if grammar else "")
        if grammar is None or failure:
            raise RequestError(
                f"{param}: the {spec.kind} grammar cannot be used: {_explained(failure, spec)}",
                param=param,
                code="invalid_grammar",
            )
        return grammar

    @property
    def _loaded(self) -> tuple[Any, GrammarVocabulary, GrammarChecker]:
        with self._loading:  # or two threads would do it at once
            return self._parts

    @cached_property
    def _parts(self) -> tuple[Any, GrammarVocabulary, GrammarChecker]:
        library = llguidance()
        if not self._ends:
            raise RequestError(
                "the model has no end-of-text token; a grammar needs one", param="grammar"
            )
        vocabulary = grammar_vocabulary(self._tokenizer, self._vocab_size, self._ends)
        tokenizer = library.LLTokenizer(vocabulary, eos_token=vocabulary.end_tokens)
        return tokenizer, vocabulary, GrammarChecker(vocabulary)


def _grammar(spec: GrammarSpec, param: str) -> dict[str, Any]:
    """A grammar in llguidance's format."""
    match spec.kind:
        case "json_schema":
            return schema_grammar(spec.text, param)
        case "json_object":
            return {"json_schema": with_options({"type": "object"})}
        case "regex":
            return json.loads(llguidance().LLMatcher.grammar_from_regex(spec.text))["grammars"][0]
        case "choice":
            texts = " | ".join(map(json.dumps, json.loads(spec.text)))
            return {"lark_grammar": f"start: CHOICE\nCHOICE: {texts}\n"}
        case "lark":
            return lark_grammar(spec.text, param)
        case "gbnf":
            return gbnf_grammar(spec.text, param)


def _explained(failure: str, spec: GrammarSpec) -> str:
    """A failure in the user's words."""
    if failure.startswith("oneOf constraints"):
        return (
            "a value may be valid under two branches of a 'oneOf'; expected branches that a type "
            "or a constant tells apart, or 'anyOf'"
        )
    if found := _PATTERN.search(failure):
        pattern, before, problem = found.groups()
        return f"{problem}, at character {len(before) + 1} of the pattern {pattern!r:.80}"
    if spec.kind != "lark":  # lines and columns are those of what it was converted to
        failure = _PLACE.sub("", failure).partition("\n")[0]
    return plain(failure)
