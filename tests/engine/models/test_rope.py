"""Every rotary scaling rule against transformers' own tables, read from the same config."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from halfbyte.engine.models.rope import Rotary, inverse_frequencies
from halfbyte.loaders.files.fields import Fields
from halfbyte.loaders.hf.rope import read_rope
from halfbyte.loaders.model.config import RopeConfig

HEADS, DIM, CONTEXT = 4, 32, 256
FACTORS = {
    "short_factor": [1.0 + 0.05 * i for i in range(DIM // 2)],
    "long_factor": [1.5 + 0.4 * i for i in range(DIM // 2)],
}
RULES: dict[str, dict[str, Any]] = {
    "default": {},
    "theta": {"rope_theta": 5e5},
    "linear": {"rope_type": "linear", "factor": 3.7},
    "dynamic": {"rope_type": "dynamic", "factor": 2.5},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "llama3-uneven": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 0.7,
        "high_freq_factor": 9.0,
        "original_max_position_embeddings": 100,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn-betas": {
        "rope_type": "yarn",
        "factor": 16.0,
        "beta_fast": 8.0,
        "beta_slow": 0.5,
        "truncate": False,
        "original_max_position_embeddings": 128,
    },
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "original_max_position_embeddings": 64,
    },
    "yarn-mscale-alone": {
        "rope_type": "yarn",
        "factor": 40.0,
        "mscale": 0.7,
        "original_max_position_embeddings": 64,
    },
    "yarn-attention-factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "attention_factor": 1.3,
        "original_max_position_embeddings": 64,
    },
    # Both ends of the ramp on one dimension.
    "yarn-narrow": {
        "rope_type": "yarn",
        "factor": 4.0,
        "beta_fast": 1.0001,
        "original_max_position_embeddings": 64,
        "truncate": False,
    },
    "longrope": {"rope_type": "longrope", "original_max_position_embeddings": 64, **FACTORS},
    "longrope-factor": {
        "rope_type": "longrope",
        "factor": 9.0,
        "original_max_position_embeddings": 64,
        **FACTORS,
    },
    "longrope-factor-one": {
        "rope_type": "longrope",
        "factor": 1.0,
        "original_max_position_embeddings": 64,
        **FACTORS,
    },
    "longrope-attention-factor": {
        "rope_type": "longrope",
        "attention_factor": 1.19,
        "original_max_position_embeddings": 64,
        **FACTORS,
    },
}


def both(name: str) -> tuple[LlamaConfig, Rotary]:
    """transformers' config and our table of one rule; ours is read from the saved config."""
    parameters = {"rope_type": "default", "rope_theta": 10000.0, **RULES[name]}
    config = LlamaConfig(
        hidden_size=HEADS * DIM,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        rope_parameters=parameters,
    )
    saved = config.to_dict()
    rope = read_rope(Fields("config.json", saved), DIM, CONTEXT)
    return config, Rotary(rope, DIM, CONTEXT)


def theirs(config: LlamaConfig, positions: Tensor) -> Tensor:
    """Cosines then sines [T, DIM] of a text whose last position is the last one given.

    The module is new each time: for dynamic scaling an old one remembers longer texts.
    """
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions.unsqueeze(0))
    half = DIM // 2
    assert torch.equal(cos[0, :, :half], cos[0, :, half:])
    return torch.cat((cos[0, :, :half], sin[0, :, :half]), -1)


def assert_same(ours: Tensor, want: Tensor, positions: Tensor) -> None:
    """An inverse frequency may be two roundings off, and the angle is ``position`` times that."""
    assert ours.dtype == torch.float32
    bound = (positions.double().unsqueeze(-1) * 4 + 8) * 2.0**-24
    excess = (ours.double() - want.double()).abs() - bound * max(1.0, float(want.abs().max()))
    assert excess.max() <= 0, f"off by {float(excess.max())}"


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200, 256, 257, 400, 1000])
def test_prompts_are_rotated_as_in_transformers(name: str, length: int) -> None:
    config, rotary = both(name)
    positions = torch.arange(length)
    got = rotary.lookup(positions.int(), torch.full((length,), length, dtype=torch.int32))
    assert_same(got, theirs(config, positions), positions)


@pytest.mark.parametrize("name", RULES)
def test_generated_tokens_are_rotated_for_their_own_length(name: str) -> None:
    """Token by token, across the limits of both length-dependent rules."""
    config, rotary = both(name)
    for position in [*range(60, 68), *range(250, 262), 500]:
        at = torch.tensor([position])
        got = rotary.lookup(at.int(), at.int() + 1)
        assert_same(got, theirs(config, at), at)


@pytest.mark.parametrize("name", RULES)
def test_a_row_does_not_depend_on_the_others_in_a_step(name: str) -> None:
    """Short and long texts mixed, in chunks: the same bits as for each token alone."""
    seed = random.randrange(1 << 40)
    print("seed", seed)
    rng = random.Random(seed)
    _, rotary = both(name)
    tokens = [(rng.randrange(length), length) for length in (1, 40, 64, 65, 256, 257, 300, 999) * 3]
    positions, lengths = torch.tensor(tokens, dtype=torch.int32).T
    together = rotary.lookup(positions, lengths)
    for index, (position, length) in enumerate(tokens):
        _, fresh = both(name)
        alone = fresh.lookup(torch.tensor([position]), torch.tensor([length]))
        assert torch.equal(alone[0], together[index]), (position, length)


@pytest.mark.parametrize("rotary_dim", [8, 16, 22])
def test_partial_rotation_has_the_frequencies_of_its_own_width(rotary_dim: int) -> None:
    rope = RopeConfig(theta=10000.0, rotary_dim=rotary_dim)
    table = Rotary(rope, DIM, CONTEXT).lookup(torch.arange(50), torch.full((50,), 50))
    assert table.shape == (50, rotary_dim)
    config = LlamaConfig(
        hidden_size=HEADS * DIM,
        num_attention_heads=HEADS,
        rope_parameters={
            "rope_type": "linear",
            "rope_theta": 10000.0,
            "factor": 1.0,
            "partial_rotary_factor": rotary_dim / DIM,
        },
    )
    inverse, scale = ROPE_INIT_FUNCTIONS["linear"](config)
    assert scale == 1.0
    angles = torch.arange(50).unsqueeze(1) * inverse
    assert_same(table, torch.cat((angles.cos(), angles.sin()), -1), torch.arange(50))


def test_stored_frequency_factors_divide() -> None:
    """GGUF ``rope_freqs``: what llama3 scaling becomes there."""
    config, _ = both("llama3")
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
    plain = 1.0 / 5e5 ** (torch.arange(0, DIM, 2) / DIM)
    factors = tuple((plain / wanted).tolist())
    rope = RopeConfig(theta=5e5, freq_factors=factors)
    got = inverse_frequencies(rope, DIM, CONTEXT)
    torch.testing.assert_close(got, wanted, rtol=4 * 2.0**-24, atol=0)
    table = Rotary(rope, DIM, CONTEXT).lookup(torch.arange(9), torch.full((9,), 9))
    assert float(table[8, 3]) == pytest.approx(math.cos(8 * float(wanted[3])), abs=1e-6)


def test_the_table_grows_without_changing() -> None:
    _, rotary = both("default")
    first = rotary.lookup(torch.arange(10), torch.full((10,), 10)).clone()
    rotary.lookup(torch.tensor([5000]), torch.tensor([5001]))
    assert torch.equal(rotary.lookup(torch.arange(10), torch.full((10,), 10)), first)
