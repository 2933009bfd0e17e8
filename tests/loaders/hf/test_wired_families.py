"""config.json of families with wiring of their own: what is read, and what is refused by key."""

from __future__ import annotations

from typing import Any

import pytest
from loader_gguf_files import refuses
from test_hf_config import read

from halfbyte.errors import CheckpointError, UnsupportedModelError

SMALL = {"num_hidden_layers": 8, "architectures": None}
MINISTRAL = {**SMALL, "model_type": "ministral3", "head_dim": 8}
OLMO3 = {**SMALL, "model_type": "olmo3"}
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


REFUSED: list[tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = [
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
