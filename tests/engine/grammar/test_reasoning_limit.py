"""Reasoning that is cut off: after so many tokens comes the marker of its end, never sooner."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from halfbyte.engine.engine import Engine
from halfbyte.engine.grammar.base import GrammarSpec
from halfbyte.engine.grammar.limit import LimitedGrammar, LimitedState, ReasoningLimit
from halfbyte.engine.params import SamplingParams

TINY = Path(__file__).parents[2] / "fixtures" / "gguf-q4_k-q6_k-qwen3" / "model.gguf"
# Pieces of text that markers may be cut into, and one token for each marker.
PIECES = [b"<", b"think", b">", b"</", b"/", b"a", b"\n", b" b", b"<think>", b"</think>", b"</th"]
CLOSING = tuple(PIECES.index(piece) for piece in (b"</", b"think", b">"))


def limited(most: int, *, begun: bool = False) -> LimitedState:
    limit = ReasoningLimit(most, b"<think>", b"</think>", CLOSING, begun)
    return LimitedGrammar(limit, PIECES.__getitem__, len(PIECES), None).start()


def allowed(state: LimitedState) -> set[int]:
    (word,) = state.mask().view("uint32")
    return {token for token in range(len(PIECES)) if word >> token & 1}


@pytest.mark.parametrize("begun", [False, True])
def test_a_walk_is_cut_exactly_where_the_limit_is(begun: bool) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    cut = 0
    for _ in range(200):
        most = rng.randint(0, 8)
        state = limited(most, begun=begun)
        text, inside = b"", begun
        if not begun:
            for token in [6, 8] if rng.random() < 0.5 else [0, 1, 2]:
                assert state.accept(token)
                text += PIECES[token]
            text, inside = b"", True
        for count in range(20):
            told = f"seed {seed}, most {most}, text {text!r}"
            if inside and count == most:
                assert state.forced() == list(CLOSING), told
                for token in CLOSING:
                    assert allowed(state) == {token}, told
                    other = rng.choice([t for t in range(len(PIECES)) if t != token])
                    assert not state.accept(other) and state.accept(token), told
                inside, cut = False, cut + 1
            assert state.forced() == [] and len(allowed(state)) == len(PIECES), told
            assert not state.ended
            state = state.fork()
            token = rng.randrange(len(PIECES))
            assert state.accept(token), told
            text += PIECES[token]
            inside = inside and b"</think>" not in text
    assert cut > 20, f"seed {seed}"


def test_an_answer_without_reasoning_is_not_touched() -> None:
    for tokens in ([5], [6, 5], [0, 5], [0, 1, 5], [4, 8]):
        state = limited(0)
        for token in [*tokens, 8, 5, 5]:
            assert state.accept(token) and not state.forced()
    assert limited(0, begun=True).forced() == list(CLOSING)


class Characters:
    """A grammar of any text, where the marker may not begin behind ``a``."""

    ended = False
    mid = False

    def start(self) -> Characters:
        return self

    def mask(self) -> np.ndarray:
        return np.array([~(1 << CLOSING[0]) if self.mid else -1], np.int32)

    def accept(self, token: int) -> bool:
        assert not (self.mid and token == CLOSING[0])
        self.mid = PIECES[token] == b"a"
        return True

    def forced(self) -> list[int]:
        return []

    def fork(self) -> Characters:
        return self


def test_a_character_that_has_begun_is_ended() -> None:
    limit = ReasoningLimit(1, b"<think>", b"</think>", CLOSING, begun=True)
    state = LimitedGrammar(limit, PIECES.__getitem__, len(PIECES), Characters()).start()
    for _ in range(2):
        assert state.accept(5) and not state.forced()
    assert state.accept(6) and state.forced() == list(CLOSING)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(TINY, threads=1, kv_tokens=4096)


def test_an_engine_cuts_reasoning_and_goes_on(engine: Engine) -> None:
    encode = engine.tokenizer.encode
    closing = tuple(encode("</think>", add_bos=False))
    prompts, seed = ["one", "two", "three"], random.randrange(2**31)

    def run(most: int | None, **more: object) -> list[list[int]]:
        limit = None
        if most is not None:
            limit = ReasoningLimit(most, b"<think>", b"</think>", closing, begun=True)
        params = SamplingParams(max_tokens=40, seed=seed, ignore_eos=True, reasoning_limit=limit)
        return [done.token_ids for done in engine.generate(prompts, params, **more)]  # type: ignore[arg-type]

    free = run(None)
    for most in (0, 1, 7, 25):
        for ids, unbound in zip(run(most), free, strict=True):
            assert ids[:most] == unbound[:most], f"seed {seed}"
            assert tuple(ids[most : most + len(closing)]) == closing, f"seed {seed}"
            assert len(ids) == 40
    assert run(60) == free


def test_a_grammar_holds_besides(engine: Engine) -> None:
    closing = tuple(engine.tokenizer.encode("</think>", add_bos=False))
    source = (
        'start: thought NUMBER\nthought[lazy]: TEXT "</think>"\n'
        "TEXT: /(.|\\n)*/\nNUMBER: /[0-9]{3}/\n"
    )
    seed = random.randrange(2**31)
    for number in range(20):
        params = SamplingParams(
            max_tokens=60,
            temperature=1.5,
            seed=seed + number,
            grammar=GrammarSpec.lark(source),
            reasoning_limit=ReasoningLimit(5, b"<think>", b"</think>", closing, begun=True),
        )
        (done,) = engine.generate(["hi"], params)
        # A character that has begun is ended, which takes three more bytes at most.
        cuts = [done.token_ids[at : at + len(closing)] for at in range(5, 9)]
        assert list(closing) in cuts, f"seed {seed + number}"
        before, _, after = done.text.partition("</think>")
        assert after.isdigit() and len(after) == 3, f"seed {seed + number}"
        assert "\ufffd" not in before, f"seed {seed + number}"
