"""Rotary settings: every kind, in the spellings of transformers 4 and 5."""

from __future__ import annotations

import json

import pytest
import transformers
from loader_gguf_files import refuses

from halfbyte.errors import CheckpointError, UnsupportedModelError
from halfbyte.loaders.files.fields import Fields
from halfbyte.loaders.hf.rope import read_rope
from halfbyte.loaders.model.config import RopeConfig

DIM = 8
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2, 3, 4, 5]}


def rope(values: dict, max_position: int = 1024) -> RopeConfig:
    return read_rope(Fields("config.json", values), DIM, max_position)


def both(kind: str, settings: dict, theta: float = 5e5) -> list[RopeConfig]:
    """The same settings as transformers 5, 4, and older 4 write them."""
    return [
        rope({"rope_parameters": {"rope_type": kind, "rope_theta": theta, **settings}}),
        rope({"rope_theta": theta, "rope_scaling": {"rope_type": kind, **settings}}),
        rope({"rope_theta": theta, "rope_scaling": {"type": kind, **settings}}),
    ]


CASES = {
    "default": ("default", {}, {}),
    "linear": ("linear", {"factor": 2}, {"factor": 2.0}),
    "dynamic": ("dynamic", {"factor": 2.0}, {"factor": 2.0, "original_max_position": 1024}),
    "llama3": (
        "llama3",
        LLAMA3,
        {
            "factor": 8.0,
            "original_max_position": 64,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    ),
    "yarn": (
        "yarn",
        {
            "factor": 4.0,
            "original_max_position_embeddings": 256,
            "beta_fast": 24,
            "beta_slow": 2,
            "truncate": False,
            "mscale": 0.7,
            "mscale_all_dim": 1.0,
            "attention_factor": 1.2,
        },
        {
            "factor": 4.0,
            "original_max_position": 256,
            "beta_fast": 24.0,
            "beta_slow": 2.0,
            "truncate": False,
            "mscale": 0.7,
            "mscale_all_dim": 1.0,
            "attention_factor": 1.2,
        },
    ),
    "longrope": (
        "longrope",
        LONG | {"original_max_position_embeddings": 256},
        {
            "factor": 4.0,
            "original_max_position": 256,
            "short_factor": (1.0, 1.1, 1.2, 1.3),
            "long_factor": (2.0, 3.0, 4.0, 5.0),
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_all_spellings_mean_the_same(case):
    kind, settings, expected = CASES[case]
    for found in both(kind, settings):
        assert found == RopeConfig(theta=5e5, rotary_dim=DIM, kind=kind, **expected)


@pytest.mark.parametrize("case", CASES)
def test_what_transformers_writes_is_read(tmp_path, case):
    kind, settings, expected = CASES[case]
    config = transformers.LlamaConfig(
        hidden_size=16,
        num_attention_heads=2,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": kind, "rope_theta": 3e4, **settings},
    )
    config.save_pretrained(tmp_path)
    found = rope(json.loads((tmp_path / "config.json").read_text()))
    assert (found.kind, found.theta) == (kind, 3e4)
    for field, value in expected.items():
        assert getattr(found, field) == value, field


def test_defaults():
    assert rope({}) == RopeConfig(theta=10000.0, rotary_dim=DIM)
    assert rope({"rope_theta": 7}) == RopeConfig(theta=7.0, rotary_dim=DIM)
    assert rope({"rope_scaling": None, "rope_theta": 7}).theta == 7.0
    assert rope({"rope_scaling": {"type": "default", "factor": 1.0}}).kind == "default"
    yarn = rope({"rope_scaling": {"type": "yarn", "factor": 2.0}})
    assert (yarn.beta_fast, yarn.beta_slow, yarn.truncate) == (32.0, 1.0, True)
    assert (yarn.attention_factor, yarn.original_max_position) == (None, 1024)


def test_su_is_longrope_and_null_factors_are_derived():
    values = {"rope_scaling": {"type": "su", "factor": None, **LONG}}
    found = rope(values | {"original_max_position_embeddings": 512})
    assert (found.kind, found.factor, found.original_max_position) == ("longrope", 2.0, 512)
    assert found.attention_factor is None


def test_which_key_wins():
    # rope_type over type; rope_scaling over rope_parameters; nested theta over the outer one.
    assert rope({"rope_scaling": {"type": "x", "rope_type": "linear", "factor": 2.0}}).factor == 2
    two = {
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "linear", "factor": 3.0},
    }
    assert rope(two).factor == 2.0
    assert rope({"rope_theta": 3.0, "rope_parameters": {"rope_theta": 2.0}}).theta == 2.0
    # The top-level original context wins over the nested one, as in transformers.
    nested = {"rope_scaling": {"rope_type": "llama3", **LLAMA3}}
    found = rope(nested | {"original_max_position_embeddings": 32})
    assert found.original_max_position == 32


@pytest.mark.parametrize(
    "values,message",
    [
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}, "multi-axis rotary"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [1]}}, "mrope_section is set"),
        ({"rope_scaling": {"type": "cubic"}}, "rope_type is 'cubic'; supported are default, linea"),
        (
            {"rope_parameters": {"full_attention": {}}},
            "separate settings for full_attention layers",
        ),
        ({"rope_scaling": {"type": "yarn", "new_key": 1}}, r"rope_scaling\.new_key is set"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; these families rotate who"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor is 0.25"),
    ],
)
def test_what_is_not_implemented_is_refused(values, message):
    refuses(lambda: rope(values), UnsupportedModelError, message)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"type": "linear"}, r"rope_scaling\.factor is missing"),
        ({"type": "linear", "factor": 0}, r"rope_scaling\.factor is 0; expected a finite number"),
        ({"type": "linear", "factor": True}, r"rope_scaling\.factor is True"),
        ({"type": "linear", "factor": "2"}, r"rope_scaling\.factor is '2'"),
        ({"type": 3}, r"rope_scaling\.type is 3; expected a string"),
        ({"type": "llama3", "factor": 8.0}, "low_freq_factor is missing"),
        (
            {"type": "llama3", **LLAMA3, "high_freq_factor": 1.0},
            "low_freq_factor is 1.0; expected less than high_freq_factor 1",
        ),
        (
            {"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2},
            "expected more than beta_s",
        ),
        ({"type": "yarn", "factor": 2, "truncate": 1}, "truncate is 1; expected true or false"),
        ({"type": "longrope", "short_factor": [1.0]}, r"short_factor is \[1\.0\]; expected 4 numb"),
        (
            {"type": "longrope", **LONG, "long_factor": [1, 2, 3, "x"]},
            r"rope_scaling\.long_factor\[3\] is 'x'",
        ),
        (
            {"type": "yarn", "factor": 2, "original_max_position_embeddings": 1},
            "original_max_position_embeddings is 1; expected a whole number from 2",
        ),
        (
            {"type": "yarn", "factor": 2, "rope_theta": 1.0},
            r"rope_theta is 1\.0; expected a finite",
        ),
        (
            {"type": "yarn", "factor": 2, "original_max_position_embeddings": 64.0},
            "original_max_position_embeddings is 64.0; expected a whole number",
        ),
    ],
)
def test_bad_values(settings, message):
    refuses(lambda: rope({"rope_scaling": settings}), CheckpointError, message)


def test_rope_settings_must_be_an_object():
    refuses(
        lambda: rope({"rope_scaling": [1]}),
        CheckpointError,
        r"rope_scaling is \[1\]; expected an object",
    )
    refuses(lambda: rope({"rope_theta": 0}), CheckpointError, "rope_theta is 0; expected a finite")
