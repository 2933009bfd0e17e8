"""config.json of families with wiring of their own: what is read, and what is refused by key."""

from __future__ import annotations

from typing import Any

import pytest
from loader_gguf_files import refuses
from test_hf_config import read

from halfbyte.errors import CheckpointError, HalfbyteError, UnsupportedModelError
from halfbyte.loaders.model.checks import expected_tensors
from halfbyte.loaders.model.config import RopeConfig

SMALL = {"num_hidden_layers": 8, "architectures": None}
MINISTRAL = {**SMALL, "model_type": "ministral3", "head_dim": 8}
OLMO3 = {**SMALL, "model_type": "olmo3"}
EXAONE = {**SMALL, "model_type": "exaone4", "num_key_value_heads": 2}
COHERE = {**SMALL, "model_type": "cohere2"}
GRANITE = {
    **SMALL,
    "model_type": "granite",
    "rms_norm_eps": 1e-5,
    "embedding_multiplier": 12,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.015625,
    "logits_scaling": 8,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def test_ministral3_defaults():
    found = read(MINISTRAL | {"-max_position_embeddings": 0, "-rope_theta": 0})
    assert found.architecture == "ministral3" and found.sliding_window == ()
    assert (found.rope.kind, found.rope.factor, found.rope.query_scale) == ("yarn", 16.0, 0.1)
    assert (found.rope.original_max_position, found.rope.mscale_all_dim) == (16384, 1.0)
    # Without the key queries are not scaled.
    assert read(MINISTRAL | {"rope_parameters": YARN}).rope.query_scale == 0.0


def test_text_models_of_a_wrapper_are_told_apart_by_their_own_type():
    inner = {**MINISTRAL, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    inner |= {"vocab_size": 96, "max_position_embeddings": 512, "num_key_value_heads": 2}
    outer = {"model_type": "mistral3", "architectures": ["Mistral3ForConditionalGeneration"]}
    for kind, name in (("ministral3", "ministral3"), ("mistral", "mistral"), (None, "mistral")):
        text = {key: value for key, value in inner.items() if key != "model_type" or kind}
        found = read(outer | {"text_config": text | ({"model_type": kind} if kind else {})})
        assert found.architecture == name
    refuses(
        lambda: read(outer | {"text_config": inner | {"model_type": "mistral4"}}),
        UnsupportedModelError,
        "text_config.model_type is 'mistral4'; it is none of the text models",
    )


def test_olmo_layers():
    plain = read({**SMALL, "model_type": "olmo2"})
    assert plain.qk_norm and plain.whole_qk_norm and plain.post_norms and not plain.pre_norms
    assert plain.sliding_window == () and plain.rope_local is None
    # What a file of OLMo 3 says: one base, and scaling of the layers that see everything.
    hybrid = read({**SMALL, "model_type": "olmo3", "rope_theta": 7e5, "rope_scaling": YARN})
    assert hybrid.sliding_window == (4096, 4096, 4096, 0) * 2
    assert hybrid.local_layers == (True, True, True, False) * 2
    assert (hybrid.rope.kind, hybrid.rope.theta) == ("yarn", 7e5)
    assert hybrid.rope_local is not None
    assert (hybrid.rope_local.kind, hybrid.rope_local.theta) == ("default", 7e5)


def test_granites_factor_on_the_residual_is_put_away():
    found = read(GRANITE)
    assert found.embedding_scale == pytest.approx(12 / 0.22)
    assert found.rms_norm_eps == pytest.approx(1e-5 / 0.22**2)
    assert (found.score_scale, found.logit_scale) == (0.015625, 1 / 8)
    # What a file leaves out is 1 in transformers, the factor on scores, too.
    bare = read({**SMALL, "model_type": "granite", "-rms_norm_eps": 0})
    assert (bare.embedding_scale, bare.rms_norm_eps, bare.score_scale) == (1.0, 1e-6, 1.0)
    assert bare.logit_scale == 1.0


def test_glm_and_seed_biases():
    for kind in ("glm", "glm4"):
        found = read({**SMALL, "model_type": kind, "head_dim": 8})
        assert found.qkv_bias and not found.o_bias and found.interleaved_rope
        assert found.rope.rotary_dim == 4 and found.post_norms == (kind == "glm4")
        assert not read({**SMALL, "model_type": kind, "attention_bias": False}).qkv_bias
    seed = {**SMALL, "model_type": "seed_oss", "head_dim": 8}
    assert (read(seed).qkv_bias, read(seed).o_bias) == (True, False)
    assert read(seed | {"attention_out_bias": True, "attention_bias": False}).o_bias


def test_layers_without_positions_are_those_without_a_window():
    plain = RopeConfig(kind="none")
    exaone = read(EXAONE)
    assert exaone.sliding_window == (4096, 4096, 4096, 0) * 2 and not exaone.pre_norms
    assert (exaone.rope_local, exaone.local_layers) == (plain, (False, False, False, True) * 2)
    letters = read(EXAONE | {"sliding_window_pattern": "LG"})
    assert letters.sliding_window == (4096, 0) * 4
    # Without a window every layer has positions.
    none = read(EXAONE | {"sliding_window": None, "sliding_window_pattern": None})
    assert (none.sliding_window, none.rope_local) == ((), None)
    listed = read(EXAONE | {"layer_types": ["full_attention"] * 8})
    assert (listed.sliding_window, listed.local_layers) == ((), (True,) * 8)
    cohere = read(COHERE | {"logit_scale": 0.25, "layer_norm_eps": 1e-3})
    assert cohere.local_layers == exaone.local_layers and cohere.rope_local == plain
    assert (cohere.logit_scale, cohere.rms_norm_eps) == (0.25, 1e-3)
    assert cohere.parallel and cohere.centered_norms and cohere.interleaved_rope
    names = [name for name in expected_tensors(cohere) if name.startswith("model.layers.3.")]
    assert [name for name in names if "norm" in name] == ["model.layers.3.input_layernorm.weight"]


REFUSED: list[tuple[dict[str, Any], dict[str, Any], type[HalfbyteError], str]] = [
    (MINISTRAL, {"sliding_window": -1}, CheckpointError, "sliding_window is -1; expected a whole"),
    (
        MINISTRAL,
        {"rope_parameters": YARN | {"llama_4_scaling_beta": float("nan")}},
        CheckpointError,
        "rope_parameters.llama_4_scaling_beta is nan; expected a finite number",
    ),
    (
        MINISTRAL,
        {"rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1}},
        UnsupportedModelError,
        "llama_4_scaling_beta is 0.1 with rope_type 'default'; supported is yarn",
    ),
    (
        {**SMALL, "model_type": "llama"},
        {"rope_scaling": YARN | {"llama_4_scaling_beta": 0.1}},
        UnsupportedModelError,
        "llama_4_scaling_beta is 0.1 with rope_type 'yarn'; supported is yarn, of ministral3",
    ),
    *(
        (
            GRANITE,
            {key: value},
            CheckpointError,
            rf"config\.json: {key} is {value}; expected a finite number from 0\.0001 to 10000",
        )
        for key in (
            "embedding_multiplier",
            "residual_multiplier",
            "attention_multiplier",
            "logits_scaling",
        )
        for value in (0, float("nan"), -1.0)
    ),
    (COHERE, {"logit_scale": 0}, CheckpointError, "logit_scale is 0; expected a finite number"),
    (COHERE, {"sliding_window": None}, CheckpointError, "sliding_window is missing; expected"),
    (
        {**SMALL, "model_type": "llama"},
        {"residual_multiplier": 0.5},
        UnsupportedModelError,
        "residual_multiplier is 0.5; this variant of llama is not supported",
    ),
    (
        {**SMALL, "model_type": "llama"},
        {"logits_scaling": 2.0},
        UnsupportedModelError,
        "logits_scaling is 2.0; this variant of llama is not supported",
    ),
    (EXAONE, {"sliding_window": -1}, CheckpointError, "sliding_window is -1; expected a whole"),
    (
        EXAONE,
        {"sliding_window_pattern": "LXG"},
        CheckpointError,
        "sliding_window_pattern is 'LXG'; expected a number, or letters L and G",
    ),
    (
        EXAONE,
        {"sliding_window_pattern": 0},
        CheckpointError,
        "sliding_window_pattern is 0; expected a whole number from 1",
    ),
    (
        {**SMALL, "model_type": "glm4", "head_dim": 8},
        {"partial_rotary_factor": 0.01},
        CheckpointError,
        "partial_rotary_factor is 0.0; expected 2 of 8 or more",
    ),
    (
        OLMO3,
        {"layer_types": ["full_attention"] * 7},
        CheckpointError,
        "layer_types is .*; expected a list of 8 layer types",
    ),
    (
        OLMO3,
        {"layer_types": ["full_attention"] * 7 + ["linear_attention"]},
        UnsupportedModelError,
        "layer_types holds 'linear_attention'; supported are full_attention and sliding_attention",
    ),
    (
        OLMO3,
        {"sliding_window": -4},
        CheckpointError,
        "sliding_window is -4; expected a whole number",
    ),
    (
        MINISTRAL,
        {"rope_parameters": YARN | {"rope_type": "spiral"}},
        UnsupportedModelError,
        "rope_parameters.rope_type is 'spiral'; supported are default",
    ),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_values_that_are_refused(case: int):
    base, more, kind, says = REFUSED[case]
    refuses(lambda: read(base | more), kind, says)
