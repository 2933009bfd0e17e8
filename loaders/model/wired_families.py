"""A part of :mod:`.families`: those whose layers are wired otherwise than Llama's.

Norms behind the blocks, q and k normed over all heads, rotated pairs side by side, layers without
a rotary embedding, factors on what is added, attention and MLP side by side.
"""

from __future__ import annotations

from typing import Any

from .family import POST_NORM_NAMES, FolderFacts, GGUFFacts, ModelFamily

_GRANITE_KEYS = (
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_scaling",
)
_GLM: dict[str, Any] = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-07,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
}

WIRED_FAMILIES: tuple[ModelFamily, ...] = (
    ModelFamily(
        "olmo2",
        FolderFacts(
            "olmo2",
            "Olmo2ForCausalLM",
            {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
            attention_bias=True,
        ),
        GGUFFacts(("olmo2",), renamed=POST_NORM_NAMES),
        qk_norm=True,
        whole_qk_norm=True,
        post_norms=True,
        pre_norms=False,
    ),
    ModelFamily(
        "olmo3",
        FolderFacts(
            "olmo3",
            "Olmo3ForCausalLM",
            {
                "max_position_embeddings": 2048,
                "rms_norm_eps": 1e-5,
                "rope_theta": 500000.0,
                "sliding_window": 4096,
                "sliding_window_pattern": 4,
            },
            attention_bias=True,
            windows="pattern",
        ),
        GGUFFacts(
            ("olmo2",),
            marker="attention.sliding_window",
            window_every=4,
            renamed=POST_NORM_NAMES,
        ),
        qk_norm=True,
        whole_qk_norm=True,
        post_norms=True,
        pre_norms=False,
        local_rope=True,
    ),
    ModelFamily(
        "granite",
        FolderFacts(
            "granite",
            "GraniteForCausalLM",
            {
                "max_position_embeddings": 2048,
                "embedding_multiplier": 1.0,
                "residual_multiplier": 1.0,
                "attention_multiplier": 1.0,
                "logits_scaling": 1.0,
            },
            attention_bias=True,
            mlp_bias=True,
            own_keys=_GRANITE_KEYS,
        ),
        GGUFFacts(
            ("granite",),
            ("embedding_scale", "residual_scale", "attention.scale", "logit_scale"),
            interleaved=True,
        ),
        multipliers=True,
    ),
    ModelFamily(
        "glm",
        FolderFacts(
            "glm",
            "GlmForCausalLM",
            _GLM,
            attention_bias=True,
            o_bias="",
            partial_rotary=True,
            stacked=("mlp.gate_up_proj",),
        ),
        GGUFFacts(("chatglm",), stacked=("mlp.gate_up_proj",)),
        interleaved_rope=True,
    ),
    ModelFamily(
        "glm4",
        FolderFacts(
            "glm4",
            "Glm4ForCausalLM",
            _GLM,
            attention_bias=True,
            o_bias="",
            partial_rotary=True,
            stacked=("mlp.gate_up_proj",),
            renamed={
                "post_self_attn_layernorm": "post_attention_layernorm",
                "post_attention_layernorm": "pre_feedforward_layernorm",
                "post_mlp_layernorm": "post_feedforward_layernorm",
            },
        ),
        GGUFFacts(("glm4",), stacked=("mlp.gate_up_proj",), renamed=POST_NORM_NAMES),
        interleaved_rope=True,
        post_norms=True,
    ),
    ModelFamily(
        "seed_oss",
        FolderFacts(
            "seed_oss",
            "SeedOssForCausalLM",
            {
                "num_key_value_heads": 8,
                "head_dim": 128,
                "max_position_embeddings": 524288,
                "attention_bias": True,
            },
            attention_bias=True,
            o_bias="attention_out_bias",
            mlp_bias=True,
        ),
        GGUFFacts(("seed_oss",), renamed={"post_attention_norm": "post_attention_layernorm"}),
    ),
    ModelFamily(
        "exaone4",
        FolderFacts(
            "exaone4",
            "Exaone4ForCausalLM",
            {
                "num_key_value_heads": 32,
                "max_position_embeddings": 2048,
                "rms_norm_eps": 1e-5,
                "sliding_window": 4096,
                "sliding_window_pattern": 4,
            },
            windows="optional_pattern",
        ),
        GGUFFacts(("exaone4",), window_every=4, renamed=POST_NORM_NAMES),
        qk_norm=True,
        post_norms=True,
        pre_norms=False,
        unrotated_full=True,
    ),
    ModelFamily(
        "cohere2",
        FolderFacts(
            "cohere2",
            "Cohere2ForCausalLM",
            {
                "max_position_embeddings": 8192,
                "layer_norm_eps": 1e-5,
                "logit_scale": 0.0625,
                "tie_word_embeddings": True,
                "sliding_window": 4096,
                "sliding_window_pattern": 4,
            },
            attention_bias=True,
            norm_eps="layer_norm_eps",
            windows="pattern",
            own_keys=("logit_scale",),
        ),
        GGUFFacts(
            ("cohere2",),
            ("logit_scale",),
            window=4096,
            window_every=4,
            norm_eps="attention.layer_norm_epsilon",
        ),
        interleaved_rope=True,
        unrotated_full=True,
        parallel=True,
        centered_norms=True,
        logit_scale=True,
    ),
    ModelFamily(
        "ernie4_5",
        FolderFacts(
            "ernie4_5",
            "Ernie4_5ForCausalLM",
            {
                "num_key_value_heads": 2,
                "head_dim": 128,
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-5,
                "rope_theta": 500000.0,
                "tie_word_embeddings": True,
            },
        ),
        GGUFFacts(("ernie4_5",)),
        interleaved_rope=True,
    ),
)
