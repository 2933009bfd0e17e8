"""Rotary rules that go by the length of a text, where texts share beginnings."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tiny_models import make_model, save_model

from halfbyte import Engine, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.mark.exact
@pytest.mark.parametrize(
    "name", ["llama-dynamic", pytest.param("llama-longrope", marks=pytest.mark.slow)]
)
def test_a_text_never_gets_keys_made_for_another_length(name: str, tmp_path: Path) -> None:
    """Prompts on both sides of the limit (64) with one beginning, cold and after one another.

    Beyond the limit a position is rotated by the length of its text, so cached keys of a text of
    another length are wrong there: the answers would depend on what ran before.
    """
    seed = random.randrange(1 << 40)
    print("seed", seed)
    folder = save_model(make_model(name, seed), tmp_path)
    rng = random.Random(seed)
    stem = [rng.randrange(256) for _ in range(130)]
    prompts = [stem[:n] for n in (56, 130, 60, 90, 64, 65)]
    prompts += [[*stem[:50], 7, 8, 9], [*stem[:100], 7, 8, 9]]
    want = []
    for prompt in prompts:
        with Engine(folder, exact=True, prefix_cache=False) as engine:
            want.append(engine.generate([prompt], GREEDY)[0].token_ids)
    options = {"exact": True, "block_size": 16, "max_batch_tokens": 48}
    with Engine(folder, **options) as engine:
        for _ in range(2):
            got = [engine.generate([prompt], GREEDY)[0].token_ids for prompt in prompts]
            assert got == want
    with Engine(folder, **options, kv_tokens=176, max_context=170) as engine:
        got = [done.token_ids for done in engine.generate(prompts, GREEDY)]
        assert engine.stats().preemptions > 0
        assert got == want


@pytest.mark.parametrize("name", ["llama-dynamic", "llama-longrope"])
def test_texts_within_the_limit_share_their_beginnings(name: str, tmp_path: Path) -> None:
    """With a context that stays below it, the rules change nothing and the cache serves."""
    folder = save_model(make_model(name, 1), tmp_path)
    with Engine(folder, max_context=64, block_size=16) as engine:
        for cached in (0, 32):
            (done,) = engine.generate(
                [list(range(40))], SamplingParams(temperature=0, max_tokens=4)
            )
            assert done.usage.cached_tokens == cached
