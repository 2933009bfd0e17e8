"""Building a tokenizer beside the packing of weights, and what that spares."""

from __future__ import annotations

import dataclasses
import gc
import random

import pytest
from tokenizer_cases import as_gguf, random_texts, train

from halfbyte.engine.text.collector import collector_paused
from halfbyte.engine.text.pipeline_steps import byte_alphabet, decoding_of
from halfbyte.engine.text.tokenizer import Tokenizer
from halfbyte.engine.text.tokenizer_hf import HfBackend
from halfbyte.engine.text.tokenizer_thread import TokenizerThread
from halfbyte.errors import TokenizerError


def test_the_tokenizer_is_the_one_that_would_be_built_at_once() -> None:
    source = as_gguf(train())
    told: list[tuple[int, int]] = []
    with TokenizerThread(source, 1024) as building:
        building.beside(lambda *seen: told.append(seen))(1, 2)
        found, expected = building.result(), Tokenizer.from_source(source, 1024)
    assert told == [(1, 2)]
    for text in random_texts(50):
        ids = expected.encode(text)
        assert found.encode(text) == ids and found.decode(ids) == expected.decode(ids)


def test_a_damaged_vocabulary_ends_the_loading_at_the_next_layer() -> None:
    source = dataclasses.replace(as_gguf(train()), merges=("a",))
    seen: list[int] = []
    with (
        pytest.raises(TokenizerError, match="expected two parts"),
        TokenizerThread(source, 1024) as building,
    ):
        told = building.beside(lambda done, total: seen.append(done))
        with pytest.raises(TokenizerError):
            building.result()
        told(1, 2)
    assert seen == []


def test_an_error_while_loading_waits_for_the_thread() -> None:
    with pytest.raises(ZeroDivisionError), TokenizerThread(as_gguf(train()), 1024) as building:
        raise ZeroDivisionError
    assert building._future.done()


@pytest.mark.parametrize("was_on", [True, False])
def test_the_collector_is_as_before(was_on: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if was_on else gc.disable)()
        with pytest.raises(ZeroDivisionError), collector_paused():
            assert not gc.isenabled()
            raise ZeroDivisionError
        assert gc.isenabled() == was_on
    finally:
        (gc.enable if before else gc.disable)()


def test_bytes_of_byte_level_tokens_are_those_of_the_alphabet() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    table = byte_alphabet()
    to_bytes = decoding_of(train()).to_bytes
    others = [chr(c) for c in (0, 10, 32, 0x7F, 0xA0, 0xAD, 0x144, 0xFFFF, 0x6771, 0x1F680)]
    for _ in range(300):
        text = "".join(draw.choices([*table], k=draw.randrange(12)))
        assert to_bytes(text) == bytes(table[c] for c in text)
        foreign = text + draw.choice(others) + text
        assert to_bytes(foreign) == foreign.encode()


def test_a_vocabulary_that_is_known_is_the_pipelines_own() -> None:
    source = as_gguf(train())
    found = Tokenizer.from_source(source, 1024)._backend
    assert isinstance(found, HfBackend)
    asked = HfBackend(found._tokenizer, size=found.size)
    assert found._texts == asked._texts and found.bound == asked.bound
