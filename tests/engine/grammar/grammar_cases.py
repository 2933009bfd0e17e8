"""Small vocabularies, and texts that are drawn through the masks of a grammar."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from halfbyte.engine.grammar.base import GrammarSpec
from halfbyte.engine.grammar.compiler import GrammarCompiler
from halfbyte.engine.grammar.state import MatcherState
from halfbyte.engine.text.tokenizer import Tokenizer
from halfbyte.loaders.base import TokenizerSource

SPM_MODEL = Path(__file__).parents[2] / "fixtures" / "fp16-llama-spm" / "tokenizer.model"
END, CALL = "<|end|>", "<|call|>"
PADDING = 37
_CORPUS = '{"name": "Ada", "age": 36, "tags": ["a", "bb"], "ok": true, "no": null}\n  the end 1.5 '


@cache
def byte_level() -> tuple[Tokenizer, int]:
    """A byte-level BPE of some 300 tokens in an embedding with rows to spare."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=310,
        special_tokens=[END, CALL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([_CORPUS] * 20, trainer)
    vocab = trained.get_vocab()
    tokens = tuple(sorted(vocab, key=lambda token: vocab[token]))
    source = TokenizerSource(
        kind="gguf_bpe",
        tokens=tokens,
        token_types=tuple(3 if token in (END, CALL) else 1 for token in tokens),
        merges=tuple(" ".join(m) for m in json.loads(trained.to_str())["model"]["merges"]),
        pre="gpt-2",
        added_tokens={END: vocab[END], CALL: vocab[CALL]},
        special_ids=frozenset({vocab[END], vocab[CALL]}),
        eos_ids=(vocab[END],),
    )
    rows = len(tokens) + PADDING
    return Tokenizer.from_source(source, rows), rows


@cache
def sentencepiece() -> tuple[Tokenizer, int]:
    """A sentencepiece model with byte fallback, whose texts get a space in front."""
    source = TokenizerSource(
        kind="spm",
        path=SPM_MODEL,
        bos_id=1,
        eos_ids=(2,),
        add_bos=True,
        special_ids=frozenset({0, 1, 2}),
    )
    return Tokenizer.from_source(source, 600), 600


VOCABULARIES = {"byte-level": byte_level, "sentencepiece": sentencepiece}


@cache
def compiler(name: str) -> GrammarCompiler:
    """One for all tests, as each starts a process."""
    tokenizer, rows = VOCABULARIES[name]()
    return GrammarCompiler(tokenizer, rows, tokenizer.eos_ids)


def start(spec: GrammarSpec, name: str = "byte-level") -> MatcherState:
    return compiler(name).compile(spec).start()


def allowed(state: MatcherState) -> set[int]:
    bits = np.unpackbits(state.mask().view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def end_of(name: str = "byte-level") -> int:
    (end,) = VOCABULARIES[name]()[0].eos_ids
    return end


def drawn_text(state: MatcherState, name: str = "byte-level", most: int = 400) -> str | None:
    """A text drawn token by token; None when it did not end within ``most`` tokens."""
    tokenizer, _ = VOCABULARIES[name]()
    end = end_of(name)
    data = b""
    for _ in range(most):
        tokens = allowed(state)
        if end in tokens and (tokens == {end} or random.random() < 0.3):
            return data.decode()
        # Quotes, brackets and commas above all, so that texts come to an end.
        likely = [t for t in tokens if tokenizer.token_bytes(t).strip() in b'"]},0']
        token = random.choice(
            sorted(likely) if likely and random.random() < 0.5 else sorted(tokens - {end})
        )
        assert state.accept(token)
        data += tokenizer.token_bytes(token)
    return None


def accepts(spec: GrammarSpec, text: str, name: str = "byte-level") -> bool:
    """Whether a text, cut as the masks allow, is one of a grammar's."""
    tokenizer, _ = VOCABULARIES[name]()
    state, data = start(spec, name), text.encode()
    while data:
        fitting = [t for t in allowed(state) if _begins(data, tokenizer.token_bytes(t))]
        if not fitting:
            return False
        token = max(fitting, key=lambda t: len(tokenizer.token_bytes(t)))
        assert state.accept(token)
        data = data[len(tokenizer.token_bytes(token)) :]
    return end_of(name) in allowed(state)


def _begins(data: bytes, token: bytes) -> bool:
    return bool(token) and data.startswith(token)
