"""Prompts that are too long are refused early, and tokenizing lets other threads run."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Callable

import pytest
from pipeline_cases import GAPS, SIGNS, WORDS, draw_pipeline
from tokenizer_cases import SPM_FOLDER, as_gguf, random_texts, spm_as_gguf, train

from halfbyte.engine.text.token_bound import TokenBound, TokenLimit, bound_of
from halfbyte.engine.text.tokenizer import Tokenizer
from halfbyte.engine.text.tokenizer_hf import HfBackend
from halfbyte.errors import RequestError

CHAT = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"


def kinds() -> dict[str, Tokenizer]:
    """A tokenizer of each kind."""
    spm = dataclasses.replace(spm_as_gguf(), chat_template=CHAT)
    found = {"gguf_bpe": Tokenizer.from_source(as_gguf(train()), 1024)}
    for kind, path in (
        ("gguf_spm", None),
        ("spm", "tokenizer.model"),
        ("hf_json", "tokenizer.json"),
    ):
        place = path and SPM_FOLDER / path
        source = dataclasses.replace(spm, kind=kind, path=place, tokens=() if path else spm.tokens)
        found[kind] = Tokenizer.from_source(source, 600)
    return found


def test_the_bound_is_never_above_the_number_of_tokens() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    bounded = 0
    for step in range(40):
        draw = random.Random(seed + step)
        backend = HfBackend(draw_pipeline(draw))
        bounded += backend.bound != TokenBound()
        for _ in range(10):
            text = "".join(draw.choices([*WORDS, *SIGNS, *GAPS, "e\u0301", "<unk>"], k=40))
            assert backend.bound.least(text) <= len(backend.encode(text)), (seed + step, text)
    assert bounded
    for name, tokenizer in kinds().items():
        for text in [*random_texts(100), " " * 99, "a" * 99, "e\u0301" * 9]:
            count = len(tokenizer.encode(text, add_bos=False))
            assert tokenizer._backend.bound.least(text) <= count, (name, text)


def test_bounds_of_vocabularies() -> None:
    letters = [bytes([b]) for b in range(256)]
    pieces = [*letters, b"hello", b" " * 50]
    assert bound_of(pieces, composes=False, loses_signs=False) == TokenBound(50, 5)
    assert bound_of(pieces, composes=True, loses_signs=False) == TokenBound(400, 5)
    assert bound_of(pieces, composes=False, loses_signs=True) == TokenBound(0, 5)
    # Without a letter of its own, text may share a token.
    assert bound_of([b"hello"], composes=False, loses_signs=True) == TokenBound(0, 0)
    assert TokenBound(50, 5).least("hello" * 10 + " " * 50) == 10
    assert TokenBound(50, 5).least(" " * 101) == 3
    assert TokenBound(0, 0).least("hello") == 0


def test_a_long_prompt_is_refused_before_it_is_tokenized() -> None:
    limit = TokenLimit(512)
    for name, tokenizer in kinds().items():
        long = "hello world " * 400_000
        if tokenizer._backend.bound != TokenBound():
            with pytest.raises(RequestError, match=r"at least [0-9]+ tokens, but .* holds 512"):
                tokenizer.encode(long, limit=limit)
            with pytest.raises(RequestError, match="at least") as caught:
                messages = [{"role": "user", "content": long[:100_000]}]
                tokenizer.encode_chat(messages, limit=TokenLimit(512, "messages"))
            assert (caught.value.code, caught.value.param) == (
                "context_length_exceeded",
                "messages",
            ), name
        count = len(tokenizer.encode("a b c"))
        assert tokenizer.encode("a b c", limit=TokenLimit(count + 1))
        with pytest.raises(RequestError, match=f"has {count} tokens, but the context"):
            tokenizer.encode("a b c", limit=TokenLimit(count))
        for parse in (True, False):
            with pytest.raises(RequestError, match="tokens, but the context"):
                tokenizer.encode("</s><|im_end|>" * 9, parse_special=parse, limit=TokenLimit(9))


def longest_gap(work: Callable[[], object]) -> float:
    """Seconds by which a thread that wakes every 5 ms came late at most, but for the first 1 %."""
    late: list[float] = []
    done = threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not done.wait(0.005):
            now = time.perf_counter()
            late.append(now - last - 0.005)
            last = now

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return sorted(late)[int(len(late) * 0.99)]


@pytest.mark.slow
def test_other_threads_run_while_5_mb_are_tokenized() -> None:
    text = ("The quick brown fox jumps <|im over <b>it</b>. " * 110_000)[:5_000_000]
    for name, tokenizer in kinds().items():
        messages = [{"role": "user", "content": text[:3_500_000]}]
        for work in (
            lambda tokenizer=tokenizer: tokenizer.encode(text),
            lambda tokenizer=tokenizer, m=messages: tokenizer.encode_chat(m),
        ):
            assert longest_gap(work) < 0.1, name  # it was as long as the call, seconds
