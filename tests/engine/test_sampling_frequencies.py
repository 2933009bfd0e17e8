"""How often each token is drawn, field by field and in random combinations of fields.

The model gives the same random logits after any text, so the law of every draw is known exactly
(``sampling_law.py``). Its draws are counted, and the probabilities that it says it drew from are
compared with the law. ``pytest -m slow -s`` on this file prints the table of a long run.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sampling_law import Floats, Law, Lexicon, chi_square, laws, next_law
from tokenizers import Tokenizer
from tokenizers.normalizers import Replace

from halfbyte import Completion, Engine, SamplingParams

# A right sampler fails one test in a million if the statistic has its limiting distribution. With
# cells of 20 expected draws its true tail there is up to ten times as heavy (the exact binomial's
# for one degree of freedom), so one run of some forty tests fails wrongly less than once in 2000.
LEAST_CHANCE = 1e-6
LEAST_EXPECTED = 20.0
# Float32 logits up to 60 in size (biases and penalties on top of the model's), summed and divided
# by temperatures down to 0.3, are good to 2e-5; probabilities and their sums to 1e-6.
NEAR = 5e-5
TOKENS = 3  # of each answer: penalties of the output and mirostat need some


class World:
    """An engine whose logits do not depend on the text, and what the law must know of it."""

    def __init__(self, folder: Path) -> None:
        self.engine = Engine(
            folder, exact=True, max_batch=128, block_size=16, max_context=96, threads=1
        )
        logits_TV = self.engine.logits([1, 5, 70, 5, 300])
        assert (logits_TV == logits_TV[0]).all(), "the logits depend on the text"
        self.raw_V = logits_TV[0].double().numpy()
        self.favourites = [int(i) for i in np.argsort(-self.raw_V)[: len(FAVOURITES) + 1]]
        size = self.engine.model_config.vocab_size
        spell = self.engine.tokenizer.token_bytes
        texts = ["" if i < 3 else spell(i).decode("utf-8", "replace") for i in range(size)]
        spaced = Tokenizer.from_file(str(folder / "tokenizer.json"))
        bare = Tokenizer.from_file(str(folder / "tokenizer.json"))
        bare.normalizer = Replace(" ", "▁")
        self.words = {
            word: [tuple(t.encode(word, add_special_tokens=False).ids) for t in (spaced, bare)]
            for word in WORDS
        }
        self.lexicon = Lexicon(texts, frozenset({2}), self.words)


# Pieces with which all words of WORDS can be written, and some that break sequences for DRY.
FAVOURITES = ["▁in", "in", "▁re", "re", "▁do", "do", "▁la", "la", "▁so", "):", "<0x2A>", "▁the"]
WORDS = ["in", "dore", "la", "redo", "doin"]


@pytest.fixture(scope="module")
def world(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The tiny model with nothing between one embedding for all tokens and a random head."""
    folder = tmp_path_factory.mktemp("constant") / "model"
    shutil.copytree(tiny_hf, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    tensors = load_file(folder / "model.safetensors")
    logits_V = torch.randn(600) - 6
    favourites = [vocabulary[piece] for piece in FAVOURITES] + [2]
    # Signs of both kinds, which the repetition penalty treats apart.
    logits_V[favourites] = torch.rand(len(favourites)) * 4 - 2
    for name, tensor in tensors.items():
        tensors[name] = torch.ones_like(tensor) if "norm" in name else torch.zeros_like(tensor)
    tensors["model.embed_tokens.weight"].fill_(1.0)
    head_VD = (logits_V[:, None] / 128).expand(600, 128)
    tensors["lm_head.weight"] = head_VD.to(torch.float16).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    made = World(folder)
    yield made
    made.engine.close()


Fields = dict[str, Any]
Maker = Callable[[World], Fields]


def uniform(low: float, high: float) -> float:
    return random.uniform(low, high)


def favour(world: World, count: int) -> list[int]:
    return random.sample(world.favourites, count)


class Shift:
    """A processor that adds fixed numbers to the logits."""

    def __init__(self, size: int) -> None:
        self.add_V = torch.randn(size, dtype=torch.float64)

    def __call__(self, ids: Sequence[int], logits_V: torch.Tensor) -> torch.Tensor:
        return logits_V + self.add_V.to(logits_V.dtype)


FIELDS: dict[str, Maker] = {
    "temperature": lambda w: {"temperature": uniform(0.3, 2.5)},
    "dynatemp": lambda w: {
        "temperature": uniform(0.8, 1.5),
        "dynatemp_range": uniform(0.2, 0.5),
        "dynatemp_exponent": uniform(0.4, 2.5),
    },
    "top_k": lambda w: {"top_k": random.randint(2, 20)},
    "top_n_sigma": lambda w: {"top_n_sigma": uniform(0.5, 3.5)},
    "typical_p": lambda w: {"typical_p": uniform(0.2, 0.98)},
    "top_p": lambda w: {"top_p": uniform(0.3, 0.98)},
    "min_p": lambda w: {"min_p": uniform(0.01, 0.6)},
    "xtc": lambda w: {
        "xtc_probability": uniform(0.2, 1.0),
        "xtc_threshold": uniform(0.03, 0.12),
    },
    "mirostat": lambda w: {
        "mirostat": 2,
        "mirostat_tau": uniform(0.8, 3.0),
        "mirostat_eta": uniform(0.2, 1.0),
    },
    "repetition_penalty": lambda w: {
        "repetition_penalty": random.choice([uniform(0.4, 0.9), uniform(1.2, 3.0)])
    },
    "presence_penalty": lambda w: {"presence_penalty": uniform(-2, 2)},
    "frequency_penalty": lambda w: {"frequency_penalty": uniform(-2, 2)},
    "dry": lambda w: {
        "dry_multiplier": uniform(0.5, 2.0),
        "dry_base": uniform(1.1, 1.8),
        "dry_allowed_length": random.randint(1, 3),
        "dry_penalty_last_n": random.choice([-1, -1, 5, 12, 1000]),
        "dry_sequence_breakers": random.choice([("\n", ":", '"', "*"), ("do",), ()]),
    },
    "logit_bias": lambda w: {
        "logit_bias": {i: uniform(-4, 4) for i in favour(w, 5)} | {favour(w, 1)[0]: -100.0}
    },
    "allowed_token_ids": lambda w: {
        "allowed_token_ids": [*favour(w, 6), *random.sample(range(3, 600), 40)]
    },
    "bad_words": lambda w: {"bad_words": random.sample(WORDS, 3)},
    "min_tokens": lambda w: {
        "min_tokens": random.randint(1, TOKENS),
        "stop_token_ids": favour(w, 3),
        "ignore_eos": random.random() < 0.5,
    },
    "ignore_eos": lambda w: {"ignore_eos": True},
    "processors": lambda w: {"processors": [Shift(len(w.raw_V)) for _ in range(2)]},
}
FILTERS = {"top_k", "top_n_sigma", "typical_p", "top_p", "min_p", "xtc"}


def combination(world: World) -> Fields:
    """Fields of several kinds that do not contradict each other."""
    left_out = FILTERS if random.random() < 0.2 else {"mirostat"}
    names = [n for n in FIELDS if n not in left_out and random.random() < 0.35]
    names += [n for n in ("mirostat",) if left_out is FILTERS and n not in names]
    fields: Fields = {}
    for name in names:
        fields |= FIELDS[name](world)
    return fields


def drawn_case(world: World, make: Maker) -> tuple[SamplingParams, list[int]]:
    """Parameters and a prompt whose first draw is no matter of float32's rounding."""
    while True:
        # Of few tokens, so that it repeats itself.
        prompt = random.choices(favour(world, 4), k=24)
        p = SamplingParams(**{"max_tokens": TOKENS, **make(world)})
        law = next_law(world.raw_V, p, prompt, 0, world.lexicon, 2 * p.mirostat_tau)
        if law.margin > NEAR:
            return p, prompt


def draw(world: World, p: SamplingParams, prompt: list[int], texts: int) -> Iterator[Completion]:
    """So many answers, with the log-probabilities that each token was drawn with."""
    while texts > 0:
        count = min(texts, 128)
        seed = random.getrandbits(48)
        print("seed", seed)
        (done,) = world.engine.generate(
            [prompt], p, n=count, seed=seed, logprobs=20, logprobs_mode="processed"
        )
        yield from done.choices or [done]
        texts -= count


def branches(done: Completion, found: list[tuple[Law, int]]) -> Iterator[tuple[Law, int]]:
    """The branch of each law whose log-probabilities an answer says that it drew from."""
    for sampled, (law, token) in zip(done.logprobs or (), found, strict=False):
        assert sampled.token == token and sampled.logprob is not None
        said = {**dict(sampled.top), token: sampled.logprob}
        with np.errstate(divide="ignore"):
            wanted = [np.log(p_V) for _, p_V in law.branches]
        off = [max(_distance(lp_V[i], lp) for i, lp in said.items()) for lp_V in wanted]
        branch = int(np.argmin(off))
        assert off[branch] < NEAR, (said, [{i: lp_V[i] for i in said} for lp_V in wanted])
        assert len(sampled.top) == min(20, (law.branches[branch][1] > 0).sum())
        yield law, branch


def _distance(one: float, other: float) -> float:
    return 0.0 if one == other else abs(one - other)


def judge(world: World, make: Maker, texts: int) -> tuple[int, float, int, float]:
    """Draw, compare, count: the draws, and what chi_square gives of their tokens."""
    p, prompt = drawn_case(world, make)
    print(p, prompt)
    known: dict[Any, Law] = {}
    counted: list[tuple[Floats, int]] = []
    coins: list[tuple[Floats, int]] = []
    for done in draw(world, p, prompt, texts):
        assert done.error is None
        found = list(laws(world.raw_V, p, prompt, done.token_ids, world.lexicon, known, NEAR))
        for law, token in found:
            assert law.mixed[token] > 0, f"token {token} cannot be drawn"
        coins += [(law.chances, branch) for law, branch in branches(done, found)]
        counted += [(law.mixed, token) for law, token in found]
    statistic, freedom, chance = chi_square(counted, LEAST_EXPECTED)
    assert chi_square(coins, LEAST_EXPECTED)[2] > LEAST_CHANCE
    return len(counted), statistic, freedom, chance


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_draws_by_its_law(world: World, name: str) -> None:
    _, statistic, freedom, chance = judge(world, FIELDS[name], 80)
    assert chance > LEAST_CHANCE, (statistic, freedom)


@pytest.mark.parametrize("turn", range(6))
def test_combinations_draw_by_their_law(world: World, turn: int) -> None:
    _, statistic, freedom, chance = judge(world, combination, 48)
    assert chance > LEAST_CHANCE, (statistic, freedom)


def test_counting_notices_another_temperature(world: World) -> None:
    """The same draws by the law of twice the temperature: nothing in 150 simulations passes it."""
    p = SamplingParams(temperature=0.5, max_tokens=TOKENS)
    other = SamplingParams(temperature=1.0, max_tokens=TOKENS)
    drawn = [done.token_ids for done in draw(world, p, [5, 6], 256)]
    chances = []
    for judged in (p, other):
        known: dict[Any, Law] = {}
        found = [
            (law.mixed, token)
            for ids in drawn
            for law, token in laws(world.raw_V, judged, [5, 6], ids, world.lexicon, known, 0.0)
        ]
        chances.append(chi_square(found, LEAST_EXPECTED)[2])
    assert chances[0] > LEAST_CHANCE > chances[1]


@pytest.mark.slow  # forty times the draws of the tests above
@pytest.mark.timeout(3600)
def test_the_table_of_frequencies(world: World) -> None:
    """Rows for a document: draws, Pearson's statistic, degrees of freedom, chance of a larger one.

    Each must pass by itself, and small chances may not be too many.
    """
    makers = {**FIELDS, **{f"combination {i + 1}": combination for i in range(20)}}
    chances = []
    print("\n| fields | draws | chi-square | degrees of freedom | p |\n|---|---|---|---|---|")
    for name, make in makers.items():
        draws, statistic, freedom, chance = judge(world, make, 1400)
        print(f"| {name} | {draws} | {statistic:.1f} | {freedom} | {chance:.3f} |")
        chances.append(chance)
        assert chance > LEAST_CHANCE, name
    # More than 15 of 39 chances are below a tenth in fewer than one run of a million.
    assert sum(chance < 0.1 for chance in chances) <= 15
