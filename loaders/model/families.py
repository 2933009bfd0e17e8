"""The model families: one entry each, with what sets it apart in both kinds of checkpoint.

Facts only; ``hf/config.py`` and ``gguf/config.py`` read files by them. The defaults of a Hugging
Face folder are those of transformers, because a file that leaves a key out means transformers'
value; the facts about GGUF files are those of llama.cpp, which the files are made for. A family
whose wiring ``ModelConfig`` can describe is added by an entry here alone.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

from .family import POST_NORM_NAMES, FolderFacts, GGUFFacts, ModelFamily
from .wired_families import WIRED_FAMILIES

_GEMMA: dict[str, Any] = {
    "vocab_size": 256000,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
}
_GEMMA2: dict[str, Any] = {
    **_GEMMA,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_YARN_KEYS = ("rope.scaling.yarn_log_multiplier", "attention.temperature_scale")
# A text model beside a vision tower: transformers from 4.52 on, and before.
_WRAPPER_PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
_WRAPPER_EXTRAS = ("vision_tower.", "multi_modal_projector.")
# Two spellings of one number; which one is written depends on the version of transformers.
EXPERT_COUNTS = ("num_experts", "num_local_experts")

_DELTA: dict[str, Any] = {
    "max_position_embeddings": 32768,
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
_DELTA_MODULES: dict[str, str] = {
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_in": "linear_attn.in_proj_qkvz",
    "ssm_ba": "linear_attn.in_proj_ba",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_MERGED_QUERY = {"query_proj": "q_proj", "output_gate_proj": "q_proj"}

MODEL_FAMILIES: tuple[ModelFamily, ...] = (
    ModelFamily(
        "llama",
        FolderFacts(
            "llama",
            "LlamaForCausalLM",
            {"max_position_embeddings": 2048},
            attention_bias=True,
            mlp_bias=True,
        ),
        GGUFFacts(("llama",), interleaved=True),
    ),
    ModelFamily(
        "mistral",
        FolderFacts(
            "mistral",
            "MistralForCausalLM",
            {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
            windows="all",
            wrapper="mistral3",
            wrapper_prefixes=_WRAPPER_PREFIXES,
            wrapper_extras=_WRAPPER_EXTRAS,
        ),
        GGUFFacts(("mistral", "mistral3"), _YARN_KEYS[:1], interleaved=True),
    ),
    ModelFamily(
        "ministral3",
        FolderFacts(
            "ministral3",
            "Ministral3ForCausalLM",
            {
                "num_key_value_heads": 8,
                "head_dim": 128,
                "max_position_embeddings": 262144,
                "rms_norm_eps": 1e-5,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1000000.0,
                    "factor": 16.0,
                    "original_max_position_embeddings": 16384,
                    "mscale": 1.0,
                    "mscale_all_dim": 1.0,
                    "llama_4_scaling_beta": 0.1,
                },
            },
            windows="all",
            wrapper="mistral3",
            wrapper_prefixes=_WRAPPER_PREFIXES,
            wrapper_extras=_WRAPPER_EXTRAS,
        ),
        GGUFFacts(("mistral3",), _YARN_KEYS, _YARN_KEYS[1], interleaved=True),
        query_scale=True,
    ),
    ModelFamily(
        "qwen2",
        FolderFacts(
            "qwen2",
            "Qwen2ForCausalLM",
            {"num_key_value_heads": 32, "max_position_embeddings": 32768},
            windows="switched",
        ),
        GGUFFacts(("qwen2",), window_every=-1),
        qkv_bias=True,
    ),
    ModelFamily(
        "qwen3",
        FolderFacts(
            "qwen3",
            "Qwen3ForCausalLM",
            {"num_key_value_heads": 32, "max_position_embeddings": 32768, "head_dim": 128},
            attention_bias=True,
            windows="switched",
        ),
        GGUFFacts(("qwen3",), window_every=-1),
        qk_norm=True,
    ),
    ModelFamily(
        "mixtral",
        FolderFacts(
            "mixtral",
            "MixtralForCausalLM",
            {
                "num_key_value_heads": 8,
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-5,
                "rope_theta": 1000000.0,
                "num_experts_per_tok": 2,
                "norm_topk_prob": True,  # no key of its files: its shares always sum to 1
            },
            windows="all",
            own_keys=EXPERT_COUNTS,
            expert_count="num_local_experts",
            renamed={
                "block_sparse_moe": "mlp",
                "w1": "gate_proj",
                "w2": "down_proj",
                "w3": "up_proj",
            },
        ),
        GGUFFacts(("llama",), interleaved=True),
        experts=8,
    ),
    ModelFamily(
        "qwen3_moe",
        FolderFacts(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            {
                "num_key_value_heads": 4,
                "max_position_embeddings": 32768,
                "num_experts_per_tok": 8,
                "moe_intermediate_size": 768,
            },
            attention_bias=True,
            windows="all_switched",
            own_keys=EXPERT_COUNTS,
            expert_width="moe_intermediate_size",
        ),
        GGUFFacts(("qwen3moe",), window_every=-1),
        qk_norm=True,
        experts=128,
    ),
    ModelFamily(
        "smollm3",
        FolderFacts(
            "smollm3",
            "SmolLM3ForCausalLM",
            {
                "num_key_value_heads": 4,
                "max_position_embeddings": 32768,
                "tie_word_embeddings": True,
                "rope_theta": 2000000.0,
            },
            attention_bias=True,
            mlp_bias=True,
            windows="unrotated",
            own_keys=("no_rope_layers",),
        ),
        GGUFFacts(("smollm3",), interleaved=True, unrotated_every=4),
    ),
    ModelFamily(
        "phi3",
        FolderFacts(
            "phi3",
            "Phi3ForCausalLM",
            {
                "max_position_embeddings": 4096,
                "original_max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5,
            },
            windows="all",
            partial_rotary=True,
            stacked=("self_attn.qkv_proj", "mlp.gate_up_proj"),
        ),
        # llama.cpp, too, goes by the model's name.
        GGUFFacts(
            ("phi3",),
            stacked=("self_attn.qkv_proj", "mlp.gate_up_proj"),
            stripping_names=("phi-3", "phi3"),
            plain_tokens=frozenset(("<unk>", "<s>", "<|endoftext|>")),
        ),
    ),
    ModelFamily(
        "gemma",
        FolderFacts(
            "gemma",
            "GemmaForCausalLM",
            {**_GEMMA, "num_attention_heads": 16, "num_key_value_heads": 16},
            # Its files say "gelu" and mean the tanh form; transformers reads them so, too.
            activation_names=("gelu_pytorch_tanh", "gelu"),
            attention_bias=True,
        ),
        GGUFFacts(("gemma",)),
        activation="gelu_tanh",
        gemma=True,
    ),
    ModelFamily(
        "gemma2",
        FolderFacts(
            "gemma2",
            "Gemma2ForCausalLM",
            _GEMMA2,
            activation_names=("gelu_pytorch_tanh",),
            activation_key="hidden_activation",
            attention_bias=True,
            windows="even",
        ),
        GGUFFacts(
            ("gemma2",), window=4096, window_every=2, wide_layers=46, renamed=POST_NORM_NAMES
        ),
        activation="gelu_tanh",
        gemma=True,
        post_norms=True,
        softcaps={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    ModelFamily(
        "gemma3",
        FolderFacts(
            "gemma3_text",
            "Gemma3ForCausalLM",
            {
                **_GEMMA2,
                "vocab_size": 262208,
                "max_position_embeddings": 131072,
                "rope_theta": 1000000.0,
                "rope_local_base_freq": 10000.0,
            },
            activation_names=("gelu_pytorch_tanh",),
            activation_key="hidden_activation",
            attention_bias=True,
            windows="pattern",
            wrapper="gemma3",
            wrapper_prefixes=_WRAPPER_PREFIXES,
            wrapper_extras=_WRAPPER_EXTRAS,
        ),
        GGUFFacts(("gemma3",), window_every=6, wide_layers=62, renamed=POST_NORM_NAMES),
        activation="gelu_tanh",
        qk_norm=True,
        gemma=True,
        post_norms=True,
        local_rope=True,
        softcaps={"final_logit_softcapping": 0.0},
    ),
    *WIRED_FAMILIES,
    ModelFamily(
        "gpt_oss",
        FolderFacts(
            "gpt_oss",
            "GptOssForCausalLM",
            {
                "num_key_value_heads": 8,
                "head_dim": 64,
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-5,
                "rope_theta": 150000.0,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 32.0,
                    "truncate": False,
                    "original_max_position_embeddings": 4096,
                },
                "sliding_window": 128,
                "attention_bias": True,
                "num_experts_per_tok": 4,
                "norm_topk_prob": True,  # no key of its files: a softmax over the best alone
            },
            attention_bias=True,
            windows="even",
            own_keys=EXPERT_COUNTS,
            fixed={"swiglu_alpha": 1.702, "swiglu_limit": 7.0},
            expert_count="num_local_experts",
            renamed={"router": "gate"},
            expert_stacks=True,
        ),
        GGUFFacts(
            ("gpt-oss",),
            window_every=2,
            whole_ramp=False,
            renamed={"post_attention_norm": "post_attention_layernorm"},
        ),
        activation="clipped_swiglu",
        sinks=True,
        expert_bias=True,
        experts=128,
    ),
    ModelFamily(
        "qwen3_next",
        FolderFacts(
            "qwen3_next",
            "Qwen3NextForCausalLM",
            {
                **_DELTA,
                "num_key_value_heads": 2,
                "num_experts": 512,
                "num_experts_per_tok": 10,
                "moe_intermediate_size": 512,
                "shared_expert_intermediate_size": 512,
                "norm_topk_prob": True,
            },
            partial_rotary=True,
            own_keys=("num_experts",),
            expert_width="moe_intermediate_size",
            shared_width="shared_expert_intermediate_size",
            stacked_in={
                **_MERGED_QUERY,
                **{f"in_proj_{part}": "in_proj_qkvz" for part in "qkvz"},
                **{f"in_proj_{part}": "in_proj_ba" for part in "ba"},
            },
        ),
        GGUFFacts(("qwen3next",), renamed=_DELTA_MODULES),
        qk_norm=True,
        delta=True,
        experts=512,
    ),
    ModelFamily(
        "qwen3_5",
        FolderFacts(
            "qwen3_5_text",
            "Qwen3_5ForCausalLM",
            {**_DELTA, "num_key_value_heads": 4},
            partial_rotary=True,
            stacked_in={**_MERGED_QUERY, **{f"in_proj_{part}": "in_proj_qkv" for part in "qkv"}},
            # A text's positions are the same on all axes.
            rotary_extras=("mrope_section", "mrope_interleaved"),
            wrapper="qwen3_5",
            wrapper_prefixes=(("model.language_model.", "model."),),
            wrapper_extras=("visual.",),
        ),
        GGUFFacts(("qwen35",), tiled=True, renamed=_DELTA_MODULES),
        qk_norm=True,
        delta=True,
    ),
)


def model_types() -> list[str]:
    """Every ``model_type`` of a Hugging Face folder that is read, wrappers last."""
    wrappers = dict.fromkeys(f.hf.wrapper for f in MODEL_FAMILIES if f.hf.wrapper)
    return [f.hf.model_type for f in MODEL_FAMILIES] + list(wrappers)


def family_of_type(model_type: object) -> ModelFamily | None:
    """The family of a ``model_type``, of a wrapper's, too; None when there is none."""
    known = (f for f in MODEL_FAMILIES if model_type in (f.hf.model_type, f.hf.wrapper))
    return next(known, None) if model_type else None


def family_of_config(values: Mapping[str, Any]) -> ModelFamily | None:
    """The family of a parsed ``config.json``, in a wrapper that of its text model; None if none.

    A text model that does not say its type is of the first family with that wrapper, as it is in
    transformers.
    """
    inside = [
        f for f in MODEL_FAMILIES if f.hf.wrapper and f.hf.wrapper == values.get("model_type")
    ]
    if not inside:
        return family_of_type(values.get("model_type"))
    text = values.get("text_config")
    kind = text.get("model_type") if isinstance(text, Mapping) else None
    return next((f for f in inside if kind in (None, f.hf.model_type)), None)


def architectures(families: Iterable[ModelFamily] | None = None) -> list[str]:
    """Every ``general.architecture`` of GGUF files of these families, or of all."""
    names = (a for f in families or MODEL_FAMILIES for a in f.gguf.architectures)
    return list(dict.fromkeys(names))


def family_of_architecture(
    architecture: str, experts: bool, keys: Container[str] = ()
) -> ModelFamily | None:
    """The family of a ``general.architecture``; None when there is none.

    Where families share the name, the one whose marker is among the file's ``keys`` (without the
    architecture) is meant, and else ``experts`` decides: whether the file has a mixture.
    """
    known = [f for f in MODEL_FAMILIES if architecture in f.gguf.architectures]
    marked = [f for f in known if f.gguf.marker and f.gguf.marker in keys]
    plain = [f for f in known if not f.gguf.marker]
    fitting = [f for f in plain if bool(f.experts) == experts]
    return next(iter(marked or fitting or plain), None)
