"""config.json of Gemma, Phi-3 and SmolLM3: defaults, windows, rotary rules, what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from loader_gguf_files import refuses
from test_hf_config import read

from halfbyte.errors import CheckpointError, UnsupportedModelError
from halfbyte.loaders.files.safetensors_index import StoredTensor
from halfbyte.loaders.hf.config import rounded
from halfbyte.loaders.hf.names import canonical, spelling
from halfbyte.loaders.model.checks import expected_tensors
from halfbyte.loaders.model.config import Experts, RopeConfig
from halfbyte.loaders.model.report import LoadReport

GEMMA = {"hidden_size": 96, "num_hidden_layers": 8, "head_dim": 4, "-torch_dtype": 0}
GEMMA |= {"architectures": None, "num_attention_heads": 2, "num_key_value_heads": 1}
GEMMA1 = {**GEMMA, "model_type": "gemma"}
GEMMA2 = {**GEMMA, "model_type": "gemma2"}
GEMMA3 = {**GEMMA, "model_type": "gemma3_text"}
PHI3 = {"model_type": "phi3", "head_dim": 8}
SMOL3 = {"model_type": "smollm3", "num_hidden_layers": 8}
QWEN_MOE = {"model_type": "qwen3_moe", "num_hidden_layers": 4, "num_experts": 4}
QWEN_MOE |= {"num_experts_per_tok": 2, "moe_intermediate_size": 6}
FULL, SLIDING = "full_attention", "sliding_attention"


def test_gemma2_defaults():
    found = read(GEMMA2)
    assert found.architecture == "gemma2" and found.tie_word_embeddings and found.post_norms
    assert (found.attn_softcap, found.logit_softcap) == (50.0, 30.0)
    assert (found.activation, found.norm_offset) == ("gelu_tanh", 1.0)
    assert found.attention_scale == found.score_scale == 256**-0.5
    assert found.sliding_window == (4096, 0) * 4
    assert found.rope_local is None and not found.qk_norm
    assert (found.qkv_bias, found.o_bias) == (False, False)
    null = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    assert (read(GEMMA2 | null).attn_softcap, read(GEMMA2 | null).logit_softcap) == (0.0, 0.0)
    assert read(GEMMA2 | {"query_pre_attn_scalar": 144}).score_scale == 1 / 12


def test_gemma1_scales_by_the_head_and_reads_gelu_as_tanh():
    for name in ("gelu", "gelu_pytorch_tanh"):
        found = read(GEMMA1 | {"hidden_act": name, "query_pre_attn_scalar": 3})
        assert found.activation == "gelu_tanh" and found.score_scale == 0.5
    assert not found.post_norms and found.sliding_window == ()


def test_embedding_scale_is_rounded_to_the_models_type():
    for name in ("float32", "float16", "bfloat16"):
        want = torch.tensor(96**0.5).to(getattr(torch, name)).item()
        assert read(GEMMA2 | {"dtype": name}).embedding_scale == want
    assert read(GEMMA2 | {"dtype": "bfloat16"}).embedding_scale == 9.8125


@pytest.mark.parametrize("hidden", [1, 2048, 2304, 2560, 3072, 3584, 3840, 4608, 5376, 12345])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rounding_is_torchs(hidden, dtype):
    want = torch.tensor(hidden**0.5).to(getattr(torch, dtype)).item()
    assert rounded(hidden**0.5, dtype) == want


def test_gemma2_has_four_norms_a_layer():
    names = [name for name in expected_tensors(read(GEMMA2)) if name.startswith("model.layers.7.")]
    norms = ["input", "post_attention", "pre_feedforward", "post_feedforward"]
    assert [n for n in names if "norm" in n] == [
        f"model.layers.7.{norm}_layernorm.weight" for norm in norms
    ]
    assert "lm_head.weight" not in expected_tensors(read(GEMMA2))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"hidden_activation": "gelu"}, "hidden_activation is 'gelu'; supported is gelu_pytorch_"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ],
)
@pytest.mark.parametrize("base", [GEMMA2, GEMMA3])
def test_gemma_variants_are_refused(base, changes, message):
    refuses(lambda: read(base | changes), UnsupportedModelError, message)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"sliding_window": None}, "sliding_window is missing; expected a whole number"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0; expected a finite number"),
        ({"query_pre_attn_scalar": None}, "query_pre_attn_scalar is missing"),
        ({"final_logit_softcapping": 0}, "final_logit_softcapping is 0; expected a finite number"),
        ({"final_logit_softcapping": -30}, "final_logit_softcapping is -30"),
    ],
)
def test_gemma_values_are_bounded(changes, message):
    refuses(lambda: read(GEMMA2 | changes), CheckpointError, message)


def test_gemma3_rotary_rules_of_both_spellings():
    """Linear scaling and its base are the full layers' alone; the list of types wins."""
    old = GEMMA3 | {
        "rope_theta": 5e5,
        "rope_local_base_freq": 2e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 4,
    }
    new = GEMMA3 | {
        "rope_parameters": {
            FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
            SLIDING: {"rope_type": "default", "rope_theta": 2e4},
        },
        "layer_types": [SLIDING, SLIDING, SLIDING, FULL] * 2,
    }
    for values in (old, new):
        found = read(values)
        assert found.rope == RopeConfig(5e5, 4, "linear", 8.0)
        assert found.rope_local == RopeConfig(2e4, 4)
        assert found.local_layers == (True, True, True, False) * 2
        assert found.sliding_window == (4096, 4096, 4096, 0) * 2
        assert [found.local_rope(i) for i in (2, 3)] == [True, False]


def test_gemma3_defaults():
    found = read(GEMMA3)
    assert found.architecture == "gemma3" and found.qk_norm and found.post_norms
    assert (found.rope.theta, found.rope_local) == (1e6, RopeConfig(1e4, 4))
    assert found.sliding_window == (4096,) * 5 + (0,) + (4096,) * 2
    assert (found.attn_softcap, found.logit_softcap) == (0.0, 0.0)
    assert read(GEMMA3 | {"final_logit_softcapping": 20.0}).logit_softcap == 20.0
    all_full = read(GEMMA3 | {"layer_types": [FULL] * 8})
    assert (all_full.rope_local, all_full.local_layers) == (None, ())


def test_gemma3_rotary_rules_that_are_refused():
    scaled = {"rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 2.0}}}
    refuses(
        lambda: read(GEMMA3 | scaled),
        UnsupportedModelError,
        "rope_parameters.sliding_attention.rope_type is 'linear'; supported for these layers is",
    )
    refuses(
        lambda: read(GEMMA3 | {"rope_parameters": {"rope_type": "default"}}),
        CheckpointError,
        "rope_parameters is .*; expected settings under",
    )
    # What transformers ignores in a Gemma 3, Halfbyte does not guess at.
    refuses(
        lambda: read(GEMMA3 | {"attn_logit_softcapping": 50.0}),
        UnsupportedModelError,
        "attn_logit_softcapping is 50.0; this variant of gemma3_text is not supported",
    )


def test_the_language_model_of_a_multimodal_gemma3():
    """Hubs hold such sparse text_configs: all else is transformers' default."""
    inner = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    left_out = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    wrapper = {f"-{key}": 0 for key in (*left_out, "num_key_value_heads", "vocab_size")}
    wrapper |= {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": inner,
        "vision_config": {"model_type": "siglip_vision_model"},
        "eos_token_id": [1, 106],
        "torch_dtype": "bfloat16",
    }
    found = read(wrapper)
    assert (found.architecture, found.vocab_size, found.head_dim) == ("gemma3", 262208, 256)
    assert (found.num_heads, found.num_kv_heads, found.max_position) == (8, 4, 131072)
    assert found.eos_token_ids == (1, 106) and found.tie_word_embeddings
    assert found.rope.factor == 8.0 and found.sliding_window[:6] == (1024,) * 5 + (0,)
    assert found.embedding_scale == 50.5  # sqrt(2560) = 50.596, in bfloat16
    refuses(
        lambda: read(wrapper | {"text_config": inner | {"hidden_size": 2560.0}}),
        CheckpointError,
        r"text_config\.hidden_size is 2560\.0; expected a whole number",
    )
    refuses(
        lambda: read(wrapper | {"text_config": inner | {"num_experts": 4}}),
        UnsupportedModelError,
        r"text_config\.num_experts is 4",
    )
    refuses(
        lambda: read({"-text_config": 0, "model_type": "gemma3", "architectures": None}),
        CheckpointError,
        r"text_config.* is missing",
    )


def test_phi3_partial_rotary_and_longrope():
    long = {"type": "longrope", "short_factor": [1.0] * 3, "long_factor": [2, 3, 4]}
    base = PHI3 | {"max_position_embeddings": 131072, "partial_rotary_factor": 0.75}
    for kind in ("longrope", "su", "yarn"):
        found = read(base | {"rope_scaling": long | {"type": kind}})
        assert (found.rope.kind, found.rope.rotary_dim) == ("longrope", 6)
        assert found.rope.original_max_position == 4096  # transformers' default for the family
        assert found.rope.long_factor == (2.0, 3.0, 4.0)
        assert found.rope.factor == 32.0
    nested = {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}
    assert read(PHI3 | nested).rope.rotary_dim == 4
    refuses(
        lambda: read(base | {"partial_rotary_factor": 1.0, "rope_scaling": long}),
        CheckpointError,
        "short_factor is .*; expected 4 numbers",
    )
    refuses(
        lambda: read(PHI3 | {"partial_rotary_factor": 0.4}),
        CheckpointError,
        "3 rotary dimensions by partial_rotary_factor in heads of 8 by head_dim",
    )
    refuses(
        lambda: read({"partial_rotary_factor": 0.5}),
        UnsupportedModelError,
        "partial_rotary_factor is 0.5; these families rotate whole heads",
    )


def test_phi3_window_and_defaults():
    found = read(PHI3 | {"-rms_norm_eps": 0})
    assert (found.rms_norm_eps, found.sliding_window, found.qkv_bias) == (1e-5, (), False)
    assert read(PHI3 | {"sliding_window": 2047}).sliding_window == (2047,)
    assert read(PHI3 | {"sliding_window": None}).sliding_window == ()


def test_smollm3_layers_without_positions():
    found = read(SMOL3)
    assert found.rope.theta == 2e6 and found.tie_word_embeddings
    assert found.local_layers == (False, False, False, True) * 2
    assert found.rope_local == RopeConfig(kind="none")
    listed = read(SMOL3 | {"no_rope_layers": [1, 1, 1, 1, 1, 1, 1, 0, 0]})
    assert listed.local_layers == (False,) * 7 + (True,)
    everywhere = read(SMOL3 | {"no_rope_layers": [1] * 8})
    assert (everywhere.rope_local, everywhere.local_layers) == (None, ())
    window = {"use_sliding_window": True, "sliding_window": 16}
    assert read(SMOL3 | window).sliding_window == (0, 0, 0, 16) * 2
    assert read(SMOL3 | {"sliding_window": 16}).sliding_window == ()
    for bad in ([1] * 7, [1] * 7 + [2], "11111111"):
        refuses(
            lambda bad=bad: read(SMOL3 | {"no_rope_layers": bad}),
            CheckpointError,
            "no_rope_layers is .*; expected 8 ones and zeros",
        )
    refuses(lambda: read({"no_rope_layers": [1]}), UnsupportedModelError, "no_rope_layers is")


def test_mixtral_experts():
    found = read({"model_type": "mixtral", "num_local_experts": 3})
    assert found.experts == Experts(3, 2, 12, True, (True,))
    assert (found.rope.theta, found.sliding_window) == (1e6, ())
    tensors = expected_tensors(found)
    assert tensors["model.layers.0.mlp.gate.weight"] == (3, 8)
    assert tensors["model.layers.0.mlp.experts.2.down_proj.weight"] == (8, 12)
    assert "model.layers.0.mlp.down_proj.weight" not in tensors


@pytest.mark.parametrize(
    "names",
    [
        ["model.language_model.layers.0.mlp.up_proj.qweight", "lm_head.weight"],
        ["language_model.model.layers.0.mlp.up_proj.qweight", "language_model.lm_head.weight"],
        ["language_model.model.layers.0.mlp.up_proj.qweight"],
        ["model.layers.0.mlp.up_proj.qweight", "lm_head.weight"],
    ],
)
def test_names_of_wrapped_models_have_a_way_back(names: list[str]) -> None:
    values = {"model_type": "gemma3"}
    stored = {name: StoredTensor(name, "F16", (1,), 0, 0, 2) for name in names}
    found = canonical("m", stored, values, LoadReport("safetensors"))
    assert next(iter(found)) == "model.layers.0.mlp.up_proj.qweight"
    spelled = spelling(names, values)
    assert [spelled(name) for name in found] == names


def test_qwen3_moe_experts():
    found = read(QWEN_MOE | {"decoder_sparse_step": 2, "mlp_only_layers": [3]})
    assert found.experts == Experts(4, 2, 6, False, (False, True, False, False))
    tensors = expected_tensors(found)
    assert tensors["model.layers.1.mlp.experts.3.gate_proj.weight"] == (6, 8)
    assert tensors["model.layers.3.mlp.gate_proj.weight"] == (12, 8)
    for count in ({"num_local_experts": 4}, {"num_experts": None, "num_local_experts": 4}):
        experts = read(QWEN_MOE | count).experts_of(0)
        assert experts is not None and experts.count == 4
    window = read(QWEN_MOE | {"use_sliding_window": True, "sliding_window": 16})
    assert window.sliding_window == (16,) * 4


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"num_experts_per_tok": 5}, "num_experts_per_tok is 5; expected a whole number from 1 to"),
        (
            {"num_experts": 1 << 20},
            "num_experts is 1048576; expected a whole number from 1 to 8192",
        ),
        ({"num_local_experts": 5}, "num_local_experts is 5; expected 4, as in num_experts"),
        ({"mlp_only_layers": [4]}, r"mlp_only_layers is \[4\]; expected layers from 0 to 3"),
        ({"mlp_only_layers": [True]}, r"mlp_only_layers is \[True\]"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size is 0"),
    ],
)
def test_experts_are_bounded(changes, message):
    refuses(lambda: read(QWEN_MOE | changes), CheckpointError, message)


def test_names_of_mixtrals_experts():
    names = [
        "model.layers.0.block_sparse_moe.gate.weight",
        "model.layers.0.block_sparse_moe.experts.1.w1.qweight",
        "model.layers.0.block_sparse_moe.experts.1.w2.weight",
        "model.layers.0.block_sparse_moe.experts.1.w3.scales",
        "model.norm.weight",
    ]
    stored = {name: StoredTensor(name, "F16", (1,), 0, 0, 2) for name in names}
    report = LoadReport("safetensors")
    found = canonical("m", stored, {"model_type": "mixtral"}, report)
    assert list(found) == [
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.mlp.experts.1.gate_proj.qweight",
        "model.layers.0.mlp.experts.1.down_proj.weight",
        "model.layers.0.mlp.experts.1.up_proj.scales",
        "model.norm.weight",
    ]
    assert [tensor.name for tensor in found.values()] == names
    spelled = spelling(names, {"model_type": "mixtral"})
    assert [spelled(name) for name in found] == names
    assert canonical("m", stored, {"model_type": "llama"}, report) is stored
    twice = stored | {"model.layers.0.mlp.gate.weight": stored[names[0]]}
    refuses(
        lambda: canonical("m", twice, {"model_type": "mixtral"}, report),
        CheckpointError,
        "gate.weight is stored under two names",
    )


def test_decisions_name_the_scaling():
    report = LoadReport("safetensors")
    read(GEMMA3 | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, report=report)
    assert "rotary scaling: linear, factor 8" in report.decisions
    assert math.isclose(read(GEMMA2).score_scale, 0.0625)
